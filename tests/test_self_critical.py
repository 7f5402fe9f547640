"""Self-critical training: rewards are CIDEr-D, gradients those of the expected reward, and what goes wrong is said."""

from __future__ import annotations

import math
import random
import signal
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from commands import run
from conftest import FUSIONS, VISION, Characters, make_fusion, make_visual, nudge, quiet_trainer, text_of
from test_captioner import OPTIM, REGIMES, Pixels, make_batch, make_captioner
from torch.nn import functional as F
from torch.utils.data import DataLoader
from trainings import Trainings

from src.benchmarking.flops import training_flops
from src.captioner import Captioner
from src.comparison.runs import find_runs
from src.config import command_line
from src.config.checks import check_options
from src.config.fit import check_fit
from src.contracts import Batch, Target, UserError, View, Visual
from src.decoding.greedy import Greedy
from src.language.load import tiny
from src.layers import chunked_loss
from src.loading.rows import APART, Rows, with_views
from src.metrics.cider import SIGMA, CiderD
from src.metrics.ngrams import ReferenceNgrams
from src.metrics.rewards import CiderRewards, ended
from src.objectives.base import Surroundings
from src.objectives.next_token import NextToken
from src.objectives.self_critical import Drawn, SelfCritical, mean_of_others
from src.text.word_classes import unfinished
from src.training import soundness

PICTURES = [
    ("a dog runs on the grass", "the dog runs"),
    ("a cat sleeps on a mat", "one cat on the mat", "a cat"),
    ("two dogs play with a ball on the grass", "dogs with a ball"),
    ("a red car on the road", "the car stands there"),
]


# --------------------------------------------------------------------------------------------------------------------
# rewards
# --------------------------------------------------------------------------------------------------------------------
def plain_cider(said: str, references, training) -> float:
    """CIDEr-D of one caption by its definition, dictionaries of tuples and one pair after the other."""

    def grams(text: str, n: int) -> Counter:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    total = 0.0
    for n in range(1, 5):
        frequency = Counter(gram for own in training for gram in set().union(*(grams(text, n) for text in own)))

        def vector(text: str, n: int = n, frequency: Counter = frequency) -> dict:
            found = grams(text, n).items()
            return {gram: k * (math.log(len(training)) - math.log(max(1, frequency[gram]))) for gram, k in found}

        for reference in references:
            g, r = vector(said), vector(reference)
            dot = sum(min(g[gram], r[gram]) * r[gram] for gram in g.keys() & r.keys())
            norms = math.hypot(*g.values()) * math.hypot(*r.values())
            apart = max(0, len(said.split()) - 1) - max(0, len(reference.split()) - 1)
            total += dot / norms * math.exp(-(apart**2) / (2 * SIGMA**2)) / len(references) if norms else 0.0
    return 10 * total / 4


def test_rewards_of_a_batch_are_cider_d_with_training_frequencies():
    """Of two pictures, whatever order; with words that no reference has; of a picture that was not counted either."""
    rewards = CiderRewards(PICTURES)
    training = [[ended(text) for text in own] for own in PICTURES]
    said = {2: ["two dogs on the grass END", "dogs with a END"], 0: ["a zebra runs on the zebra", "END"]}
    found = rewards([PICTURES[i] for i in said], list(said.values()))
    wanted = [[plain_cider(text, training[i], training) for text in own] for i, own in said.items()]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
    assert found.min() == 0 < found[0, 0] and found[1, 1] == 0
    new = ("a zebra in the grass", "the zebra runs on")
    texts = ["a zebra in the END", "a giraffe in the END", "the grass in the zebra"]
    wanted = [plain_cider(text, [ended(one) for one in new], training) for text in texts]
    np.testing.assert_allclose(rewards([new], [texts])[0], wanted, rtol=1e-12)
    assert wanted[0] > wanted[1]


def test_rewards_of_all_pictures_are_what_the_metric_says():
    ngrams = ReferenceNgrams([[ended(text) for text in own] for own in PICTURES])
    said = ["a dog on the grass END", "a cat on", "dogs play END", "the car END"]
    wanted = CiderD(ngrams).score(ngrams.look_up(said))
    np.testing.assert_array_equal(CiderRewards(PICTURES)(PICTURES, [[one] for one in said])[:, 0], wanted)


def test_references_are_read_as_metrics_read_them():
    shouted = [tuple(f"{text.upper()} !" for text in own) for own in PICTURES]
    said = [["the dog runs END"]] * len(PICTURES)
    np.testing.assert_array_equal(CiderRewards(shouted)(shouted, said), CiderRewards(PICTURES)(PICTURES, said))


def test_the_end_counts():
    """Without it a fragment is worth more than the caption, so that captions learn to end on it."""
    own = ("a dog plays with a ball", "one dog plays with a stick", "the dog plays", "a dog plays")
    whole, fragment = "a dog plays", "a dog plays with a"
    rewards = CiderRewards([own, *PICTURES[1:]])
    worth = rewards([own], [[ended(whole), ended(fragment), whole]])[0]
    without = [plain_cider(text, own, [own, *PICTURES[1:]]) for text in (whole, fragment)]
    assert without[0] < without[1] and worth[0] > max(worth[1:])
    assert unfinished("a dog with a") and not unfinished("a dog in the grass") and not unfinished("")


# --------------------------------------------------------------------------------------------------------------------
# the gradient
# --------------------------------------------------------------------------------------------------------------------
class Few(Characters):
    """A vocabulary of five: bos, eos, pad, and two words."""

    mask, image_tag, words = None, (), ["dog", "cat"]

    def __len__(self) -> int:
        return 5

    def decode(self, ids):
        return " ".join(self.words[id - 3] for id in ids if id > 2)


def few(objective: SelfCritical, dropout: float = 0.0) -> tuple[Captioner, Batch]:
    """A captioner of that vocabulary, in float64, which learns to say up to two words of one picture."""
    language = tiny(Few(), width=16, layers=2, heads=4, context=8, dropout=dropout)
    fusion = make_fusion("cross_attention", language, f"fusion.dropout={dropout}")
    nudge(language, 0.3)
    fitted = objective.fitted(Surroundings(VISION, language.spec, tuple, captions=lambda: SEEN))
    regime = {**REGIMES["finetune_lm"], "lr_fusion": 0.01, "lr_language": 0.01, "lr_vision": 0.01}
    optim = {**OPTIM, "reduction": "sequence_sum"}
    model = Captioner(Pixels(), fusion, language, Few(), regime, optim, Greedy(2), {"self_critical": fitted})
    batch = replace(make_batch(contexts=1), text=text_of(torch.tensor([[0, 3, 1]])), captions=SEEN[:1])
    return model.double().train(), with_views(batch, model.objectives, random.Random, APART)


SEEN = [("dog cat", "dog"), ("cat", "cat cat"), ("dog dog",)]
WORDS = (0, 2, 3, 4)  # all but the end
SENTENCES = [[], *([x] for x in WORDS), *([x, y] for x in WORDS for y in WORDS)]  # all that can be said


def log_probability(model: Captioner, batch: Batch, sentence: list[int]) -> torch.Tensor:
    """Of a sentence of two tokens at most, one token after the other."""
    memory, total, ids = model.memory(batch), torch.zeros((), dtype=torch.float64), [0]
    for token in [*sentence, 1][:2]:
        hidden_BTD = model.fusion.decode(model.language, memory, text_of(torch.tensor([ids])))
        total = total + model.fusion.readout(model.language, hidden_BTD[0, -1]).log_softmax(-1)[token]
        ids.append(token)
    return total


@pytest.mark.parametrize(("baseline", "samples"), [("mean", 2), ("greedy", 1)])
def test_the_mean_gradient_is_that_of_the_expected_reward(baseline, samples):
    """Over all that can be drawn, each as often as it comes: exact, by enumeration."""
    model, batch = few(SelfCritical(samples=samples, baseline=baseline, max_tokens=2))
    (objective,) = model.objectives.values()
    logp_S = torch.stack([log_probability(model, batch, sentence) for sentence in SENTENCES])
    torch.testing.assert_close(logp_S.exp().sum(), torch.ones((), dtype=torch.float64))
    worth_S = torch.from_numpy(objective._rewards(model, batch, SENTENCES)[0])
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(-(logp_S.exp() * worth_S).sum(), trained, allow_unused=True)
    (best,) = model.say(batch, (Greedy(2), 1))
    found = [torch.zeros_like(p) for p in trained]
    for drawn in product(range(len(SENTENCES)), repeat=samples):
        model.say = lambda *_, drawn=drawn: [[SENTENCES[k] for k in drawn], *([best] if baseline == "greedy" else [])]
        losses = model.losses(model.live(batch))
        assert int(losses["self_critical"].count) == sum(min(2, len(SENTENCES[k]) + 1) for k in drawn)
        often = logp_S[list(drawn)].sum().exp().item()
        grads = torch.autograd.grad(often * model.total(batch, losses), trained, allow_unused=True)
        found = [sum_ if grad is None else sum_ + grad for sum_, grad in zip(found, grads, strict=True)]
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, rtol=1e-4, atol=1e-6)
    assert max(theirs.abs().max() for theirs in wanted if theirs is not None) > 1e-2


def test_samples_are_drawn_from_what_is_learnt():
    """Empty ones too, and without dropout, although the model is in training."""
    model, batch = few(SelfCritical(), dropout=0.5)
    (said,) = model.say(batch, (Drawn(2, temperature=1.0, top_k=0, top_p=1.0, seed=3), 4000))
    assert model.training and model.language.training
    counts = Counter(map(tuple, said))
    model.eval()
    for sentence in SENTENCES:
        p = log_probability(model, batch, sentence).exp().item()
        assert abs(counts[tuple(sentence)] - 4000 * p) < 4.5 * math.sqrt(4000 * p * (1 - p)) + 1, sentence
    assert counts[()] > 0


def test_a_step_draws_anew_and_its_seed_is_the_datas():
    model, batch = few(SelfCritical(samples=40, max_tokens=2))
    objective, view = model.objectives["self_critical"], batch.views["self_critical"]
    first, again, other = (
        objective.live(model, batch, one).text.ids_BT for one in (view, view, replace(view, seed=view.seed + 1))
    )
    assert torch.equal(first, again) and not (first.shape == other.shape and torch.equal(first, other))
    packed = with_views(batch, model.objectives, random.Random, Rows(pack=True, ends=False))
    assert packed.views["self_critical"].seed == view.seed > 0


# --------------------------------------------------------------------------------------------------------------------
# the loss
# --------------------------------------------------------------------------------------------------------------------
def made_up(name: str, said: list[list[list[int]]], **options) -> tuple[Captioner, Batch]:
    """Mechanism ``name``, made to say ``said`` of two pictures, with real rewards of these words."""
    model, captions = make_captioner(name), [("ab ba", "ab"), ("ba ba", "b a")]
    to = Surroundings(VISION, model.language.spec, tuple, captions=lambda: [*captions, ("c",)])
    model.objectives = {"self_critical": SelfCritical(max_tokens=6, **options).fitted(to)}
    model.say = lambda *_: said
    model.eval()  # no dropout
    return model, with_views(replace(make_batch(), captions=captions), model.objectives, random.Random, APART)


def spelt(*texts: str) -> list[list[int]]:
    return Characters().encode(texts)


@pytest.mark.parametrize("name", FUSIONS)
def test_the_loss_is_its_formula_for_every_mechanism(name):
    """contract: advantages times nats of the walk that writes, mean over tokens; what ends and what was cut."""
    samples = spelt("ab ba", "b", "ba", "ab ba ")
    model, batch = made_up(name, [samples], samples=2)
    loss = model.losses(model.live(batch))["self_critical"]
    objective, memory = model.objectives["self_critical"], model.memory(batch)
    worth_In = objective.rewards(batch.captions, [["ab ba END", "b END"], ["ba END", "ab ba"]])
    advantage_B = [(a - b) * sign for a, b in worth_In for sign in (1, -1)]
    total, count = 0.0, 0
    for row, (ids, advantage) in enumerate(zip(samples, advantage_B, strict=True)):
        ids = [0, *ids] if len(ids) == 6 else [0, *ids, 1]
        text = text_of(torch.tensor([ids]))
        view = View(text, Target.next(text))
        nats_X = model.nats(memory.select(torch.tensor([row // 2])), view)
        total, count = total + advantage * nats_X.sum().item(), count + len(nats_X)
    assert int(loss.count) == count == 6 + 2 + 3 + 6 and loss.rows == 4
    assert loss.mean.item() == pytest.approx(total / count, rel=1e-5)
    told = {name.removeprefix("self_critical/"): value.item() for name, (value, _) in loss.terms.items()}
    assert told["reward"] == told["baseline"] == pytest.approx(worth_In.mean(), rel=1e-6)
    assert (told["cut"], told["distinct"], told["unfinished"]) == (0.25, 0.75, 0.0)
    assert all(weight == 0 for _, weight in loss.terms.values())
    model.total(batch, {"self_critical": loss}).backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(one.startswith("fusion.") or name == "blind" for one in moved)
    assert any(one.startswith("language.") for one in moved)


def test_what_others_say_sums_to_nothing():
    reward_In = np.random.default_rng(0).random((5, 4))
    np.testing.assert_allclose((reward_In - mean_of_others(reward_In)).sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(mean_of_others(reward_In)[:, 0], reward_In[:, 1:].mean(1))


def test_a_sample_that_is_the_greedy_caption_teaches_nothing():
    greedy, other = spelt("ab", "ba"), spelt("b", "ba ba")
    model, batch = made_up("cross_attention", [greedy, greedy], samples=1, baseline="greedy")
    loss = model.losses(model.live(batch))["self_critical"]
    loss.mean.backward()
    assert loss.mean.item() == 0 and loss.terms["self_critical/no_advantage"][0] == 1
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)
    model.say = lambda *_: [other, greedy]
    assert model.losses(model.live(batch))["self_critical"].mean.item() != 0


def test_nothing_behind_the_end_has_a_gradient():
    """A short sample beside a long one: padding is asked for nothing, and nothing sees it."""
    model, batch = made_up("srau", [spelt("b", "ab ba ", "ba", "ba ba")], samples=2)
    view = model.objectives["self_critical"].live(model, batch, batch.views["self_critical"])
    assert view.text.valid_BT.sum(1).tolist() == [3, 7, 4, 7]
    assert torch.bincount(view.target.at_X // 7).tolist() == [2, 6, 3, 6]
    x_BTD = model.language.embed(view.text.ids_BT).detach().requires_grad_()
    model.language.embed = lambda ids_BT: x_BTD
    walked = model.walk(model.visual(batch), {"self_critical": view.seen})["self_critical"]
    model.objectives["self_critical"].loss(model, walked, view).mean.backward()
    assert not x_BTD.grad[~view.text.valid_BT].any() and x_BTD.grad[0, :2].any()


def test_weights_of_targets_hold_in_pieces(monkeypatch):
    """Against torch's own loss of each target, with gradients and without."""
    layer, x_XD = torch.nn.Linear(4, 7).double(), torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    target_X, weight_X = torch.arange(9) % 7, torch.randn(9, dtype=torch.float64)
    wanted = (weight_X * F.cross_entropy(layer(x_XD), target_X, reduction="none")).sum()
    grads = torch.autograd.grad(wanted, (x_XD, layer.weight))
    monkeypatch.setattr(chunked_loss, "PIECE", 4 * 7)
    monkeypatch.setattr(chunked_loss, "BLOCK", 3 * 7)
    found = chunked_loss.summed_cross_entropy(layer, x_XD, target_X, layer.parameters(), 7, weight_X)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, (x_XD, layer.weight)), grads)
    with torch.no_grad():
        without = chunked_loss.summed_cross_entropy(layer, x_XD, target_X, layer.parameters(), 7, weight_X)
    torch.testing.assert_close(without, wanted)


def test_captions_made_within_a_step_leave_the_gradients_whole():
    """Autocast keeps the weights that it has cast, those that were cast without gradients too."""
    model, batch = few(SelfCritical(samples=6, max_tokens=2))
    model.float().optim = {**model.optim, "precision": "bf16-mixed"}
    seen = make_visual(1)
    model.visual = lambda *_: Visual(seen.tokens_IMNC.float(), seen.pooled_IMC.float())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(model.live(batch))
    model.total(batch, losses).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None and not name.startswith("vision.")]
    assert not missing


def test_what_a_step_costs_is_counted_with_its_samples():
    model, batch = few(SelfCritical(samples=4, max_tokens=2))
    model.eval()
    counted = training_flops(model, batch)
    view = model.live(batch).views["self_critical"]
    model.objectives = {"self_critical": NextToken()}
    alone = training_flops(model, replace(batch, views={"self_critical": replace(view, told={})}))
    assert counted > 1.1 * alone > 0 and not model.training


def test_validation_is_that_of_the_next_token():
    model, batch = made_up("coca", [], samples=2)
    model.eval()
    found = model.losses(batch)["self_critical"]
    wanted, count = model.text_loss(batch)
    torch.testing.assert_close(found.mean, wanted)
    assert int(found.count) == int(count) and not found.terms


# --------------------------------------------------------------------------------------------------------------------
# what goes wrong
# --------------------------------------------------------------------------------------------------------------------
BAD = {  # what two samples of a picture are; "a" and "dog" stand for the two words
    "nothing to learn from": ([[3], [3]], "a dog"),
    "do not end within decode.max_tokens": ([[3, 4], [4, 4]], "dog cat"),
    "end in the middle of a sentence": ([[3], [4, 3]], "a dog"),
}


@pytest.mark.parametrize("sentence", BAD)
def test_what_lasts_too_long_ends_training(sentence, monkeypatch):
    said, words = BAD[sentence]
    monkeypatch.setattr(soundness, "WINDOW", 3)
    monkeypatch.setattr(Few, "words", words.split())
    model, batch = few(SelfCritical(samples=2, max_tokens=2))
    worth_In = np.array([[1.0, 1.0 if "nothing" in sentence else 2.0]])
    model.objectives["self_critical"] = model.objectives["self_critical"].knowing(rewards=lambda *_: worth_In)
    model.say = lambda *_: [said]
    trainer = quiet_trainer(max_steps=9)
    with pytest.raises(UserError, match=f"{sentence}.*at step 2.*the last checkpoint is kept"):
        trainer.fit(model, DataLoader([batch] * 9, batch_size=None))
    assert trainer.global_step == 2


def test_a_bad_batch_or_two_are_let_pass(monkeypatch):
    monkeypatch.setattr(soundness, "WINDOW", 3)
    lasting = soundness.Lasting(SelfCritical.limits)
    for step in range(12):
        lasting.watch({name: torch.tensor(float(step % 3 > 0)) * 0.7 for name in SelfCritical.limits}, step)


NEEDED = "weights=/nowhere val_captions=8"
WRONG = {
    "objective=self_critical val_captions=8": "say weights=<run folder>",
    "objective=self_critical weights=/nowhere": "say val_captions=<pictures>",
    f"objective=self_critical {NEEDED} objectives.self_critical.samples=1": "samples must be at least 2",
    f"objective=self_critical {NEEDED} objectives.self_critical.samples=0": "objectives.self_critical.samples must be",
    f"objective=self_critical {NEEDED} objectives.self_critical.baseline=best": "baseline must be",
    f"objective=self_critical {NEEDED} data=scenes_questions": "these data have others",
    f"objective=self_critical {NEEDED} data=mixture fusion=flamingo": "these data have others",
    f"objective=self_critical {NEEDED} data=captions_text fusion=blind": "these data have others",
    f"objective=self_critical {NEEDED} optim=guarded": "optim.loss_spike compares losses",
}


def checked(line: str) -> None:
    """As a command is checked before any work; the run that ``weights`` names is looked for later."""
    words = line.split()
    cfg = command_line.compose("train", words, command_line.parse(words))
    check_options("train", cfg)
    check_fit(cfg)


@pytest.mark.parametrize("line", WRONG)
def test_what_cannot_be_learnt_so_is_refused(line):
    with pytest.raises(UserError) as caught:
        checked(line)
    assert WRONG[line] in str(caught.value) and "\n" not in str(caught.value)


def test_what_can_be_learnt_so_is_let_through():
    for more in ("", "objectives.self_critical.samples=1 objectives.self_critical.baseline=greedy", "fusion=coca"):
        checked(f"objective=self_critical {NEEDED} {more}")
    checked(f"objective=[self_critical,next_token] {NEEDED}")
    with pytest.raises(UserError, match="samples must be at least 2"):
        SelfCritical(samples=1)


# --------------------------------------------------------------------------------------------------------------------
# the commands
# --------------------------------------------------------------------------------------------------------------------
SIZES = ("debug=smoke", "language.model.width=32", "vision.width=32", "vision.layers=2", "language.model.layers=2")
SIZES = (*SIZES, "fusion=cross_attention", "data.source.train=16", "decode=greedy", "trainer.log_every_n_steps=1")


@pytest.mark.slow
def test_it_goes_on_from_a_run_and_where_it_was_stopped(tmp_path):
    """Its curves are told, CIDEr-D chooses the checkpoint, and a break changes nothing."""
    begun = tmp_path / "begun"
    run("src.train", *SIZES, f"hydra.run.dir='{begun}'")
    words = (*SIZES, "objective=self_critical", f"weights='{begun}'", "val_captions=8", "trainer.val_check_interval=1")
    wrong = run("src.train", *words, "fusion=clipcap", f"hydra.run.dir='{tmp_path}/none'", ok=False)
    assert "was trained with fusion._target_=" in wrong.stderr and not (tmp_path / "none").exists()
    trainings = Trainings()
    try:
        assert trainings.run(tmp_path / "whole", *words)[0] == 0
        code, told = trainings.run(tmp_path / "broken" / "1", *words, "resume=auto", stop=(signal.SIGTERM, 2))
        assert code == 128 + signal.SIGTERM, told
        code, told = trainings.run(tmp_path / "broken" / "2", *words, "resume=auto")
        assert code == 0 and "going on from" in told
    finally:
        trainings.close()
    (whole,), (broken,) = find_runs(f"{tmp_path}/whole"), find_runs(f"{tmp_path}/broken/2")
    for name in ("reward", "baseline", "no_advantage", "length", "distinct", "cut", "unfinished"):
        curve = whole.curve(f"train/self_critical/{name}")
        assert len(curve) == 4 and broken.curve(f"train/self_critical/{name}") == curve, name
    assert broken.scores == pytest.approx(whole.scores)
    best = torch.load(tmp_path / "whole" / "checkpoints" / "best.ckpt", weights_only=True)
    scores = dict(whole.curve("val/CIDEr-D"))
    assert len(scores) == 4 and scores[best["global_step"] - 1] == max(scores.values())
    monitor = next(state for name, state in best["callbacks"].items() if name.startswith("BestCheckpoint"))["monitor"]
    assert monitor == "val/CIDEr-D"
    run("src.evaluate", f"run={tmp_path}/whole")  # without what it was trained by
