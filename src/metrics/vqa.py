"""Accuracy of answers to questions about pictures (Antol et al. 2015, VQA, arXiv 1505.00468, section 4).

    accuracy = mean over the annotators i of min(1, m_i / 3)      m_i: how many of the others said the same

which is min(1, .3 m) of ten annotators, m of whom did. One annotator alone is right or wrong. Where annotators differ,
answers are compared in the form that VQA's own evaluation gives them: no punctuation inside, no articles, numbers up to
ten as digits, contractions with their apostrophes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0", "zero": "0", **{word: str(number) for number, word in enumerate(NUMBERS, 1)}}
ARTICLES = frozenset(("a", "an", "the"))
MARKS = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've "
    "somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd "
    "something'd've something'll that'd that'd've that's there'd there'd've there're there's they'd they'd've "
    "they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all "
    "y'all'll you'd you'd've you'll you're you've"
).split()


def _without_apostrophes() -> dict[str, str]:
    """Contractions by every way to spell them with an apostrophe less, or without any."""
    found = {}
    for word in CONTRACTIONS:
        parts = word.split("'")
        found["".join(parts)] = word
        for i in range(1, len(parts) if len(parts) > 2 else 1):
            found["'".join(parts[:i]) + "'".join(parts[i:])] = word
    return found


SPELT = _without_apostrophes()


def normalise_answer(answer: str) -> str:
    """The form in which answers are compared."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    numbers_apart = re.search(r"\d,\d", answer) is not None
    bare = answer
    for mark in MARKS:  # between words a mark is a space, at the end of one it is nothing
        at_an_end = f"{mark} " in answer or f" {mark}" in answer
        bare = bare.replace(mark, "" if at_an_end or numbers_apart else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = (DIGITS.get(word, word) for word in bare.lower().split())
    return " ".join(SPELT.get(word, word) for word in words if word not in ARTICLES)


def accuracy(said: str, answers: Sequence[str]) -> float:
    """How right ``said`` is by the ``answers`` of all who were asked, from 0 to 1. Raises ValueError without any."""
    if not answers:
        raise ValueError("There is no answer to compare with.")
    found, known = said.strip().lower(), [answer.strip().lower() for answer in answers]
    if len(set(known)) > 1:
        found, known = normalise_answer(found), [normalise_answer(answer) for answer in known]
    right = [found == answer for answer in known]
    if len(known) == 1:
        return float(right[0])
    return sum(min(1.0, (sum(right) - own) / 3) for own in right) / len(right)


def answer_rows(said: Mapping[str, str], answers: Mapping[str, Sequence[str]], kinds: Mapping[str, str]) -> list[dict]:
    """For each answer its accuracy, and that among the questions of its kind: None at the others."""
    names = sorted(set(kinds.values()))
    rows = []
    for id, answer in said.items():
        value = accuracy(answer, answers[id])
        rows.append({"accuracy": value, **{f"accuracy/{k}": value if k == kinds[id] else None for k in names if k}})
    return rows
