"""The LightningModule: what trains, what is decayed, where labels shift, what a checkpoint holds."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import FUSIONS, OBJECTIVES, ROOT, VISION, Characters, language_of, make_fusion, make_text, viewed
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import cross_entropy

from src.build import place
from src.captioner import Captioner
from src.contracts import Batch, Text, UserError, Visual
from src.decoding.beam import BeamSearch
from src.decoding.greedy import Greedy
from src.layers import chunked_loss
from src.layers.laid_out import laid_out
from src.training.optimiser import warmup_cosine

OPTIM = {"betas": [0.9, 0.98], "weight_decay": 0.1, "warmup": 0.1, "floor": 0.0, "reduction": "token_mean"}
REGIMES = {
    "finetune_lm": {"train_language": True, "train_vision": True},
    "frozen_lm": {"train_language": False, "train_vision": True},
    "frozen_both": {"train_language": False, "train_vision": False},
}


class Pixels(nn.Module):
    """An encoder of one matrix: means of pixel blocks, projected."""

    spec = VISION

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, VISION.width)
        self.count = 0

    def forward(self, pixels_IM3hw, levels=0):
        self.count += 1
        blocks = pixels_IM3hw.double().unflatten(-1, (VISION.tokens, -1)).mean((-3, -1)) / 255  # (I, M, 3, N)
        tokens = self.project(blocks.transpose(-1, -2))
        every = tokens[:, :, None].expand(-1, -1, levels, -1, -1) if levels else None
        return Visual(tokens, tokens.mean(2)[..., : VISION.pooled_width], every)


def make_captioner(name="cross_attention", regime="finetune_lm", *overrides, nudged=True, dropout=0.0):
    language = language_of(name, dropout=dropout)
    fusion = make_fusion(name, language, *overrides, nudged=nudged)
    rates = {"lr_fusion": 0.01, "lr_language": 0.001, "lr_vision": 0.002}
    vision = Pixels().double() if fusion.sees else None
    how = {**REGIMES[regime], **rates}
    how["train_vision"] &= vision is not None
    return Captioner(vision, fusion, language, Characters(), how, OPTIM, Greedy(8), OBJECTIVES)


def make_batch(contexts=2, rows=4, length=6, seed=0):
    text = make_text(rows, length, seed)
    text.valid_BT[-1, -2:] = False
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (contexts, 1, 3, 12, 12), dtype=torch.uint8, generator=g)
    return viewed(Batch([f"p{i}" for i in range(contexts)], text, pixels))


@pytest.mark.parametrize("name", FUSIONS)
def test_logits_in_pieces_change_no_gradient(name, monkeypatch):
    """The loss is taken in pieces, here of three targets each, of 18; held against torch's own, of all at once."""
    model, batch = make_captioner(name).eval(), make_batch()
    hidden_BTD, _ = model.fusion.learn(model.language, model.memory(batch), batch.text)
    target = batch.views["next_token"].target
    logits_XV = model.fusion.readout(model.language, hidden_BTD.flatten(0, 1)[target.at_X])
    whole = cross_entropy(logits_XV, target.id_X)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(whole, list(parameters.values()), allow_unused=True)
    monkeypatch.setattr(chunked_loss, "PIECE", 3 * model.language.spec.vocabulary)
    loss = model.losses(batch)["next_token"].mean
    loss.backward()
    torch.testing.assert_close(loss.detach(), whole.detach(), rtol=0, atol=1e-10)
    for (key, parameter), grad in zip(parameters.items(), expected, strict=True):
        if grad is None:
            assert parameter.grad is None, key
        else:
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", FUSIONS)
def test_loss_is_the_mean_over_real_next_tokens(name):
    """Against a loop that asks the plain definition: column t predicts column t + 1, padding is no target."""
    model, batch = make_captioner(name).eval(), make_batch()
    loss, targets = model.text_loss(batch)
    memory = model.memory(batch)
    terms = []
    for b in range(4):
        for t in range(5):
            if not batch.text.valid_BT[b, t + 1]:
                continue
            hidden = model.fusion.decode(model.language, memory, batch.text.columns(None, t + 1))
            logp = model.fusion.readout(model.language, hidden[b, -1]).log_softmax(-1)
            terms.append(-logp[batch.text.ids_BT[b, t + 1]])
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=0, atol=1e-10)
    assert int(targets) == len(terms) == 18


def test_a_batch_without_targets_costs_nothing():
    """Documents of pictures alone: neither the loss nor a gradient becomes nan."""
    model, batch = make_captioner("cross_attention"), make_batch()
    batch.text.target_BT = torch.zeros_like(batch.text.valid_BT)
    loss, targets = model.text_loss(batch)
    loss.backward()
    assert loss.item() == 0 and int(targets) == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", FUSIONS)
def test_exactly_the_regimes_parameters_train(name, regime):
    model = make_captioner(name, regime, dropout=0.1).train()
    parts = {"fusion", *(p for p in ("language", "vision") if REGIMES[regime][f"train_{p}"])}
    want = {n for n, _ in model.named_parameters() if n.split(".")[0] in parts}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == want
    groups = model.parameter_groups()
    grouped = [id(p) for g in groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for n, p in model.named_parameters() if n in want}
    for part in model.parts(trained=False).values():
        assert not any(module.training for module in part.modules())
    if want:
        batch = make_batch()
        model.total(batch, model.losses(batch)).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == want


def test_no_decay_on_norms_biases_and_learnt_constants():
    model = make_captioner("clipcap", "finetune_lm", "fusion.mapper=transformer")
    names = {id(p): n for n, p in model.named_parameters()}
    plain = {names[id(p)] for g in model.parameter_groups() if g["weight_decay"] == 0 for p in g["params"]}
    assert "fusion.mapper.const_kD" in plain and "language.model.transformer.ln_f.weight" in plain
    assert all(n.endswith("bias") or "norm" in n or ".ln_" in n or "const" in n for n in plain)


def test_scalar_gates_learn_at_a_rate_of_their_own():
    model = make_captioner("flamingo", "finetune_lm")
    gates = {p for n, p in model.named_parameters() if n.endswith(("alpha", "beta"))}
    assert len(gates) == 2 * len(model.fusion.layers)
    model.optim["gate_rate"] = 30.0
    rates = {p: group["lr"] for group in model.parameter_groups() for p in group["params"]}
    slow = {rates[p] for p in model.fusion.parameters() if p not in gates}
    (rate,), (gate_rate,) = slow, {rates[p] for p in gates}
    assert gate_rate == pytest.approx(30 * rate)
    model.optim["gate_rate"] = 1.0  # as before there was the option: an earlier run's optimiser has no such group
    assert not [group for group in model.parameter_groups() if group["name"].endswith("gates")]


def make_logits(name: str):
    """A captioner in float32, and the function that walks through it once."""
    model, batch = make_captioner(name).eval(), make_batch(rows=2)
    visual = model.visual(batch)
    if visual is not None:
        given = {key: x.float() for key, x in vars(visual).items() if torch.is_tensor(x) and x.is_floating_point()}
        visual = replace(visual, **given)
    model.fusion.float(), model.language.float()

    def logits():
        memory = model.fusion.encode(model.language, visual)
        hidden_BTD = model.fusion.decode(model.language, memory, batch.text)
        return model.fusion.readout(model.language, hidden_BTD).float()

    return model, logits


def test_a_module_beside_the_parts_is_not_passed_over_in_silence():
    """It would be saved, and never trained; a parameter of two parts would be trained twice."""
    model = make_captioner()
    model.bridge = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"bridge\.weight is in 0 of the optimiser's groups"):
        model.parameter_groups()
    model.bridge.requires_grad_(False)
    model.parameter_groups()
    model.fusion.borrowed = model.language.model.get_input_embeddings()
    with pytest.raises(AssertionError, match=r"\.weight is in 2 of the optimiser's groups"):
        model.parameter_groups()


@pytest.mark.parametrize("name", FUSIONS)
@torch.no_grad()
def test_weights_laid_out_for_captioning_change_logits_by_rounding_alone(name):
    model, logits = make_logits(name)
    exact = logits()
    with torch.autocast("cpu", torch.bfloat16):
        plain = logits()
        with laid_out(model.fusion, model.language):
            found = logits()
    assert found.isfinite().all() and (found - plain).abs().max() < 0.02 * exact.abs().max()
    assert (found - exact).abs().mean() < 1.2 * (plain - exact).abs().mean() + 1e-6


@pytest.mark.parametrize("name", FUSIONS)
@torch.no_grad()
def test_so_it_is_in_single_precision(name, monkeypatch):
    monkeypatch.setattr("src.layers.laid_out.FLOAT32_FROM", 1)  # the matrices of this test are small
    model, logits = make_logits(name)
    exact = logits()
    with laid_out(model.fusion, model.language):
        assert not torch.backends.mkldnn.is_available() or "forward" in vars(model.language.model.lm_head)
        torch.testing.assert_close(logits(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [f for f in FUSIONS if f != "blind"])
def test_the_picture_is_encoded_once_however_long_the_caption(name):
    model = make_captioner(name).eval()
    model.generate(make_batch(rows=2), BeamSearch(8, beams=3, length_penalty=0.0))
    assert model.vision.count == 1


@pytest.mark.parametrize("name", FUSIONS)
def test_captions_do_not_depend_on_the_batch(name):
    """Greedy and beam: every picture alone gives what it gives among others."""
    model, batch = make_captioner(name).eval(), make_batch(contexts=4, rows=4)
    for decoder in (Greedy(8), BeamSearch(8, beams=3, length_penalty=0.0)):
        together = model.generate(batch, decoder)
        for i in range(4):
            alone = Batch([batch.ids[i]], batch.text, batch.pixels_IM3hw[i : i + 1])
            assert model.generate(alone, decoder) == [together[i]]


@pytest.mark.parametrize("name", FUSIONS)
def test_greedy_with_a_cache_equals_greedy_without(name):
    model, batch = make_captioner(name).eval(), make_batch(contexts=3, rows=3)
    memory = model.memory(batch)
    for i, found in enumerate(model.generate(batch)):
        ids = [Characters.bos]
        for _ in range(8):
            rows = torch.tensor([ids] * 3)
            text = Text(rows, torch.ones_like(rows, dtype=torch.bool), torch.ones_like(rows))
            hidden = model.fusion.decode(model.language, memory, text)
            token = int(model.fusion.readout(model.language, hidden[i, -1]).argmax())
            if token == Characters.eos:
                break
            ids.append(token)
        assert ids[1:] == found


@pytest.mark.parametrize("name", [f for f in FUSIONS if f != "blind"])
def test_overfits_captions_and_says_them(name):
    """Eight captions learnt by heart come back word for word: the whole path from label to decoder agrees."""
    torch.manual_seed(0)
    model = make_captioner(name, nudged=False).float()
    model.vision.double()
    pixels = torch.randint(0, 256, (8, 1, 3, 12, 12), dtype=torch.uint8)
    said = ["a red dog", "two cats sit", "one boat", "the old man", "a tree", "snow falls", "big red bus", "a kite"]
    rows = [[0, *ids, 1] for ids in Characters().encode(said)]
    T = max(map(len, rows))
    ids = torch.tensor([row + [2] * (T - len(row)) for row in rows])
    batch = Batch(list(map(str, range(8))), Text(ids, ids != 2, (ids != 2).long()), pixels)
    model.visual = lambda b, aux=None, see=model.visual: _single(see(b))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(400):
        loss, _ = model.text_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.05
    said_again = model.caption([batch], Greedy(16))
    assert [said_again[str(i)] for i in range(8)] == said


def _single(visual: Visual) -> Visual:
    levels = visual.levels_IMKNC
    # Standardised over pictures: raw pixel means hardly differ between noise pictures.
    tokens = visual.tokens_IMNC.float()
    tokens = (tokens - tokens.mean(0)) / tokens.std(0)
    return Visual(tokens, tokens.flatten(2)[:, :, : VISION.pooled_width], None if levels is None else levels.float())


def test_checkpoint_holds_only_what_trains_and_knows_what_was_frozen():
    model = make_captioner("cross_attention", "frozen_lm")
    state = model.state_dict()
    assert state and not any(name.startswith("language.") for name in state)
    other = make_captioner("cross_attention", "frozen_lm", nudged=False)
    other.load_state_dict(state)
    assert all(torch.equal(x, state[name]) for name, x in other.state_dict().items())
    checkpoint: dict = {}
    model.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    with torch.no_grad():
        next(other.language.parameters()).add_(1e-3)
    with pytest.raises(UserError, match="frozen language differs"):
        other.on_load_checkpoint(checkpoint)


def test_checkpoint_of_another_model_is_refused():
    model = make_captioner("cross_attention", "frozen_lm")
    state = model.state_dict()
    state.pop(sorted(state)[0])
    with pytest.raises(UserError, match="1 tensors missing"):
        model.load_state_dict(state)
    with pytest.raises(UserError, match="does not fit"):
        model.load_state_dict(make_captioner("srau", "frozen_lm").state_dict())


def test_learning_rate_rises_then_follows_a_cosine():
    factors = [warmup_cosine(s, 100, 0.1, 0.05) for s in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factors[100] == pytest.approx(0.05) and factors[10:] == sorted(factors[10:], reverse=True)


def test_not_a_number_stops_training_with_a_sentence():
    """Wherever it shows first; the step, the term and the batch are named."""
    model = make_captioner()
    model.log = lambda *_, **__: None
    model.trainer = SimpleNamespace(precision="bf16-mixed", global_step=7, is_global_zero=False)
    group = {"params": [nn.Parameter(torch.ones(2))]}
    group["params"][0].grad = torch.tensor([1.0, math.inf])
    with pytest.raises(UserError, match=r"gradient \(norm\) is inf at step"):
        model.configure_gradient_clipping(SimpleNamespace(param_groups=[group]), 1.0)
    with torch.no_grad():
        model.language.model.transformer.ln_f.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"training loss \(next_token\) is nan at step .* batch of p0, p1"):
        model.training_step(make_batch(), 0)
    with pytest.raises(UserError, match=r"validation loss \(next_token\) is nan"):
        model.validation_step(make_batch(), 0)


def test_captioner_names_no_mechanism():
    source = (ROOT / "src" / "captioner.py").read_text().lower()
    names = {*FUSIONS, "gate", "prefix", "perceiver", "contrastive"} - {"blind", "frozen"}  # which are words, too
    assert not [name for name in names if name in source.replace("gates (all parameters", "")]


@pytest.mark.parametrize(("accelerator", "device"), [("auto", "meta"), ("gpu", "meta"), ("cpu", "cpu")])
def test_captions_are_made_on_the_gpu_unless_the_run_was_not(monkeypatch, accelerator, device):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    module = torch.nn.Linear(2, 2)
    place(module, OmegaConf.create({"trainer": {"accelerator": accelerator}}))
    assert module.weight.device.type == device
