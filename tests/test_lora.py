"""Adapters: they alone learn of the language model, whose own weights and start stay; runs, exports, wrong words."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import IN_BLOCKS, OBJECTIVES, Characters, make_fusion, make_text, make_visual, quiet_trainer, viewed
from families import make_family
from omegaconf import OmegaConf
from test_captioner import OPTIM, Pixels, make_batch
from test_export import SIZES, make_run
from test_seeing import make_gpt2, make_llama
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader

from src.build import parameter_counts
from src.captioner import Captioner
from src.comparison import gains
from src.config.earlier import use_earlier
from src.contracts import Batch
from src.decoding.greedy import Greedy
from src.errors import UserError
from src.export import export
from src.language.adapters import adapt, merge
from src.layers.cast_once import cast_once
from src.layers.laid_out import laid_out
from src.pretrained import restore_captioner
from src.records.folder import Saved
from src.training.frozen_states import FrozenStates

MATRICES = {  # of attention and of the MLP in a block
    "gpt2": (2, 2),
    "llama": (4, 3),
    "neox": (2, 2),
    "opt": (4, 2),
    "phi3": (2, 2),
    "gemma2": (4, 3),
    "gemma3": (4, 3),
    "olmo2": (4, 3),
    "smollm3": (4, 3),
}
FAMILIES = {name: partial(make_family, name) for name in MATRICES} | {"gpt2": make_gpt2, "llama": make_llama}
TARGETS = {"attention": (1, 0), "mlp": (0, 1), "all": (1, 1)}
REGIME = {"train_language": False, "train_vision": True, "lr_fusion": 0.01, "lr_language": 0.01, "lr_vision": 0.01}
TAKEN = "tests/golden/commit_25be8f1/run"  # a run that trained a language model
EXACT = {"rtol": 0, "atol": 1e-10}


def learnt(language):
    """``language`` with adapters that have left their start."""
    adapt(language, rank=3, alpha=5.0, targets="all")
    with torch.no_grad():
        for parameter in language.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return language


def make_captioner(name: str, family: str = "gpt2", regime=REGIME) -> Captioner:
    """Without pixels where ``regime`` does not train the encoder."""
    language = FAMILIES[family]()
    fusion = make_fusion(name, language, nudged=False)
    sees = fusion.sees and regime["train_vision"]
    how = {**regime, "train_vision": sees}
    vision = Pixels().double() if sees else None
    captioner = Captioner(vision, fusion, language, Characters(), how, OPTIM, Greedy(8), OBJECTIVES)
    adapt(language, rank=3, alpha=5.0, targets="all")
    return captioner


def step(captioner: Captioner, batch: Batch) -> float:
    """The loss before a step of AdamW."""
    optimiser = torch.optim.AdamW(captioner.parameter_groups())
    total = captioner.total(batch, captioner.losses(batch))
    total.backward()
    for name, parameter in captioner.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    optimiser.step()
    return total.item()


# --------------------------------------------------------------------------------------------------------------------
# the language model
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", TARGETS)
def test_it_begins_as_the_model_itself(family, targets):
    language, text = FAMILIES[family](), make_text(3, 7)
    plain = language.unembed(language.hidden(text))
    adapt(language, rank=3, alpha=5.0, targets=targets)
    assert torch.equal(language.unembed(language.hidden(text)), plain)
    learns = [name for name, parameter in language.named_parameters() if parameter.requires_grad]
    adapted = sum(n * asked for n, asked in zip(MATRICES[family], TARGETS[targets], strict=True))
    assert len(learns) == 2 * adapted * language.spec.layers
    assert all("lora_" in name for name in learns) and not language.training


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_peft_s_own_model_around_the_library_s(family):
    from peft import LoraConfig, get_peft_model

    language, plain, text = learnt(FAMILIES[family]()), FAMILIES[family](), make_text(3, 7)
    names = [*language.attention, *language.mlp]
    config = LoraConfig(r=3, lora_alpha=5.0, target_modules=names, fan_in_fan_out=family == "gpt2")
    wrapped = get_peft_model(plain.model, config).eval()
    wrapped.base_model.model.load_state_dict(language.model.state_dict())
    theirs = wrapped(input_ids=text.ids_BT).logits
    torch.testing.assert_close(language.unembed(language.hidden(text)), theirs, rtol=0, atol=1e-5)
    assert (theirs - FAMILIES[family]().model(input_ids=text.ids_BT).logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_it_is_the_library_s_own_model_again(family):
    language, text = learnt(FAMILIES[family]()), make_text(3, 7)
    adapted, plain = language.unembed(language.hidden(text)), FAMILIES[family]()
    merge(language)
    torch.testing.assert_close(language.unembed(language.hidden(text)), adapted, **EXACT)
    assert language.state_dict().keys() == plain.state_dict().keys()
    assert [type(module) for module in language.modules()] == [type(module) for module in plain.modules()]
    tied = language.unembedding() is language.model.get_input_embeddings().weight
    assert tied == (family in {"gpt2", "opt", "gemma2", "gemma3", "smollm3"})


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_laid_out_and_cast_it_gives_the_same(family):
    language, text = learnt(FAMILIES[family]().float()), make_text(3, 7)
    learns = [parameter for parameter in language.parameters() if parameter.requires_grad]
    gradients = []
    for language.recompute in (False, True):
        h_BTD = language.hidden(text)
        gradients.append(torch.autograd.grad(h_BTD.square().sum(), learns))
    assert all(map(torch.equal, *gradients))
    with torch.no_grad(), laid_out(language):
        torch.testing.assert_close(language.hidden(text), h_BTD.detach())
    with torch.autocast("cpu", torch.bfloat16):
        plain = language.hidden(text)
        with cast_once(language.modules(), torch.bfloat16):
            assert sum("forward" in vars(module) for module in language.modules()) > 3 * language.spec.layers
            assert torch.equal(language.hidden(text), plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), laid_out(language):
        torch.testing.assert_close(language.hidden(text).float(), plain.float(), rtol=0.1, atol=0.1)


# --------------------------------------------------------------------------------------------------------------------
# the captioner
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, family) for family in ("gpt2", "llama") for name in IN_BLOCKS),
        *(("cross_attention", family) for family in FAMILIES if family not in {"gpt2", "llama"}),
    ],
)
def test_adapters_and_fusion_learn_and_the_weights_beside_stay(name, family):
    captioner, batch = make_captioner(name, family).train(), make_batch()
    before, hashes = {key: x.clone() for key, x in captioner.named_parameters()}, captioner.frozen_hashes()
    losses = [step(captioner, batch) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert captioner.frozen_hashes() == hashes and hashes.keys() == {"language"}
    for key, parameter in captioner.named_parameters():
        if key.startswith("language."):
            assert torch.equal(parameter, before[key]) == ("lora_" not in key), key
    assert not any(module.training for module in captioner.language.modules())
    groups = {group["name"]: group for group in captioner.parameter_groups()}
    assert len(groups["adapters"]["params"]) == len(captioner.adapters) and groups["adapters"]["lr"] == 0.01
    counts = parameter_counts(captioner)
    assert counts["language"] == sum(p.numel() for p in FAMILIES[family]().parameters())
    assert counts["adapters"] == sum(p.numel() for p in captioner.adapters.values())
    assert counts["total"] == sum(counts.get(part, 0) for part in ("vision", "fusion", "language", "adapters"))
    if name == "blind":
        assert counts["trainable"] == counts["adapters"]


def test_a_checkpoint_holds_adapters_and_none_of_the_weights_beside():
    captioner = make_captioner("cross_attention")
    own = {name for name in captioner.state_dict() if name.startswith("language.")}
    assert own == captioner.adapters.keys() and all("lora_" in name for name in own)
    other = make_captioner("cross_attention")
    with torch.no_grad():
        for parameter in captioner.adapters.values():
            parameter.add_(1)
    assert other.load_state_dict(captioner.state_dict()).unexpected_keys == []
    assert all(torch.equal(p, captioner.adapters[name]) for name, p in other.adapters.items())
    (base,) = {p for name, p in other.named_parameters() if name.endswith("h.0.attn.c_attn.base_layer.weight")}
    with torch.no_grad():
        base.view(-1)[0] += 1e-9
    with pytest.raises(UserError, match="frozen language differs"):
        other.check_origin({"frozen": captioner.frozen_hashes()})


def test_states_of_a_language_model_that_is_adapted_are_not_kept(tmp_path):
    captioner, kept = make_captioner("vcgpt"), []
    walk = captioner.walk
    captioner.walk = lambda *given: kept.append(captioner.language.states) or walk(*given)
    trainer = quiet_trainer(max_steps=2, callbacks=[FrozenStates(tmp_path)])
    trainer.fit(captioner, DataLoader([make_batch(), make_batch()], batch_size=None))
    assert kept == [None, None]


def test_compiled_once_it_learns_the_same(monkeypatch):
    torch._dynamo.reset()
    counter, plain_compile = CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: plain_compile(f, dynamic=dynamic, backend=counter))
    captioner = make_captioner("cross_attention", regime={**REGIME, "train_vision": False})
    torch.set_default_dtype(torch.float64)  # which cached features are brought to
    try:
        for length in (9, 12, 7):
            batch = viewed(Batch([], make_text(6, length), visual=make_visual(3)))
            captioner._compiled = None
            found = []
            for _ in range(2):
                total = captioner.train().total(batch, captioner.losses(batch))
                found.append([total, *torch.autograd.grad(total, [*captioner.adapters.values()])])
                captioner.compile_training()
            torch.testing.assert_close(*found, **EXACT)
    finally:
        torch.set_default_dtype(torch.float32)


# --------------------------------------------------------------------------------------------------------------------
# runs and exports
# --------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def adapted_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "run"
    return make_run(folder, "fusion=vcgpt", "regime=lora", f"language.weights={TAKEN}", *SIZES[2:])


def plain_name(name: str) -> str:
    return name.replace(".base_layer", "")


def logits(captioner: Captioner, size: int = 64) -> torch.Tensor:
    """Of a text about two pictures of noise."""
    pixels = torch.randint(256, (2, 1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    text = make_text(2, 9)
    captioner.eval()
    with torch.no_grad():
        memory = captioner.memory(Batch(["a", "b"], text, pixels))
        hidden_BTE = captioner.fusion.decode(captioner.language, memory, text)
        return captioner.fusion.readout(captioner.language, hidden_BTE)


def test_a_run_comes_back_with_its_adapters(adapted_run):
    saved = Saved.at(adapted_run)
    assert all("lora_" in name for name in saved.part("language")) and saved.part("language")
    captioner = restore_captioner(adapted_run)
    assert captioner.fusion.W_G is None  # VC-GPT's own copy is for a language model whose weights learn
    found, plain = captioner.language.state_dict(), restore_captioner(Path(TAKEN)).language.state_dict()
    assert {plain_name(name) for name in found if "lora_" not in name} == plain.keys()
    assert all(torch.equal(found[name], plain[plain_name(name)]) for name in found if "lora_" not in name)


def test_an_export_says_the_same_and_knows_no_peft(adapted_run, tmp_path, monkeypatch):
    expected = logits(restore_captioner(adapted_run))
    about = export(adapted_run, tmp_path / "to", include=False)
    assert about["language"].included and "with the adapters of run" in about["language"].source
    monkeypatch.setitem(sys.modules, "peft", None)
    captioner = restore_captioner(tmp_path / "to")
    torch.testing.assert_close(logits(captioner), expected, rtol=0, atol=1e-5)
    assert not captioner.trains("language") and not captioner.adapters
    assert "lora" not in OmegaConf.load(tmp_path / "to" / "captioner.yaml").regime
    with pytest.raises(UserError, match=r"regime=lora needs a package: pip install peft\."):
        restore_captioner(adapted_run)


def test_a_language_model_is_taken_from_the_export_and_not_from_the_run(adapted_run, tmp_path):
    cfg = OmegaConf.load(adapted_run / "config.yaml")
    cfg.language.weights = str(adapted_run)
    with pytest.raises(UserError, match=r"has adapters beside the language model .*src\.export run="):
        use_earlier(cfg)
    export(adapted_run, tmp_path / "to", include=False)
    again = make_run(tmp_path / "again", "fusion=blind", "regime=lora", f"language.weights={tmp_path}/to", *SIZES[2:])
    own, found = (restore_captioner(folder).language.state_dict() for folder in (tmp_path / "to", again))
    assert all(torch.equal(own[plain_name(name)], x) for name, x in found.items() if "lora_" not in name)


def test_a_blind_run_with_adapters_is_not_the_start():
    class Blind:
        fusion, settings = "blind", {"regime.train_language": False}

    assert gains.trains_nothing(Blind())
    Blind.settings = {**Blind.settings, "regime.lora.rank": 8}
    assert not gains.trains_nothing(Blind())
