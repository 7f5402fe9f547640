"""What every projector promises, whichever mechanism reads what it hands out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import ROOT, VISION, fusion_config, make_fusion, make_language, make_text, make_visual, nudge
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.projectors.base import Projector

PROJECTORS = sorted(path.stem for path in (ROOT / "conf" / "projector").glob("*.yaml"))


def make_projector(name: str, language) -> Projector:
    written = OmegaConf.create({"it": OmegaConf.load(ROOT / "conf" / "projector" / f"{name}.yaml"), "dropout": 0.1})
    return instantiate(written.it)(VISION, language.spec).double().eval()


@pytest.mark.parametrize("name", PROJECTORS)
def test_what_comes_out_is_what_the_spec_says(name):
    projector = make_projector(name, make_language())
    seen, spec = projector(make_visual(2)), projector.spec
    assert seen.tokens_IMNC.shape == (2, 1, spec.tokens, spec.width)
    assert (seen.levels_IMKNC is None) == (spec.levels == 0)
    if spec.levels:
        assert seen.levels_IMKNC.shape == (2, 1, spec.levels, spec.tokens, spec.width)


@pytest.mark.parametrize("name", PROJECTORS)
def test_padding_is_not_looked_at(name):
    projector, visual = make_projector(name, make_language()), make_visual(2)
    junk = make_visual(2, seed=7, tokens=2)
    valid = torch.tensor([True] * VISION.tokens + [False] * 2).expand(2, 1, -1)
    padded = replace(visual, tokens_IMNC=torch.cat([visual.tokens_IMNC, junk.tokens_IMNC], 2), token_valid_IMN=valid)
    got = projector(replace(padded, levels_IMKNC=None)).tokens_IMNC[:, :, : projector.spec.tokens]
    torch.testing.assert_close(got, projector(visual).tokens_IMNC, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PROJECTORS)
@pytest.mark.parametrize("fusion", ["prefix", "cross_attention", "srau", "flamingo"])
def test_everything_in_it_learns_behind_any_mechanism(name, fusion):
    language = make_language()
    projector = make_projector(name, language).train()
    reader = nudge(instantiate(fusion_config(fusion))(projector.spec, language.spec).double())
    memory = reader.encode(language, projector(make_visual(2)))
    reader.readout(language, reader.decode(language, memory, make_text(4, 6))).logsumexp(-1).sum().backward()
    for part, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, part


def test_the_encoder_is_the_one_that_srau_trains():
    """Weights copied: the same levels, so the control has exactly its layers."""
    language, visual = make_language(), make_visual(2)
    srau = make_fusion("srau", language, "fusion.level_source=encoder")
    projector = make_projector("encoder", language)
    projector.layers.load_state_dict(srau.encoder.state_dict())
    levels_IKND, _ = srau._levels(visual)
    torch.testing.assert_close(projector(visual).levels_IMKNC[:, 0], levels_IKND, rtol=0, atol=0)
