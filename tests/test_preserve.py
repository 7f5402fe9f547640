"""What learning to see cost of what a language model knew: texts, questions, sums, and the command."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import run
from conftest import FUSIONS, Characters, language_of, make_fusion, make_visual, text_of
from PIL import Image
from test_captioner import make_captioner
from test_compare import edit
from test_gains import trained
from test_reading import Few, parts_of
from test_seeing import SMALL

from src.contracts import Batch, Example, Visual
from src.diagnostics.preserving import alone, asked, likelihoods, windows, with_pictures, without_picture
from src.diagnostics.preserving_arms import arms, frontier, over_seeds, table
from src.diagnostics.preserving_figures import panels
from src.diagnostics.preserving_run import asking, knowledge_part, prose_part, questions_part, shown_in
from src.diagnostics.preserving_summary import (
    crossed,
    is_right,
    knowledge_summary,
    prose_summary,
    questions_summary,
    scores,
    verdict,
    verdict_over_seeds,
)
from src.errors import UserError
from src.preserve import require_writer
from src.probes import files, prose, questions
from src.probes.files import SHA256, read_probe
from src.probes.questions import facts, groups, minimal_pairs

PAIRS = "a27c8013dc174a47a3bca3917a908f07244648671123fd5ee1f70db0fe1b41db"  # sha256 of all sentences
EXACT = {"rtol": 0, "atol": 1e-9}


# --------------------------------------------------------------------------------------------------------------------
# what is asked
# --------------------------------------------------------------------------------------------------------------------
def test_there_are_300_facts_with_five_endings_each():
    found = facts()
    assert len(found) == 300 == len({fact.sentences for fact in found})
    beginnings = set()
    for fact in found:
        assert len(set(fact.sentences)) == 5 and all(one.endswith(".") and one[0].isupper() for one in fact.sentences)
        words = [sentence.split() for sentence in fact.sentences]
        shared = next(i for i, column in enumerate(zip(*words, strict=False)) if len(set(column)) > 1)
        beginnings.add(" ".join(words[0][:shared]))
    assert len(beginnings) == 300


def test_there_are_100_pairs_of_each_of_12_phenomena_and_always_the_same():
    found = minimal_pairs()
    assert set(Counter(pair.kind for pair in found).values()) == {100} and len({pair.kind for pair in found}) == 12
    assert len({pair.sentences for pair in found}) == 1200
    for good, bad in (pair.sentences for pair in found):
        assert (
            good != bad
            and good[0].isupper()
            and good[-1] == bad[-1]
            and "{" not in good + bad
            and "|" not in good + bad
        )
    digest = hashlib.sha256("\n".join(s for pair in found for s in pair.sentences).encode()).hexdigest()
    assert digest == PAIRS
    by_kind = {pair.sentences[0]: pair.sentences[1] for pair in found}
    assert by_kind["The driver works before breakfast."] == "The driver work before breakfast."


def test_20_categories_have_10_properties_each():
    assert [len(group.names) for group in groups()] == [4, 4, 4, 5, 3]
    every = [category for group in groups() for category in group.names]
    assert len(set(every)) == 20
    for group in groups():
        assert len(group.sentences) == 10 and all(len(set(one)) == len(group.names) for one in group.sentences)
        for category, words in group.names.items():
            assert all(group.patterns[category].search(f"a {word} here") for word in words)
            told = " ".join(sentence.lower() for one in group.sentences for sentence in one)
            assert not group.patterns[category].search(told), f"a sentence names {category}"


@pytest.mark.parametrize("name", SHA256)
def test_an_edited_file_of_questions_is_refused(name, tmp_path, monkeypatch):
    for own in SHA256:
        shutil.copy(files.FOLDER / f"{own}.yaml", tmp_path)
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    assert read_probe(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(path.read_text().replace("a", "b", 1))
    with pytest.raises(UserError, match=f"{name}.yaml is not as it was"):
        read_probe(name)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}.yaml is not as it was"):
        read_probe(name)


# --------------------------------------------------------------------------------------------------------------------
# prose
# --------------------------------------------------------------------------------------------------------------------
PLAIN = (
    "Whoever reads this paragraph to its end has read more than twenty five words of plain prose, none of which is "
    "markup, and all of which belong to two sentences. This is the second one."
)


def test_plain_prose_is_taken_out_of_files():
    coded = PLAIN.replace("plain", "`plain`")
    shouted = PLAIN.upper().replace("W", "W", 1)
    others = ["Too short to be prose.", coded, PLAIN[:-1], PLAIN.lower(), shouted, f"{PLAIN[:-1]} f(x) = 1."]
    wrapped = PLAIN.replace("words of", "words\n    of")
    assert prose.prose("\n\n".join([*others, wrapped, PLAIN]), ".txt") == PLAIN
    source = f'"""Head.\n\n{PLAIN}\n"""\n\nx = """{PLAIN} In code."""\n\n\ndef f():\n    """{PLAIN} Of f."""\n'
    assert prose.prose(source, ".py") == f"{PLAIN}\n\n{PLAIN} Of f."


def test_texts_that_are_missing_or_differ_are_told(tmp_path, monkeypatch):
    (tmp_path / "LICENSE").write_text(PLAIN)
    (tmp_path / "other.txt").write_text(PLAIN + " More of it.")
    known = hashlib.sha256(PLAIN.encode()).hexdigest()

    def entry(package, file):
        return {"package": package, "file": file, "sha256": known}

    def distribution(package):
        if package == "gone":
            raise prose.PackageNotFoundError(package)
        return SimpleNamespace(locate_file=lambda file: tmp_path / file)

    listed = {"law": [entry("here", "LICENSE"), entry("gone", "LICENSE")], "guides": [entry("here", "other.txt")]}
    monkeypatch.setattr(prose, "read_probe", lambda name: listed)
    monkeypatch.setattr(prose, "distribution", distribution)
    found, told = prose.read_prose()
    assert [(one.domain, one.text, one.sha256) for one in found] == [("law", PLAIN, known)]
    assert len(told) == 2 and "package gone with that file is not installed" in told[0]
    assert "other.txt is left out of guides: its sha256 is not that of the pinned here" in told[1]
    listed["law"].pop(0)
    with pytest.raises(UserError, match="None of the 2 texts"):
        prose.read_prose()


def test_prose_of_this_machine_is_prose():
    try:
        found, _ = prose.read_prose()
    except UserError:
        pytest.skip("other versions than those of constraints.txt are installed")
    for one in found:
        assert len(one.text.split()) > 100 and "the " in one.text and ">>>" not in one.text


def test_windows_take_texts_in_turn_until_there_are_enough_tokens():
    tokenizer = Characters()
    found = windows(tokenizer, ["abcdefg", "xyz", "1234567890"], 14, 4)
    assert [place for place, _ in found] == [0, 1, 2, 0]
    assert [tokenizer.decode(ids) for _, ids in found] == ["abcd", "xyz", "1234", "efg"]
    assert sum(len(ids) for _, ids in windows(tokenizer, ["abcdefg", "xyz"], 99, 4)) == 10


# --------------------------------------------------------------------------------------------------------------------
# likelihoods
# --------------------------------------------------------------------------------------------------------------------
SENTENCES = (["a dog runs.", "a dog sits down."], ["the cat", "the sea", "the sky"], ["one", "two"])


def by_hand(captioner, memory, sentence: str, shared: int, tag=()) -> float:
    """log p of all tokens behind the first ``shared`` ones, all columns in one pass."""
    ids = [0, *tag, *Characters().encode([sentence])[0]]
    text = text_of(torch.tensor([ids]))
    text.phi_BT[0, 0] = not tag
    with torch.no_grad():
        hidden_1TE = captioner.fusion.decode(captioner.language, memory, text)
        logp_TV = captioner.fusion.readout(captioner.language, hidden_1TE)[0].log_softmax(-1)
    begin = len(tag) + shared
    return sum(float(logp_TV[t, ids[t + 1]]) for t in range(begin, len(ids) - 1))


@pytest.mark.parametrize("tagged", [False, True])
@pytest.mark.parametrize("name", FUSIONS)
def test_likelihoods_are_those_of_one_text_after_the_other(name, tagged):
    captioner, source = make_captioner(name).eval(), Few((1,) * 3)
    captioner.tagged = tagged
    images = torch.stack([source.pixels(e, 12) for e in source.examples("test")])[:, None]
    with torch.no_grad():
        memory = captioner.memory(Batch(["a", "b", "c"], None, images))
    questions = [asked(captioner.tokenizer, own, number) for number, own in enumerate(SENTENCES)]
    found = likelihoods(with_pictures(captioner, memory), questions, "")
    tag = captioner.tokenizer.image_tag if tagged and captioner.fusion.sees else ()
    for number, (own, question) in enumerate(zip(SENTENCES, questions, strict=True)):
        one = memory.select(torch.tensor([number]))
        expected = [by_hand(captioner, one, sentence, len(question.beginning), tag) for sentence in own]
        assert found[number] == pytest.approx(expected, rel=1e-9)


def test_beginnings_are_what_all_sentences_share_but_their_last_token():
    tokenizer = Characters()
    spelt = [tokenizer.decode(asked(tokenizer, own).beginning) for own in (*SENTENCES, ["ab", "abc"], ["alone"])]
    assert spelt == ["a dog ", "the ", "", "a", "alon"]


@pytest.mark.parametrize("nudged", [True, False])
@pytest.mark.parametrize("name", FUSIONS)
def test_without_a_picture_nothing_stands_there_and_what_preserves_is_the_language_model(name, nudged):
    captioner = make_captioner(name, nudged=nudged).eval()
    questions = [asked(captioner.tokenizer, own) for own in SENTENCES]
    plain = np.concatenate(likelihoods(alone(captioner.language), questions, ""))
    absent = np.concatenate(likelihoods(without_picture(captioner), questions, ""))
    assert np.isfinite(absent).all()
    if (
        captioner.fusion.extra_positions
        or not captioner.fusion.sees
        or (captioner.writer.preserves_lm_at_init and not nudged)
    ):
        assert absent == pytest.approx(plain, abs=1e-6)
    else:  # its own layers act as ever
        assert abs(absent - plain).max() > 1e-3


@pytest.mark.parametrize("name", FUSIONS)
def test_a_context_without_a_picture_does_not_depend_on_others(name):
    """Of two contexts one after the other, and of a batch of both."""
    language = language_of(name)
    fusion = make_fusion(name, language)
    if not fusion.sees:
        return
    full = make_visual(2)
    empty = Visual(*(x[:, :0] for x in (full.tokens_IMNC, full.pooled_IMC, full.levels_IMKNC)))
    text = text_of(torch.tensor([[0, 5, 9, 7], [0, 5, 9, 7]]))
    with torch.no_grad():
        hidden_BTE = fusion.decode(language, fusion.encode(language, empty), text)
    torch.testing.assert_close(hidden_BTE[0], hidden_BTE[1], **EXACT)


# --------------------------------------------------------------------------------------------------------------------
# a run's model
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small(monkeypatch):
    """Few questions and texts, which a tiny model knows the answers of after a moment of training."""
    from src.diagnostics import preserving_run

    kinds = ("red", "blue")
    asked_ = [
        questions.Question(kind, (f"{kind} {a}{b}.", f"{kind} {b}{a}.")) for kind in kinds for a, b in ("xy", "pq")
    ]
    texts = [prose.Prose(d, d, "", f"{d} is told here, over and over again. " * 3) for d in ("law", "lore")]
    monkeypatch.setattr(preserving_run, "facts", lambda: asked_)
    monkeypatch.setattr(preserving_run, "minimal_pairs", lambda: asked_)
    monkeypatch.setattr(preserving_run, "read_prose", lambda: (texts, ["one was left out."]))
    return asked_, texts


def taught(language, sentences: list[str], steps: int = 120):
    """The language model after it has read these sentences."""
    language.train()
    optimiser = torch.optim.AdamW(language.parameters(), 3e-3)
    ids = Characters().encode(sentences)
    for step in range(steps):
        own = [0, *ids[step % len(ids)]][: language.spec.context]
        row = torch.tensor([own])
        logits_TV = language.unembed(language.hidden(text_of(row)))[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits_TV, row[0, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return language.eval()


def told_of(captioner, first, tokens=200):
    data = parts_of(captioner, Few((1,) * 6)).data
    own = asking(captioner, first, data, "test", [0, 1, 2], {})
    told = {"prose": prose_part(own, tokens), **{name: questions_part(own, name) for name in ("cloze", "grammar")}}
    return {**told, "knowledge": knowledge_part(captioner, data, "test", 4)}


def test_planted_forgetting_is_told(small):
    """Scrambled weights of a language model that knew all answers."""
    asked_, texts = small
    captioner = make_captioner("cross_attention", nudged=False)
    taught(captioner.language, [q.sentences[0] for q in asked_] + [text.text[:60] for text in texts])
    first = copy.deepcopy(captioner.language)
    with torch.no_grad():
        for parameter in captioner.language.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    told = told_of(captioner, first)
    for way in ("weights", "absent", "irrelevant"):
        assert told["prose"]["forgetting"][way]["low"] > 0.1
        assert told["prose"]["by_domain"]["lore"]["forgetting"][way]["nats"] > 0
    assert told["cloze"]["right"]["start"] == 4 > told["cloze"]["right"]["absent"]
    change = told["cloze"]["change"]["absent"]
    assert change["questions"] == -change["lost"] < 0 and change["gained"] == 0
    assert "forgets (weights)" in verdict(told)


@pytest.mark.parametrize("name", FUSIONS)
def test_what_is_frozen_has_forgotten_exactly_nothing(name, small):
    captioner = make_captioner(name, "frozen_lm")
    told = told_of(captioner, captioner.language)
    lost = told["prose"]["forgetting"]
    assert lost["weights"] == {"nats": 0.0, "low": 0.0, "high": 0.0} and told["prose"]["left_out"] == [
        "one was left out."
    ]
    assert (lost["irrelevant"]["nats"] != 0) == captioner.fusion.sees
    if not captioner.fusion.sees or captioner.fusion.extra_positions:
        assert lost["absent"]["nats"] == pytest.approx(0, abs=1e-9)
    assert "unchanged (weights)" in verdict(told)
    copied = told_of(captioner, copy.deepcopy(captioner.language))  # not the same one: read on its own
    assert copied["prose"]["forgetting"]["weights"]["nats"] == 0
    assert len(told["prose"]["items"]) == told["prose"]["windows"] and told["prose"]["tokens"] == 200


def test_of_a_random_start_nothing_can_be_forgotten_and_the_rest_is_told(small):
    told = told_of(make_captioner("cross_attention"), None)
    assert told["prose"]["forgetting"] is None and told["cloze"]["change"] is None
    assert "start" not in told["prose"]["nats"] and told["grammar"]["right"]["absent"] in range(5)
    found = scores(told)
    assert found["preserve/weights"] is None and found["preserve/cloze"] is None and found["preserve/nats"] > 0
    assert verdict(told).startswith("began with random weights")
    assert len(panels({**told, "knowledge": {"left_out": "none"}}).axes) == 3


def test_a_start_is_asked_once_in_one_process(small, monkeypatch):
    from src.diagnostics import preserving_run

    titles: list[str] = []
    original = preserving_run.likelihoods
    monkeypatch.setattr(preserving_run, "likelihoods", lambda w, q, t: titles.append(t) or original(w, q, t))
    captioner, known = make_captioner("cross_attention"), {}
    data = parts_of(captioner, Few((1,) * 6)).data
    first, other = (copy.deepcopy(captioner.language) for _ in range(2))
    with torch.no_grad():
        next(captioner.language.parameters()).add_(0.1)
    rows = []
    for start in (first, other):
        own = asking(captioner, start, data, "test", [0], known)
        rows.append([prose_part(own, 200), questions_part(own, "cloze")])
    assert sum(title.endswith(", start") for title in titles) == 2 and rows[0] == rows[1]


# --------------------------------------------------------------------------------------------------------------------
# sums
# --------------------------------------------------------------------------------------------------------------------
def test_sums_of_prose_and_answers():
    nats = {
        "start": [2.0, 4.0, 6.0],
        "weights": [2.0, 5.0, 6.0],
        "absent": [2.0, 4.0, 6.0],
        "irrelevant": [4.0, 8.0, 9.0],
    }
    nats = {way: np.array(own) for way, own in nats.items()}
    told = prose_summary(nats, np.array([2, 4, 4]), ["law", "law", "lore"])
    assert told["nats"]["start"] == pytest.approx(1.2) and told["forgetting"]["weights"]["nats"] == pytest.approx(0.1)
    assert told["by_domain"]["lore"]["forgetting"]["irrelevant"]["nats"] == pytest.approx(0.75)
    assert told["by_domain"]["law"]["tokens"] == 6 and told["forgetting"]["absent"] == {
        "nats": 0.0,
        "low": 0.0,
        "high": 0.0,
    }
    right = {"start": np.array([1, 1, 0, 0, 1], bool), "absent": np.array([1, 0, 1, 1, 1], bool)}
    found = questions_summary(right, ["a", "a", "b", "b", "b"])
    change = found["change"]["absent"]
    assert (change["gained"], change["lost"], round(change["questions"], 9)) == (2, 1, 1)
    assert change["low"] < 1 < change["high"] and found["by_kind"]["b"] == {"n": 3, "start": 1, "absent": 3}
    assert (
        is_right(np.array([-1.0, -2.0])) and not is_right(np.array([-1.0, -1.0])) and not is_right(np.array([-3, -1.0]))
    )


def planted_pictures(effect: float, prior: float, seed: int = 0):
    """log p of four pictures each of three categories, with noise: what is right is likelier by ``effect``, and every
    text has a ``prior`` of its own."""
    draw = np.random.default_rng(seed)
    own_P = np.repeat(np.arange(3), 4)
    logp_PC = draw.normal(0, 0.05, (12, 3)) + prior * draw.normal(0, 1, 3)
    logp_PC[np.arange(12), own_P] += effect
    return logp_PC, own_P


@pytest.mark.parametrize("prior", [0.0, 20.0])
@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_knowledge_recovers_an_effect_and_cancels_what_texts_are_worth(effect, prior):
    logp_PC, own_P = planted_pictures(effect, prior)
    names = ["dog", "horse", "cow"]
    told = knowledge_summary({"animals": (logp_PC, names, [names[c] for c in own_P])})
    assert told["nats"] == pytest.approx(2 * effect, abs=0.1) and told["low"] < told["nats"] < told["high"]
    assert (told["low"] > 0) == (effect > 0) and told["high"] - told["low"] < 0.2
    mean = np.stack([logp_PC[own_P == c].mean(0) for c in range(3)])
    by_hand = [mean[a, a] - mean[a, b] - mean[b, a] + mean[b, b] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert list(told["pairs"].values()) == pytest.approx(by_hand) and told["nats"] == pytest.approx(np.mean(by_hand))


def test_categories_count_alike_whatever_their_pictures():
    logp_PC, own_P = planted_pictures(0.5, 3.0)
    kept = [0, 1, 2, 3, 4, 5, 8, 9, 10]
    part_P, weight_P = crossed(logp_PC[kept], own_P[kept])
    assert weight_P.tolist() == [1 / 4] * 4 + [1 / 2] * 2 + [1 / 3] * 3
    mean = np.stack([logp_PC[kept][own_P[kept] == c].mean(0) for c in range(3)])
    by_hand = np.mean([mean[a, a] - mean[a, b] - mean[b, a] + mean[b, b] for a, b in ((0, 1), (0, 2), (1, 2))])
    assert (part_P * weight_P).sum() / weight_P.sum() == pytest.approx(by_hand)


class Told(Few):
    """Pictures that captions say something of."""

    def __init__(self, captions: dict[str, tuple[str, ...]]):
        self._examples = [Example(f"p{i}", own) for i, own in enumerate(captions.values())]


def test_pictures_of_a_category_are_those_that_three_captions_name_and_that_show_no_other():
    said = {
        "dog": ("A Dog runs", "the dog", "two dogs", "an animal"),
        "too few": ("a dog", "the dog", "an animal"),
        "two": ("a dog", "the dog", "dogs on a beach"),
        "words in words": ("carpet", "cards", "scar"),
        "horse": ("a horse", "horses", "a pony"),
        "again": ("dog", "dog", "dog"),
    }
    data = parts_of(make_captioner("cross_attention"), Told(said)).data
    shown = shown_in(data, "test", groups(), 4)
    assert {category: places for category, places in shown.items() if places} == {"dog": [0, 5], "horse": [4]}
    assert shown_in(data, "test", groups(), 1)["dog"] == [0]


def test_knowledge_is_left_out_where_pictures_show_too_little_and_0_for_who_does_not_see():
    told = knowledge_part(make_captioner("cross_attention"), parts_of(make_captioner(), Few((1,) * 6)).data, "test", 4)
    assert told["left_out"].startswith("0 of the 20 categories") and told["items"] == []
    source = Told({f"{a}{i}": (a,) * 3 for a in ("dog", "horse", "cow") for i in range(3)})
    blind = make_captioner("blind")
    told = knowledge_part(blind, parts_of(blind, source).data, "test", 4)
    assert told["nats"] == told["low"] == told["high"] == 0 and told["pictures"] == 9


def test_verdicts_follow_from_intervals_and_seeds():
    assert verdict_over_seeds([0.0, 0.0, 0.0]) == "unchanged" and verdict_over_seeds([0.3]) == "open"
    assert verdict_over_seeds([0.3, 0.31, 0.29]) == "hint: forgets"
    assert verdict_over_seeds([0.3, 0.31, 0.29, 0.3, 0.32]) == "forgets"
    assert verdict_over_seeds([-0.3, -0.31, -0.29, -0.3, -0.32]) == "gains"
    assert verdict_over_seeds([-0.3, 0.31, -0.29, 0.3, 0.32]) == "open"


def made_row(label: str, gap: float, lost: float, seeds: int = 3) -> dict:
    def spread(value: float) -> dict:
        return over_seeds([value + 0.01 * seed for seed in range(seeds)])

    columns = dict.fromkeys(("gain/loss", "preserve/cloze", "preserve/grammar", "preserve/knowledge"))
    columns |= {"gap/loss": spread(gap), **{f"preserve/{w}": spread(lost) for w in ("weights", "absent", "irrelevant")}}
    return {"label": label, "seeds": list(range(seeds)), "columns": columns, "verdict": "open"}


def test_arms_are_drawn_over_what_they_see():
    rows = [made_row("sees more", 0.4, 0.3), made_row("forgets less", 0.2, 0.1), made_row("worse", 0.3, 0.5, seeds=1)]
    figure = frontier(rows)
    edge = figure.axes[0].get_lines()
    front = next(line for line in edge if line.get_linewidth() == 4)
    assert front.get_xdata() == pytest.approx([0.21, 0.41]) and front.get_ydata() == pytest.approx([0.11, 0.31])
    assert frontier(rows[:1]) is None
    lines = table(rows).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| sees more | 3 | - | 0.4100 [+0.3852, +0.4348] |")


def test_runs_that_differ_in_the_seed_are_one_arm_which_gains_on_the_blind_one(tmp_path):
    found = {}
    for seed in range(2):
        for name, loss in (("blind", 3.0), ("srau", 2.5 + 0.1 * seed)):
            own = trained(tmp_path, name, seed, 0.0 if name == "blind" else 0.3)
            seen = {"loss": loss, "gap/loss": 0.3}
            edit(own / "metrics.json", lambda content, seen=seen: content["scores"].update(seen))
            known = [f"preserve/{what}" for what in ("weights", "absent", "irrelevant", "cloze", "grammar")]
            found[own] = {"scores": {**dict.fromkeys(known, 0.1 * (seed + 1)), "preserve/knowledge": None}}
    (tmp_path / "alone").mkdir()
    found[tmp_path / "alone"] = {"scores": dict.fromkeys(known)}
    rows = {row["label"]: row for row in arms(found)}
    assert set(rows) == {"blind", "srau", "alone"} and rows["srau"]["seeds"] == [0, 1]
    columns = rows["srau"]["columns"]
    assert columns["gain/loss"]["per_seed"] == pytest.approx([0.5, 0.4]) and columns["gap/loss"]["mean"] == 0.3
    assert columns["preserve/weights"]["mean"] == pytest.approx(0.15) and columns["preserve/knowledge"] is None
    assert rows["blind"]["columns"]["gain/loss"]["mean"] == 0
    assert rows["alone"]["verdict"].startswith("began with random weights")
    assert len(table(list(rows.values())).splitlines()) == 5


# --------------------------------------------------------------------------------------------------------------------
# the command
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A blind run that taught a language model, and two that began from it."""
    folder = tmp_path_factory.mktemp("preserve")
    run("src.train", *SMALL, "fusion=blind", f"hydra.run.dir='{folder}/blind'")
    for name, words in (("tuned", ("regime=finetune_lm",)), ("frozen", ("regime=frozen_lm",))):
        run("src.train", *SMALL, *words, f"language.weights='{folder}/blind'", f"hydra.run.dir='{folder}/{name}'")
    return folder


@pytest.mark.slow
def test_the_command_writes_numbers_items_and_figures(runs):
    answer = run("src.preserve", f"run=[{runs}/tuned,{runs}/frozen]", "tokens=300", "pictures=2")
    assert f"{runs}/tuned against the language model of {runs}/blind" in answer.stdout
    for name in ("tuned", "frozen"):
        told = json.loads((runs / name / "preserve" / "preserve.json").read_text())
        items = [json.loads(line) for line in (runs / name / "preserve" / "items.jsonl").read_text().splitlines()]
        assert Counter(item["probe"] for item in items)["grammar"] == 1200
        assert told["probes"] == SHA256 and told["cloze"]["n"] == 300 and "left_out" in told["knowledge"]
        nats = sum(item["absent"] for item in items if item["probe"] == "prose")
        assert told["prose"]["nats"]["absent"] == pytest.approx(nats / told["prose"]["tokens"])
        assert (told["scores"]["preserve/weights"] == 0) == (name == "frozen")
        assert Image.open(runs / name / "preserve" / "preserve.png").width > 900
    rows = json.loads((runs / "preserve.json").read_text())
    assert len(rows) == 2 and all(row["columns"]["gap/loss"] for row in rows)
    assert (runs / "preserve.md").read_text().count("\n") == 4 and Image.open(runs / "preserve.png").width > 900


def test_what_began_at_random_is_told_as_that(runs):
    answer = run("src.preserve", f"run={runs}/blind", "tokens=300")
    assert "against a random start" in answer.stdout and "nothing to forget" in answer.stdout
    found = json.loads((runs / "blind" / "preserve" / "preserve.json").read_text())
    nats = found["prose"]["nats"]
    assert nats["absent"] == nats["irrelevant"] == nats["weights"] > 0 and found["start"]["sha256"] is None


@pytest.mark.parametrize(
    ("interleaved", "fusion", "sentence"),
    [(True, None, "learnt from documents"), (False, object(), "does not write, so that nothing can be asked of it")],
)
def test_documents_and_who_does_not_write_are_refused(interleaved, fusion, sentence):
    source, captioner = SimpleNamespace(interleaved=interleaved), SimpleNamespace(fusion=fusion)
    with pytest.raises(UserError, match=f"runs/a {sentence}"):
        require_writer(Path("runs/a"), SimpleNamespace(source=source, captioner=captioner))


@pytest.mark.parametrize(
    ("which", "words", "sentence"),
    [
        ("tuned", ("tokens=10",), "tokens must be a whole number of at least 300; got 10."),
        ("tuned", ("split=exam",), "split=exam does not exist"),
        ("nowhere", (), "nowhere"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(runs, which, words, sentence):
    answer = run("src.preserve", f"run={runs}/{which}", *words, ok=False)
    assert sentence in answer.stderr and len(answer.stderr.strip().splitlines()) == 1
