"""Frozen: an encoder that learns through a language model that does not, and what it is held against."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import OBJECTIVES, Characters, fusion_config, make_language, make_text, nudge, quiet_trainer, viewed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_captioner import OPTIM
from torch.utils.data import DataLoader

from src.build import own_randomness
from src.captioner import Captioner
from src.config.classes import HOME
from src.contracts import Batch
from src.decoding.greedy import Greedy
from src.language.base import LanguageModel
from src.vision.vit import ViT

REGIME = OmegaConf.to_container(OmegaConf.load(HOME / "conf" / "regime" / "through_frozen_lm.yaml"))


def frozen(vectors: int = 2, projector: str = "pooled", **regime) -> Captioner:
    """fusion=frozen at test size, with as many vectors of a picture."""
    language = make_language(dropout=0.1)
    with own_randomness(0, "vision"):
        vision = ViT(16, 4, 24, 2, 2).double()
    written = OmegaConf.create(
        {"it": OmegaConf.load(HOME / "conf" / "projector" / f"{projector}.yaml"), "dropout": 0.1}
    )
    written.it["pooled" if projector == "pooled" else "vectors"] = vectors
    made = nudge(instantiate(written.it)(vision.spec, language.spec).double())
    fusion = instantiate(fusion_config("frozen"))(made.spec, language.spec).double()
    how = {**REGIME, **regime}
    return Captioner(vision, fusion, language, Characters(), how, OPTIM, Greedy(4), OBJECTIVES, projector=made)


def batch(seed: int, contexts: int = 2) -> Batch:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (contexts, 1, 3, 16, 16), dtype=torch.uint8, generator=g)
    return viewed(Batch([f"{seed}/{i}" for i in range(contexts)], make_text(2 * contexts, 6, seed), pixels))


def test_the_encoder_learns_and_the_language_model_keeps_every_bit():
    model = frozen()
    before = copy.deepcopy(model.language.state_dict())
    moved = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("language.")}
    hashes = model.frozen_hashes()
    trainer = quiet_trainer(max_steps=4, gradient_clip_val=1.0)
    trainer.fit(model, DataLoader([batch(seed) for seed in range(4)], None))
    assert all(torch.equal(before[name], x) for name, x in model.language.state_dict().items())
    assert model.frozen_hashes() == hashes and set(hashes) == {"language"}
    assert not any(module.training for module in model.language.modules())  # no dropout, though gradients go through
    assert all((p - moved[name]).abs().max() > 0 for name, p in model.named_parameters() if name in moved)
    in_groups = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not in_groups & {id(p) for p in model.language.parameters()}
    assert not any(name.startswith("language.") for name in model.state_dict())


def test_gradients_reach_all_of_the_encoder_and_none_of_the_language_model():
    model = frozen().train()
    one = batch(0)
    model.total(one, model.losses(one)).backward()
    for part in (model.vision, model.projector):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, (
                name
            )
    assert all(parameter.grad is None for parameter in model.language.parameters())


@pytest.mark.parametrize("vectors", [1, 2, 4])
def test_a_picture_is_so_many_words(vectors, monkeypatch):
    """The language model reads n columns more than the text, which are the vectors of its picture."""
    model, seen = frozen(vectors).eval(), []
    begin = LanguageModel.begin
    monkeypatch.setattr(LanguageModel, "begin", lambda self, x, *rest: seen.append(x) or begin(self, x, *rest))
    one = batch(1)
    with torch.no_grad():
        model.losses(one)
        vectors_IND = model.visual(one).tokens_IMNC[:, 0]
    T = one.views["next_token"].text.ids_BT.shape[1]
    assert model.fusion.extra_positions == vectors and seen[0].shape == (4, vectors + T, 32)
    torch.testing.assert_close(seen[0][:, :vectors], vectors_IND.repeat_interleave(2, 0), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("projector", ["pooled", "constant"])
def test_the_blind_control_says_the_same_of_every_picture(projector):
    model, one, other = frozen(2, projector, train_vision=False).eval(), batch(1), batch(2)
    other.text, other.views = one.text, one.views
    losses = [model.losses(x)["next_token"].mean for x in (one, other)]
    assert torch.equal(*losses) == (projector == "constant")


def test_the_blind_control_learns_its_vectors_alone():
    model = frozen(2, "constant", train_vision=False).train()
    one = batch(0)
    model.total(one, model.losses(one)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"projector.vectors_PD"}
