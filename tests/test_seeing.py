"""Where each word sees the picture: sums, sites, what is left when they are cut, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import run
from conftest import (
    FUSIONS,
    IN_BLOCKS,
    Characters,
    make_fusion,
    make_language,
    make_text,
    make_visual,
    make_words,
    nudge,
)
from families import make_family
from omegaconf import OmegaConf
from PIL import Image
from test_captioner import make_captioner
from test_reading import Few, parts_of
from transformers import LlamaConfig, LlamaForCausalLM

from src.contracts import Batch
from src.data.scenes import Scenes, draw
from src.diagnostics import seeing_figures as figures
from src.diagnostics.patching import minimal_pair, patch
from src.diagnostics.seeing import Sight, Word, nats, see, view_of
from src.diagnostics.seeing_summary import half_depth, ratio, summary
from src.diagnostics.sites import Site, depths, watched
from src.errors import UserError
from src.fusion.cross_attention import PlainCrossAttention
from src.language.blocks import Parallel, Serial
from src.language.llama import Llama
from src.scenes.words import word_kind
from src.scenes.world import Scene
from src.seeing import chosen, measured, story
from src.tasks.reading import gap_per_token, read_references
from src.text.word_classes import word_class

SIGHTED = [name for name in FUSIONS if name != "blind"]
BLOCKS = 3  # of the language model


def make_llama():
    """Rotary positions, key-value heads that serve two query heads each."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=131, num_hidden_layers=BLOCKS, max_position_embeddings=64, **sizes)
    return nudge(Llama(LlamaForCausalLM(config), Characters()).double()).eval()


def make_gpt2():
    return make_language(layers=BLOCKS)


def make_neox():
    return make_family("neox")


def make_gemma3():
    """Two kinds of angles."""
    return make_family("gemma3")


VARIANTS = [  # of mechanisms, their options and the language model
    *[(name, (), make_gpt2) for name in SIGHTED if name in IN_BLOCKS],
    *[(name, (), make_llama) for name in SIGHTED if name in IN_BLOCKS],
    *[("show_attend_tell", (f"fusion.query={query}",), make_words) for query in ("previous", "current")],
    *[(name, (), make_neox) for name in ("cross_attention", "srau", "flamingo", "prefix")],
    *[(name, (), make_gemma3) for name in ("cross_attention", "prefix")],
    ("clipcap", ("fusion.mapper=transformer",), make_gpt2),
    ("clipcap", ("fusion.prefix_length=1",), make_gpt2),
    ("prefix", ("fusion.open=true",), make_gpt2),
    ("cross_attention", ("fusion.every=2",), make_gpt2),
    ("srau_paper", ("fusion.gate=none",), make_gpt2),
    ("flamingo", ("fusion.every=2",), make_gpt2),
]
PREFIXES = {name: {"block"} for name in ("frozen", "prefix", "simvlm")}
DOORS = {"clipcap": {"input", "block"}, **PREFIXES}  # of all others: crossings
STEPS = 60  # until a tiny model knows a few captions
EXACT = {"rtol": 0, "atol": 1e-10}


# --------------------------------------------------------------------------------------------------------------------
# sites
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *(o.split(".")[-1] for o in v[1]), v[2].__name__]))
def decoded(request):
    """Name of a mechanism; and of two texts, one of them short, with each of two pairs of pictures: what is decoded,
    (2, 2, T, D), and the sites, where some are changed."""
    name, overrides, make = request.param
    language = make()
    fusion = make_fusion(name, language, *overrides)
    text, memory = make_text(4, 7), fusion.encode(language, make_visual(4))
    text.ids_BT[2:] = text.ids_BT[:2].clone()
    text.valid_BT[::2, -2:] = False

    def decode(changed=(), swap=False, first=None):
        with torch.no_grad(), watched(fusion, language, changed, swap, first) as lm:
            hidden_BTE = fusion.decode(lm.language, memory, text)
        decode.passed = lm.passed
        return (hidden_BTE * text.valid_BT[:, :, None]).unflatten(0, (2, 2)), lm.sites

    with torch.no_grad():
        plain_BTE = fusion.decode(language, memory, text) * text.valid_BT[:, :, None]
    return name, decode, plain_BTE.unflatten(0, (2, 2))


def test_watching_changes_nothing_and_finds_where_pictures_are_read(decoded):
    name, decode, plain = decoded
    found, sites = decode()
    torch.testing.assert_close(found, plain, **EXACT)
    assert [site.order for site in sites] == list(range(len(sites)))
    assert {site.kind for site in sites} == DOORS.get(name, {"crossing"})
    deep = depths(sites, BLOCKS)
    assert deep == sorted(deep) and 0 <= deep[0] <= deep[-1] <= 1


def test_every_site_matters_and_without_any_a_model_is_blind(decoded):
    _, decode, plain = decoded
    _, sites = decode()
    for site in sites:
        cut, again = decode([site])
        assert again == sites and (cut - plain).abs().max() > 1e-3
        only = len(sites) == 1 or site.kind == "input"  # where a prefix of one vector comes in, all of it does
        assert only or (cut[0] - cut[1]).abs().max() > 1e-3
    blind, _ = decode(sites)
    torch.testing.assert_close(blind[0], blind[1], **EXACT)
    assert (plain[0] - plain[1]).abs().max() > 1e-2


def test_with_all_sites_swapped_a_picture_is_the_other(decoded):
    _, decode, plain = decoded
    _, sites = decode()
    torch.testing.assert_close(decode(sites, swap=True)[0][0], plain[1], **EXACT)
    for site in sites:
        swapped, again = decode([site], swap=True)
        assert again == sites and (swapped[0] - plain[0]).abs().max() > 1e-3


def alterations(sites):
    return [*([site] for site in sites), *(sites[i + 1 :] for i in range(len(sites) - 1)), sites]


def test_a_cut_pass_computes_only_words_behind_the_cut_where_it_knows_the_first(decoded, monkeypatch):
    _, decode, plain = decoded
    columns = []
    for way in (Serial, Parallel):
        count = lambda self, h, feed=way.feed: columns.append(h.shape[1]) or feed(self, h)  # noqa: E731
        monkeypatch.setattr(way, "feed", count)
    _, sites = decode()
    first, words = decode.passed, plain.shape[2]
    for cut in alterations(sites):
        expected, _ = decode(cut)
        columns.clear()
        found, again = decode(cut, first=first)
        torch.testing.assert_close(found, expected, **EXACT)
        assert again == sites
        assert sum(columns) <= words * max(0, BLOCKS + 1 - max(cut[0].place, 1))


class InFrontAndBetween(PlainCrossAttention):
    """A prefix that itself reads the picture in every block: not even it is what it was behind a cut."""

    def encode(self, lm, visual, aux=None):
        memory = super().encode(lm, visual, aux)
        memory["prefix"] = F.pad(visual.tokens_INC, (0, lm.spec.width - visual.tokens_INC.shape[-1]))
        return memory

    def decode(self, lm, memory, text, cache=None, aux=None):
        x_BTD, N = lm.embed(text.ids_BT), memory["prefix"].shape[1]
        h_BSD, walk = lm.begin(torch.cat([memory["prefix"], x_BTD], 1), text.behind(N))
        for l, block in enumerate(lm.blocks()):
            h_BSD = block.attend(h_BSD, walk)
            h_BSD = block.feed(h_BSD + self.cross[l](self.norms[l](h_BSD), memory[f"k{l}"], memory[f"v{l}"]))
        return lm.final_norm(h_BSD)[:, N:]


@pytest.mark.parametrize("make", [make_gpt2, make_llama])
def test_what_a_cut_reaches_is_computed_whatever_stands_before_the_text(make):
    language = make()
    fusion = make_fusion("cross_attention", language)
    fusion.__class__ = InFrontAndBetween
    text, memory = make_text(2, 5), fusion.encode(language, make_visual(2))

    def decode(changed=(), first=None):
        with torch.no_grad(), watched(fusion, language, changed, first=first) as lm:
            return fusion.decode(lm.language, memory, text), lm

    _, watch = decode()
    assert {site.kind for site in watch.sites} == {"block", "crossing"}
    for cut in alterations(watch.sites):
        torch.testing.assert_close(decode(cut, watch.passed)[0], decode(cut)[0], **EXACT)


def test_whoever_does_not_see_has_no_site():
    language = make_language()
    fusion = make_fusion("blind", language)
    with watched(fusion, language) as lm:
        fusion.decode(lm.language, fusion.encode(language, make_visual(2)), make_text(2, 5))
    assert lm.sites == []


def test_what_reads_after_the_last_block_lies_deeper():
    language = make_language(layers=BLOCKS)
    fusion = make_fusion("vcgpt", language)
    memory = fusion.encode(language, make_visual(2))
    with watched(fusion, language) as lm:
        fusion.decode(lm.language, memory, make_text(2, 5))
    assert depths(lm.sites, BLOCKS) == pytest.approx([3 / 5, 4 / 5, 1])


# --------------------------------------------------------------------------------------------------------------------
# words
# --------------------------------------------------------------------------------------------------------------------
def looked(captioner, source, shuffled=1, tag=False):
    """The data, and what words of the first captions see in it."""
    data = parts_of(captioner, source, tag=tag).data
    return data, see(captioner, data, "test", shuffled, word_class)


@pytest.mark.parametrize("name", SIGHTED)
def test_all_words_together_are_the_gap_of_the_loss(name):
    captioner, source = make_captioner(name), Few((1,) * 8)
    _, sight = looked(captioner, source)
    found = list(read_references(parts_of(captioner, source), "test", shuffled=True).values())
    tokens = sum(one.tokens_read for one in found)
    assert sight.tokens_N.tolist() == [one.tokens_read for one in found]
    assert sum(word.seen for word in sight.words) == pytest.approx(gap_per_token(found) * tokens, rel=1e-9)
    assert sight.seen_N == pytest.approx([one.nats_shuffled - one.nats for one in found], rel=1e-9)
    assert summary(sight)["nats_per_token"]["seen"] == pytest.approx(gap_per_token(found), rel=1e-9)
    # every mechanism is blind once all of its sites are cut, and itself again with none of them cut
    assert sight.complete and sight.sites and max(abs(sight.seen_N)) > 1e-3
    assert sight.upto_LN[-1] == pytest.approx(sight.seen_N)
    assert (abs(sight.cut_LN - sight.seen_N).max(1) > 1e-6).all()


def test_words_are_spelt_by_their_pieces_and_the_image_tag_is_none():
    source = Few((1,) * 5)
    for tag in (False, True):
        data, sight = looked(make_captioner("cross_attention"), source, tag=tag)
        for id, (caption,) in data.references("test").items():
            words = [word for word in sight.words if word.id == id]
            whole = len(caption) <= 10 and not tag
            assert caption.startswith(words[0].word) and (words[0].word == caption or not whole)
            assert [word.position for word in words] == list(range(len(words)))
            assert words[-1].word == "(end)" or not whole


def test_several_others_are_the_mean_of_them():
    captioner, source = make_captioner("cross_attention"), Few((1,) * 5)
    _, one = looked(captioner, source)
    _, all_others = looked(captioner, source, shuffled=4)
    images = torch.stack([source.pixels(e, 12) for e in source.examples("test")])[:, None]
    data = parts_of(captioner, source).data
    logp = []  # of caption i with picture j
    for caption in data.lines("test").values():
        memory = captioner.memory(Batch([str(i) for i in range(5)], None, images))
        own = nats(captioner, memory, view_of(data, caption * 5), ())[0]
        logp.append(-own.view(5, -1).sum(1).detach())
    logp_NN = torch.stack(logp)
    mean_N = (logp_NN.sum(1) - logp_NN.diagonal()) / 4
    assert all_others.seen_N == pytest.approx((logp_NN.diagonal() - mean_N).numpy(), rel=1e-9)
    assert abs(one.seen_N - all_others.seen_N).max() > 1e-3


class Aside(PlainCrossAttention):
    """Reads the picture by a door of its own as well."""

    def encode(self, lm, visual, aux=None):
        memory = super().encode(lm, visual, aux)
        memory["aside"] = visual.tokens_INC.mean((1, 2))
        return memory

    def decode(self, lm, memory, text, cache=None, aux=None):
        hidden_BTD = super().decode(lm, memory, text, cache, aux)
        gain_B = memory["aside"].repeat_interleave(len(hidden_BTD) // len(memory["aside"]))
        return hidden_BTD * (1 + gain_B[:, None, None])


def test_a_reading_that_was_not_found_is_told_and_nothing_made_of_the_rest():
    captioner = make_captioner("cross_attention")
    captioner.fusion.__class__ = Aside
    _, sight = looked(captioner, Few((1,) * 6))
    told = summary(sight)
    assert not told["all_sites_found"] and told["sites"] == [] and told["half_entered_at"] is None


def test_one_that_learnt_to_look_away_is_told():
    captioner = make_captioner("cross_attention")
    for cross in captioner.fusion.cross:
        torch.nn.init.zeros_(cross.out.weight)
    _, sight = looked(captioner, Few((1,) * 6))
    told = summary(sight)
    assert told["blind"] and told["nats_per_token"]["seen"] == 0
    assert all(site["lost"] is None and site["entered"] is None for site in told["sites"])


# --------------------------------------------------------------------------------------------------------------------
# sums
# --------------------------------------------------------------------------------------------------------------------
def made_sight() -> Sight:
    """Two captions of two words, four nats in all; half of them have entered between depth 0.5 and 1."""
    words = [
        Word(id, 0, k, word, word_kind(word), seen)
        for id, spoken in (("a", (("red", 2.0), ("star", 0.5))), ("b", (("red", 1.0), ("a", 0.5))))
        for k, (word, seen) in enumerate(spoken)
    ]
    sites = [Site(0, "crossing", 1), Site(1, "crossing", 2)]
    cut_LN, upto_LN = np.array([[2.0, 1.0], [1.0, 0.0]]), np.array([[0.5, 0.5], [2.5, 1.5]])
    return Sight(words, np.array([3, 2]), sites, [0.5, 1.0], cut_LN, upto_LN, True)


def test_sums_by_kind_and_site():
    told = summary(made_sight())
    assert (told["nats"], told["tokens"], told["nats_per_token"]["seen"]) == (4.0, 5, 0.8)
    assert {kind: (row["n"], row["seen"]) for kind, row in told["by_kind"].items()} == {
        "colour": (2, 1.5),
        "shape": (1, 0.5),
        "other": (1, 0.5),
    }
    assert [told["by_position"][k]["seen"] for k in ("0", "1")] == [1.5, 0.5]
    assert [site["lost"]["share"] for site in told["sites"]] == [0.25, 0.75]
    assert [site["seen_when_cut"] for site in told["sites"]] == [0.6, 0.2]
    assert half_depth(made_sight()) == pytest.approx(0.5 + 0.5 / 3)


def test_intervals_narrow_with_pictures_and_hold_the_mean():
    few, many = (np.random.default_rng(1).normal(1, 1, n) for n in (10, 1000))
    narrow, wide = ratio(many, np.ones(1000)), ratio(few, np.ones(10))
    assert narrow["low"] < many.mean() < narrow["high"]
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.1)
    assert wide["high"] - wide["low"] > 5 * (narrow["high"] - narrow["low"])


def test_words_of_scenes_have_kinds():
    said = {"two": "count", "Circles,": "shape", "little": "size", "pink": "colour", "under": "relation"}
    said |= {"left": "relation", "of": "other", "dark": "background", "picture": "other", "(end)": "other"}
    assert {word: word_kind(word) for word in said} == said


# --------------------------------------------------------------------------------------------------------------------
# minimal pairs
# --------------------------------------------------------------------------------------------------------------------
def test_a_minimal_pair_differs_in_one_colour_that_the_caption_names():
    pairs = [minimal_pair(example) for example in Scenes(test=60).examples("test")]
    found = [pair for pair in pairs if pair is not None]
    assert len(found) > 40
    for pair in found:
        one, other = (Scene.from_dict(e.extra["scene"]) for e in (pair.right, pair.recoloured))
        (changed,) = [(a, b) for a, b in zip(one.things, other.things, strict=True) if a != b]
        assert (changed[0].colour, changed[1].colour) == (pair.colour, pair.other)
        assert {**vars(changed[0]), "colour": pair.other} == vars(changed[1])
        assert one.background == other.background and one.look == other.look
        assert [thing.colour for thing in one.things].count(pair.colour) == 1 == pair.caption.split().count(pair.colour)
        assert pair.other not in {thing.colour for thing in one.things}
        moved = np.argwhere((draw(one, 64) != draw(other, 64)).any(0))
        centre = np.array([changed[0].y, changed[0].x]) * 64
        assert len(moved) and (np.linalg.norm(moved - centre, axis=1) <= 64 * 1.15 * changed[0].radius + 2).all()


@pytest.mark.parametrize("name", ["cross_attention", "prefix"])
def test_a_swap_at_the_only_site_is_the_other_picture(name):
    captioner = make_captioner(name, "finetune_lm", *(["fusion.every=3"] if name == "cross_attention" else []))
    source = Scenes(test=8)
    data = parts_of(captioner, source).data
    data.image_size, data.max_tokens = 48, 55
    pairs = [pair for example in source.examples("test") if (pair := minimal_pair(example)) is not None]
    _, sites = _sites_of(captioner)
    patched = patch(captioner, data, "test", pairs, sites)
    assert patched.swapped_LN.shape == (len(sites), len(pairs))
    assert abs(patched.right_N - patched.recoloured_N).max() > 1e-4
    assert (abs(patched.swapped_LN - patched.right_N).max(1) > 1e-6).all()
    if len(sites) == 1:
        assert patched.swapped_LN[0] == pytest.approx(patched.recoloured_N, rel=1e-9)


def _sites_of(captioner):
    memory = captioner.fusion.encode(captioner.language, make_visual(2))
    with torch.no_grad(), watched(captioner.fusion, captioner.language) as lm:
        return captioner.fusion.decode(lm.language, memory, make_text(2, 5)), lm.sites


# --------------------------------------------------------------------------------------------------------------------
# what is written and said
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def learnt():
    """One that knows eight scenes by heart, and what it sees in them."""
    torch.manual_seed(0)
    captioner, source = make_captioner("cross_attention"), Scenes(test=8)
    data = parts_of(captioner, source, batch_size=8).data
    data.image_size, data.max_tokens = 48, 60
    (batch,) = data.pictures("test")
    optimiser = torch.optim.Adam(captioner.parameters(), 1e-2)
    for _ in range(STEPS):
        optimiser.zero_grad()
        captioner.text_loss(batch)[0].backward()
        optimiser.step()
    return data, *measured(captioner, data, "test", 2)


def test_one_that_sees_is_told_with_shares_and_a_colour_that_it_takes_from_the_picture(learnt):
    _, sight, told = learnt
    assert not told["blind"] and told["all_sites_found"] and told["kinds_by"] == "the words of scenes"
    assert [site["depth"] for site in told["sites"]] == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-4)
    assert told["sites"][-1]["entered"] == pytest.approx({"share": 1, "low": 1, "high": 1})
    assert 0 < told["half_entered_at"] <= 1
    assert sum(row["n"] for row in told["by_kind"].values()) == len(sight.words)
    assert told["patching"]["pairs"] > 4 and len(told["patching"]["effects"]) == 3
    said = story({"run": "runs/a", **told})
    assert said.startswith("runs/a: 8 captions,") and "half has entered at depth" in said and "recoloured in" in said
    assert "nothing to see" in story({"run": "runs/a", **told, "blind": True})
    assert "not known here" in story({"run": "runs/a", **told, "all_sites_found": False})


def test_figures(learnt, tmp_path):
    data, sight, told = learnt
    pixels = {example.id: data.source.pixels(example, 48) for example in data.examples("test")[:3]}
    told = {**told, "patching": {"effects": [{"share": 0.3, "low": 0.1, "high": 0.4}] * 3}}
    paths = figures.draw(sight, told, pixels, tmp_path)
    assert [path.name for path in paths] == ["kinds.png", "depth.png", "captions.png"]
    assert all(Image.open(path).width > 600 for path in paths)
    both = figures.depth_curves({"one": told, "other": {**told, "patching": None}, "blind": {**told, "blind": True}})
    labels = [[line.get_label() for line in axis.get_lines() if len(line.get_xdata()) == 3] for axis in both.axes]
    assert labels == [["one", "other"], ["one", "other"], ["one"]]
    assert all(-0.1 < axis.get_xlim()[0] < axis.get_xlim()[1] < 1.1 for axis in both.axes)
    assert figures.depth_curves({"blind": {**told, "blind": True}}) is None
    assert figures.shaded(sight, {}) is None


def test_documents_are_refused():
    parts = SimpleNamespace(source=SimpleNamespace(interleaved=True))
    with pytest.raises(UserError, match="learnt from documents"):
        chosen(Path("runs/a"), parts, OmegaConf.create({}))


# --------------------------------------------------------------------------------------------------------------------
# the command
# --------------------------------------------------------------------------------------------------------------------
SMOKE = ("debug=smoke", "language.model.width=32", "vision.width=32", "vision.layers=3", "language.model.layers=2")
SMALL = (*SMOKE, "data.source.train=32", "data.source.val=8", "data.source.test=8", "data.source.compositional=1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A run that could see but has learnt too little, and a blind one."""
    folder = tmp_path_factory.mktemp("seeing")
    sight = ("fusion=cross_attention", "fusion.start=usual")
    run("src.train", *SMALL, *sight, f"hydra.run.dir='{folder}/sighted'")
    run("src.train", *SMALL, "fusion=blind", f"hydra.run.dir='{folder}/blind'")
    return folder


def test_the_command_writes_words_sums_and_figures(runs):
    shutil.copytree(runs / "sighted", runs / "again")
    answer = run("src.seeing", f"run=[{runs}/sighted,{runs}/again]", "captions=6", "shuffled=2", "samples=2")
    assert f"{runs}/sighted: 6 captions" in answer.stdout and "no more than chance" in answer.stdout
    assert "none of them sees" in answer.stdout and not (runs / "seeing.png").exists()
    rows = [json.loads(line) for line in (runs / "sighted" / "seeing" / "words.jsonl").read_text().splitlines()]
    told = json.loads((runs / "sighted" / "seeing" / "seeing.json").read_text())
    assert sum(row["seen"] for row in rows) == pytest.approx(told["nats"])
    assert len({row["id"] for row in rows}) == told["captions"] == 6 and told["shuffled"] == 2
    assert told["all_sites_found"] and [site["depth"] for site in told["sites"]] == [0.5, 1.0]
    assert told == json.loads((runs / "again" / "seeing" / "seeing.json").read_text()) | {"run": f"{runs}/sighted"}
    for name in ("kinds", "captions"):
        assert Image.open(runs / "sighted" / "seeing" / f"{name}.png").width > 400


@pytest.mark.parametrize(
    ("which", "words", "sentence"),
    [
        ("blind", (), "its words see nothing"),
        ("sighted", ("captions=0",), "captions must be a whole number of at least 1; got 0."),
        (
            "sighted",
            ("captions=3", "shuffled=3"),
            "There are 3 pictures of split=test here, too few for shuffled=3",
        ),
        ("sighted", ("split=exam",), "split=exam does not exist"),
        ("nowhere", (), "nowhere"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(runs, which, words, sentence):
    answer = run("src.seeing", f"run={runs}/{which}", *words, ok=False)
    assert sentence in answer.stderr and len(answer.stderr.strip().splitlines()) == 1
    assert not (runs / which / "seeing" / "words.jsonl").exists() or which == "sighted"
