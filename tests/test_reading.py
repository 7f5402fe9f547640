"""Nats of all references of each picture, with it and with another: held against one word after the other."""

from __future__ import annotations

import math
from random import Random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import FUSIONS, Characters, make_language, make_visual
from test_captioner import OPTIM, REGIMES, make_captioner
from test_evaluation import scenes

from src.build import Parts
from src.captioner import Captioner
from src.contracts import Batch, Example, Memory, Text, Visual
from src.data.order import circle, exchange
from src.decoding.greedy import Greedy
from src.fusion.base import Writer
from src.layers.cache import Cache
from src.loading.module import CaptionData
from src.loading.rows import Rows
from src.tasks import reading
from src.tasks.base import split_loss
from src.tasks.captioning import Captioning
from src.tasks.reading import Read, gap_per_token, nats_per_token, read_references

COUNTS = (2, 1, 5, 2, 9, 1, 2)  # references of each picture
LONGEST = 12  # tokens of a caption


class Few:
    """Pictures of noise, with captions of letters."""

    name, has_images, interleaved, task = "few", True, False, "caption"

    def __init__(self, counts=COUNTS):
        draw = Random(1)

        def caption() -> str:
            return "".join(draw.choices("abcde", k=draw.randrange(1, LONGEST + 3)))  # some are cut

        self._examples = [
            Example(f"p{i}", tuple(f"x{caption()}" for _ in range(count))) for i, count in enumerate(counts)
        ]

    def splits(self):
        return ("test",)

    def examples(self, split):
        return self._examples

    def pixels(self, example, size):
        own = torch.Generator().manual_seed(int(example.id[1:]))
        return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=own)


def parts_of(captioner, source, pack=True, batch_size=3, tag=False, seed=0) -> Parts:
    data = CaptionData(
        source,
        captioner.tokenizer,
        12,
        batch_size,
        captions_per_image=1,
        max_tokens=LONGEST,
        image_tag=tag,
        rows=Rows(pack, ends=False),
        seed=seed,
    )
    return Parts(captioner.eval(), data)


@torch.no_grad()
def word_after_word(captioner, source, picture: Example, caption: str, tag=False) -> tuple[float, int]:
    """Nats and targets of one caption, by the step of decoding, one token at a time."""
    memory = captioner.memory(Batch([picture.id], None, source.pixels(picture, 12)[None, None]))
    own = captioner.tokenizer
    ids = [own.bos, *own.encode([caption])[0], own.eos][:LONGEST]
    asked = 1
    if tag:
        ids[1:1], asked = own.image_tag, 1 + len(own.image_tag)
    cache, nats = Cache(1, len(ids) + captioner.fusion.extra_positions), 0.0
    for t in range(len(ids) - 1):
        phi = torch.tensor([[int(not tag or t > 0)]])
        text = Text(torch.tensor([[ids[t]]]), torch.tensor([[True]]), phi)
        logits_V = captioner.step(memory, text, cache).logits_BV[0]
        if t + 1 >= asked:
            nats -= float(logits_V.log_softmax(-1)[ids[t + 1]])
    return nats, len(ids) - asked


def strangers(examples, seed=0) -> dict[str, Example]:
    """Of each picture the one whose captions would be its own if the pictures were shuffled."""
    by_id = {example.id: example for example in examples}
    return {text: by_id[id] for id, text in exchange({id: id for id in by_id}, seed).items()}


@pytest.mark.parametrize("tag", [False, True])
@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name", FUSIONS)
def test_nats_are_those_of_one_word_after_the_other(name, pack, tag, monkeypatch):
    """All references, of pictures that have different numbers of them, in portions that cut through one's."""
    monkeypatch.setattr(reading, "TOGETHER", 4)
    monkeypatch.setattr(reading, "AT_ONCE", 7)
    source, captioner = Few(), make_captioner(name)
    found = read_references(parts_of(captioner, source, pack, tag=tag), "test", shuffled=True)
    assert list(found) == [example.id for example in source.examples("test")]
    other = strangers(source.examples("test"))
    for example in source.examples("test"):
        own = [word_after_word(captioner, source, example, caption, tag) for caption in example.captions]
        wrong = [word_after_word(captioner, source, other[example.id], text, tag)[0] for text in example.captions]
        one = found[example.id]
        assert one.tokens_read == sum(tokens for _, tokens in own)
        assert one.nats == pytest.approx(sum(nats for nats, _ in own), rel=1e-9)
        assert one.nats_shuffled == pytest.approx(sum(wrong), rel=1e-9)
        if captioner.fusion.sees:
            assert abs(one.nats - one.nats_shuffled) > 1e-6  # or nothing would have been told apart
        else:
            assert one.nats == one.nats_shuffled


def test_what_does_not_see_reads_nothing_twice(monkeypatch):
    for name, times in (("blind", 1), ("cross_attention", 2)):
        captioner, passes = make_captioner(name), []
        nats = captioner.nats
        monkeypatch.setattr(captioner, "nats", lambda *a, nats=nats, passes=passes: passes.append(1) or nats(*a))
        found = read_references(parts_of(captioner, Few((2, 2, 2)), batch_size=8), "test", shuffled=True)
        assert len(passes) == times
        assert (gap_per_token(list(found.values())) == 0) == (name == "blind")
        passes.clear()
        assert split_loss(parts_of(captioner, Few((2, 2, 2)), batch_size=8), "test") > 0 and len(passes) == 1


def test_every_picture_is_encoded_once_and_one_once_more():
    captioner = make_captioner("cross_attention")
    asked: list[int] = []
    captioner.vision.register_forward_pre_hook(lambda _, args: asked.append(len(args[0])))
    read_references(parts_of(captioner, Few()), "test", shuffled=True)
    assert sum(asked) == len(COUNTS) + 1


@pytest.mark.parametrize("name", ["cross_attention", "prefix", "vcgpt"])
def test_a_pictures_nats_do_not_depend_on_its_batch(name):
    """In single precision, as evaluations run."""
    source, captioner = Few(), make_captioner(name).float()
    captioner.vision = None
    whole = make_visual(len(COUNTS))
    table = SimpleNamespace(
        visual=lambda rows: Visual(whole.tokens_IMNC[rows], whole.pooled_IMC[rows], whole.levels_IMKNC[rows])
    )
    ways = []
    for batch_size, pack in ((1, True), (2, True), (7, True), (7, False)):
        parts = parts_of(captioner, source, pack, batch_size)
        parts.data.features = {"test": table}
        ways.append(read_references(parts, "test", shuffled=True))
    for other in ways[1:]:
        for id, one in ways[0].items():
            assert vars(other[id]) == pytest.approx(vars(one), rel=1e-5)


class Told(Few):
    """Captions of no pictures."""

    has_images = False


def test_text_without_pictures_is_read_whole():
    parts = parts_of(make_captioner("blind"), Told())
    seen = parts_of(make_captioner("blind"), Few())
    found = read_references(seen, "test").values()
    assert split_loss(parts, "test") == pytest.approx(nats_per_token(list(found)), rel=1e-12)
    assert all(one.nats_shuffled is None for one in found)


def test_every_picture_has_a_stranger():
    for n in (2, 3, 50):
        for seed in range(5):
            order = circle(n, seed)
            assert sorted(order) == list(range(n)) and order == circle(n, seed)
    assert circle(50, 0) != circle(50, 1)


def test_one_picture_has_no_gap():
    captioner = make_captioner("cross_attention")
    (one,) = read_references(parts_of(captioner, Few((3,))), "test", shuffled=True).values()
    assert one.nats > 0 and one.nats_shuffled is None and gap_per_token([one]) is None


class Planted(Writer):
    """Says the letter that a picture shows, and sees nothing else: logit 5 for it, 0 for all others."""

    def __init__(self, language):
        super().__init__(None, language)
        self.vocabulary = language.vocabulary

    def encode(self, lm, visual, aux=None):
        shown_I = visual.pooled_IC[:, 0].round().long()
        return Memory(logits=5.0 * F.one_hot(shown_I, self.vocabulary).double())

    def decode(self, lm, memory, text, cache=None, aux=None):
        rows = len(text.ids_BT) // len(memory["logits"])
        return memory["logits"].repeat_interleave(rows, 0)[:, None].expand(-1, text.ids_BT.shape[1], -1)

    def readout(self, lm, hidden_XE):
        return hidden_XE


class Letters(Few):
    """A picture of each letter, told by it three times and once."""

    def __init__(self):
        self._examples = [Example(f"p{i}", (3 * letter, letter)) for i, letter in enumerate("abcdef")]


def test_the_gap_is_what_a_captioner_sees():
    """By hand: of six targets four are letters, of which each loses what its logit was above the others."""
    language = make_language()
    how = {**REGIMES["frozen_both"], "train_vision": False}
    captioner = Captioner(None, Planted(language.spec), language, Characters(), how, OPTIM, Greedy(8), {})
    parts = parts_of(captioner, Letters())
    shown_I = torch.tensor([float(Characters().encode([letter])[0][0]) for letter in "abcdef"], dtype=torch.float64)
    parts.data.features = {
        "test": SimpleNamespace(
            visual=lambda rows: Visual(shown_I[rows][:, None, None, None], shown_I[rows][:, None, None])
        )
    }
    result = Captioning().score(parts.data, "test", {example.id: "a" for example in Letters().examples("test")})
    Captioning._add_reading(result, found := read_references(parts, "test", shuffled=True))
    normaliser = math.log(math.exp(5) + len(Characters()) - 1)
    assert [vars(one) for one in found.values()] == [
        pytest.approx({"nats": 6 * normaliser - 20, "nats_shuffled": 6 * normaliser, "tokens_read": 6})
    ] * 6
    assert result.scores["gap/loss"] == pytest.approx(20 / 6)
    assert result.scores["loss"] == pytest.approx(normaliser - 20 / 6) == split_loss(parts, "test")
    assert result.scores["perplexity"] == pytest.approx(math.exp(result.scores["loss"]))
    for row in result.rows:
        assert {name: row[name] for name in ("nats", "nats_shuffled", "tokens_read")} == vars(found[row["id"]])


def test_a_missing_gap_says_why():
    own = scenes(1)
    result = Captioning().score(own, "test", {e.id: e.captions[0] for e in own.examples("test")})
    Captioning._add_reading(result, {row["id"]: Read(8.0, None, 4) for row in result.rows})
    assert result.scores["loss"] == 2 and result.scores["gap/loss"] is None
    assert result.remarks["missing"]["gap/loss"] == "There is no other picture in the split."


def test_tokens_weigh_alike():
    found = [Read(6.0, 9.0, 3), Read(1.0, 3.0, 1)]
    assert nats_per_token(found) == 7 / 4 and gap_per_token(found) == 5 / 4
