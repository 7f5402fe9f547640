"""The tokenizer against COCO's own (Stanford's, in Java), against a table of its answers, and against odd captions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.tokenizer import ptbtokenizer

from src.metrics.ptb import _tokenize_text, tokenize

JAR = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
FIXTURE = os.environ.get("CAPTION_METRIC_FIXTURE")
PUNCTUATION = set(ptbtokenizer.PUNCTUATIONS)

# Caption -> what the Java tokenizer and COCO's list of punctuation leave of it.
CASES = {
    "A dog runs.": "a dog runs",
    "A dog, a cat; and -- a bird!": "a dog a cat and a bird",
    "The man's dog doesn't bark at dogs' bowls": "the man 's dog does n't bark at dogs bowls",
    "They CAN'T, we'll, I'd've": "they ca n't we 'll i 'd 've",
    "it\u2019s \u201cquoted\u201d \u2018here\u2019": "it 's quoted here",
    "You cannot go, I'm gonna gotta": "you can not go i 'm gon na got ta",
    "a mother-in-law and/or his/her T-shirt": "a mother-in-law and/or his/her t-shirt",
    "a sign (old) [new] {x}": "a sign -lrb- old -rrb- -lsb- new -rsb- -lcb- x -rcb-",
    "Mr. Smith of St. Louis, etc.": "mr. smith of st. louis etc.",
    "at 4:15pm or 3 p.m. in the U.S.": "at 4:15 pm or 3 p.m. in the u.s.",
    "No. 5 said no. Then 1,000 left": "no. 5 said no then 1,000 left",
    "about 1 1/2 cups, 3/4 full": "about 1\u00a01/2 cups 3/4 full",
    "it cost $5.00, \u00a35 or 50%": "it cost $ 5.00 # 5 or 50 %",
    "oranges,2 apples;3 at 6-8:30": "oranges ,2 apples 3 at 6-8 :30",
    "AT&T, M&Ms and Q&A, salt&pepper": "at&t m&m s and q&a salt & pepper",
    "J. Smith has plan B. The letter K.": "j. smith has plan b the letter k",
    "What?! No!! Yes... ok..": "what ?! no !! yes ok",
    "rock 'n' roll in the '90s, O'Brien": "rock 'n' roll in the '90s o'brien",
    "a sink., a mirror": "a sink. a mirror",
    "an old T.V.on a stand": "an old t.v.on a stand",
    "smile :) at www.some.where or me@some.where #tag": "smile :-rrb- at www.some.where or me@some.where #tag",
    "a <unk> in <b> bold </b> 5 < 6": "a <unk> in <b> bold </b> 5 < 6",
    "caf\u00e9 na\u00efve \u6771\u4eac \u2122 \u2605": "caf\u00e9 na\u00efve \u6771\u4eac \u2122 \u2605",
    "a \U0001f600 b\U0001f44d\U0001f3fdc \u2764\ufe0f": "a b c \u2764",
    "6'2\" tall, 90\u00b0 \u00bd": "6 2 tall 90 \u00b0 1/2",
    "dogs &amp; cats &lt; birds": "dogs & cats < birds",
    "": "",
    "...": "",
    "\"'`.,;:! ?- --": "",
}


@pytest.mark.parametrize("caption", CASES)
def test_answers_of_the_original(caption):
    assert tokenize(caption) == CASES[caption]


def java_tokenize(captions: list[str], folder: Path) -> list[str]:
    """COCO's tokens of each caption. A line between any two keeps a caption's tokens from depending on the next."""
    text = folder / "captions.txt"
    text.write_text("".join(f"{caption}\nThe next\n" for caption in captions), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US", "-cp", str(JAR)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(text)]
    lines = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode().split("\n")
    assert len(lines) == 2 * len(captions) + 1
    return [" ".join(w for w in line.rstrip().split(" ") if w not in PUNCTUATION) for line in lines[:-1:2]]


needs_java = pytest.mark.skipif(
    not shutil.which("java") or not JAR.is_file(), reason="needs java and pycocoevalcap's stanford-corenlp-3.4.1.jar"
)


@needs_java
def test_the_table_is_what_java_says(tmp_path):
    assert dict(zip(CASES, java_tokenize(list(CASES), tmp_path), strict=True)) == CASES


@needs_java
def test_combinations_agree_with_java(tmp_path):
    """Every pair of odd pieces, apart and glued to a word: the rules must also hold next to each other."""
    pieces = """it's don't well-known U.S. Mr. I. 5 1,000 1/2 4:30 ( ) " ... ! AT&T no. $ % & / # * ' - , ; The a dog
        3pm 2.5 '90s""".split()
    captions = [f"a man {one} {two} a dog" for one in pieces for two in pieces]
    captions += [f"a man{one} {two}dog sits" for one in pieces for two in pieces]
    theirs = java_tokenize(captions, tmp_path)
    wrong = [(c, t, tokenize(c)) for c, t in zip(captions, theirs, strict=True) if tokenize(c) != t]
    assert len(wrong) <= len(captions) * 0.005, wrong[:20]


@needs_java
@pytest.mark.skipif(not FIXTURE, reason="CAPTION_METRIC_FIXTURE names no folder with the metric fixture")
def test_coco_captions_agree_with_java(tmp_path):
    entries = json.loads((Path(FIXTURE) / "mscoco_baselines_mscoco_in_domain_clipretrieval.json").read_text())
    captions = [" ".join(c.split()) for entry in entries for c in [*entry["captions"], entry["prediction"]]]
    theirs = java_tokenize(captions, tmp_path)
    wrong = [(c, t, tokenize(c)) for c, t in zip(captions, theirs, strict=True) if tokenize(c) != t]
    assert len(captions) > 25_000 and len(wrong) <= 3, wrong


@pytest.mark.parametrize("space", ["\r", "\r\n", "\n", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\t", "\xa0", "  "])
def test_whitespace_of_any_kind_only_separates(space):
    assert tokenize(f"{space}a dog{space}runs{space}.") == "a dog runs"


PIECES = "a a. a- a/ a_ a' a@ a+ A& 1, 1- 1/ n't <! http:// . https://a. www. (555) ' - ! &amp a.- !a a/-".split()
PIECES += [" ", "<a ", '<a b="', "\U0001f600"]


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_linear_in_the_length(piece):
    """Quadratic patterns take minutes on 100,000 characters; linear ones a fraction of a second."""
    caption = (piece * 100_000)[:100_000]
    started = time.perf_counter()
    tokenize(caption)
    assert time.perf_counter() - started < 5


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_gives_clean_tokens(text):
    tokens = tokenize(text)
    assert tokens == tokens.strip(" ") and "  " not in tokens
    assert not set(tokens.split(" ")) & PUNCTUATION
    assert not set(tokens) & set("\r\n\t\x0b\x0c\u2028\u2029")
    assert tokenize(" ".join(text.split())) == tokens


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([word for case in CASES for word in case.split()])))
def test_remembered_chunks_change_nothing(words):
    """Tokenising chunk by chunk is a shortcut: the whole text at once gives the same."""
    assert tokenize(" ".join(words)) == _tokenize_text(" ".join(words))
