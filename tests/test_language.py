"""The language models against transformers' own forward pass, and the promises of the seams.

All parameters are nudged by seeded noise first, so that no bias is zero, no norm is one and no head is symmetric.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from conftest import text_of
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as LibraryTokenizer
from torch._subclasses.fake_tensor import FakeTensorMode

from src.contracts import UserError
from src.language import load
from src.language.gpt2 import GPT2
from src.layers.cache import Cache

CONF = Path(__file__).parents[1] / "conf" / "language"
VOCABULARY, CONTEXT = 50, 32
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 24, "n_layer": 3, "n_head": 3}
LLAMA_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NEOX_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
OPT_SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "hidden_size": 24,
    "ffn_dim": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
GEMMA3_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # which lie outside of the vocabulary
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2_SIZES),
    "gpt2_layer_scaled": lambda: transformers.GPT2Config(**GPT2_SIZES, scale_attn_by_inverse_layer_idx=True),
    "gpt2_unscaled": lambda: transformers.GPT2Config(**GPT2_SIZES, scale_attn_weights=False),
    "llama": lambda: transformers.LlamaConfig(**LLAMA_SIZES),
    "llama_biased": lambda: transformers.LlamaConfig(**LLAMA_SIZES, attention_bias=True, attention_dropout=0.2),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_SIZES, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_SIZES, head_dim=10),
    "neox": lambda: transformers.GPTNeoXConfig(**NEOX_SIZES, rotary_pct=0.5),
    "neox_serial": lambda: transformers.GPTNeoXConfig(
        **NEOX_SIZES, use_parallel_residual=False, rotary_pct=1.0, attention_bias=False, tie_word_embeddings=True
    ),
    "opt": lambda: transformers.OPTConfig(**OPT_SIZES),
    "opt_350m": lambda: transformers.OPTConfig(**OPT_SIZES, do_layer_norm_before=False, word_embed_proj_dim=10),
    "phi3": lambda: transformers.Phi3Config(**LLAMA_SIZES, **NO_TOKENS, resid_pdrop=0.2),
    "phi3_partial": lambda: transformers.Phi3Config(
        **{**LLAMA_SIZES, "hidden_size": 32}, **NO_TOKENS, partial_rotary_factor=0.5, tie_word_embeddings=True
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **LLAMA_SIZES, head_dim=10, query_pre_attn_scalar=7, attn_logit_softcapping=2.0, final_logit_softcapping=1.5
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **LLAMA_SIZES, head_dim=10, query_pre_attn_scalar=7, layer_types=GEMMA3_TYPES
    ),
    "olmo2": lambda: transformers.Olmo2Config(**LLAMA_SIZES),
    "smollm3": lambda: transformers.SmolLM3Config(**LLAMA_SIZES, **NO_TOKENS, no_rope_layers=[1, 0, 1]),
}
NO_NORM_IN_FRONT = {"olmo2", "opt_350m"}
IMPLEMENTATION = {"gemma2": "eager"}  # of the library's attention: the others do not bound scores
ALL = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(autouse=True)
def exact_softmax(monkeypatch):
    """The library's eager attention takes softmax in float32, whatever it gets, which would hide errors below 1e-6."""
    softmax = torch.nn.functional.softmax
    precise = lambda x, dim, dtype: softmax(x, dim, dtype=torch.promote_types(x.dtype, dtype))  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "softmax", precise)


@dataclass(frozen=True)
class Words:
    """The part of a tokenizer that a language model looks at."""

    size: int = VOCABULARY
    bos: int = 1
    eos: int = 2
    pad: int = 2

    def __len__(self) -> int:
        return self.size


def build(kind: str, dtype: torch.dtype = torch.float64):
    """The adapter over a nudged random model, in eval mode."""
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION.get(kind))
    lm = load.FAMILIES[config.model_type](model, Words())
    lm.to(dtype).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if dtype == torch.float64:
        make_norms_exact(lm)
    return lm


def make_norms_exact(lm) -> None:
    """The library's RMSNorm rounds to float32 inside, which would hide errors below 1e-6; both sides share modules."""
    for module in lm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            gemma = hasattr(module, "eps")  # whose scale is 1 + w
            eps = module.eps if gemma else module.variance_epsilon
            module.forward = lambda x, m=module, eps=eps, one=int(gemma): (
                (one + m.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
            )


def draw(rows: int, columns: int, seed: int = 1):
    ids_BT = torch.randint(3, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))
    return ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)


def left_padded():
    """Four rows of 0, 3, 5 and 8 padding columns in front of 9, 6, 4 and 1 tokens."""
    ids_BT, valid_BT = draw(4, 9)
    for row, padding in enumerate((0, 3, 5, 8)):
        ids_BT[row, :padding], valid_BT[row, :padding] = 2, False
    return ids_BT, valid_BT


def logits(lm, ids_BT, valid_BT, ragged=False, cache=None):
    return lm.unembed(lm.hidden(text_of(ids_BT, valid_BT, ragged), cache))


def close(a, b, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --------------------------------------------------------------------------------------------------------------------
# equality with the library
# --------------------------------------------------------------------------------------------------------------------
@ALL
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
@torch.no_grad()
def test_full_pass_equals_the_library(kind, dtype, atol):
    lm = build(kind, dtype)
    ids_BT, valid_BT = draw(3, 11)
    ours_BTV = logits(lm, ids_BT, valid_BT)
    assert ours_BTV.std() > 0.1
    close(ours_BTV, lm.model(ids_BT).logits, atol)


@ALL
@torch.no_grad()
def test_padded_batch_equals_the_library(kind):
    lm = build(kind)
    ids_BT, valid_BT = left_padded()
    positions_BT = (valid_BT.cumsum(1) - 1).clamp_min(0)
    library_BTV = lm.model(ids_BT, attention_mask=valid_BT.long(), position_ids=positions_BT).logits
    close(logits(lm, ids_BT, valid_BT, ragged=True)[valid_BT], library_BTV[valid_BT])


@ALL
def test_gradients_equal_the_library(kind):
    lm = build(kind)
    ids_BT, valid_BT = draw(2, 7)
    target_BTV = torch.randn(2, 7, VOCABULARY, dtype=torch.float64)
    parameters = list(lm.parameters())
    ours = torch.autograd.grad((logits(lm, ids_BT, valid_BT) * target_BTV).sum(), parameters)
    library = torch.autograd.grad((lm.model(ids_BT).logits * target_BTV).sum(), parameters)
    for a, b in zip(ours, library, strict=True):
        close(a, b, 1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "llama_biased"])
def test_dropout_acts_in_training_alone(kind):
    lm = build(kind).train()
    ids_BT, valid_BT = draw(2, 7)
    torch.manual_seed(5)
    once_BTV = logits(lm, ids_BT, valid_BT)
    assert (once_BTV - logits(lm, ids_BT, valid_BT)).abs().max() > 0.1
    torch.manual_seed(5)
    close(once_BTV, logits(lm, ids_BT, valid_BT))  # the same random numbers at the same places
    assert not any(isinstance(module, torch.nn.Dropout) for module in lm.modules())  # all are the fast kind


@pytest.mark.parametrize("kind", ["gpt2", "llama_biased"])
def test_recomputing_keeps_less_and_changes_nothing(kind):
    lm = build(kind).train()  # with dropout
    ids_BT, valid_BT = draw(2, 7)
    parameters = list(lm.parameters())

    def learn() -> tuple[int, list[torch.Tensor]]:
        """Numbers kept for the backward pass; the loss and its gradients."""
        kept: list[int] = []
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
            loss = logits(lm, ids_BT, valid_BT).square().mean()
        return sum(kept), [loss.detach(), *torch.autograd.grad(loss, parameters)]

    plain, expected = learn()
    lm.recompute = True
    less, ours = learn()
    assert less < 0.6 * plain
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


@ALL
def test_state_dict_is_the_library_s(kind):
    lm = build(kind)
    fresh = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    assert list(lm.state_dict()) == [f"model.{key}" for key in fresh.state_dict()]
    lm.blocks()
    assert sum(p.numel() for p in lm.parameters()) == sum(p.numel() for p in fresh.parameters())


@ALL
@torch.no_grad()
def test_block_norm_is_the_one_before_attention(kind):
    lm = build(kind)
    h_BTD = torch.randn(2, 3, lm.spec.width, dtype=torch.float64)
    layers = next(x for x in lm.modules() if isinstance(x, torch.nn.ModuleList) and len(x) == lm.spec.layers)
    name = {"gpt2": "ln_1", "opt": "self_attn_layer_norm"}.get(kind.partition("_")[0], "input_layernorm")
    for block, layer in zip(lm.blocks(), layers, strict=True):
        norm = None if kind in NO_NORM_IN_FRONT else getattr(layer, name)
        close(block.norm(h_BTD), h_BTD if norm is None else norm(h_BTD))


@ALL
@torch.no_grad()
def test_what_a_mechanism_adds_between_the_branches_is_read_by_the_mlp_unless_they_stand_side_by_side(kind):
    lm = build(kind)
    ids_BT, valid_BT = draw(2, 5)
    h_BTD, walk = lm.begin(lm.embed(ids_BT), text_of(ids_BT, valid_BT))
    added_BTD = torch.randn_like(h_BTD)
    for block in lm.blocks():
        a_BTD = block.attend(h_BTD, walk)
        h_BTD, changed_BTD = block.feed(a_BTD), block.feed(a_BTD + added_BTD)
        assert ((changed_BTD - h_BTD - added_BTD).abs().max() < 1e-12) == (kind == "neox")
        assert torch.equal(a_BTD, h_BTD) == (kind == "neox")


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_bounded_products_with_the_unembedding_are_the_logits(kind):
    lm = build(kind)
    h_XD = torch.randn(5, lm.spec.width, dtype=torch.float64)
    products_XV = h_XD @ lm.unembedding().T
    close(lm.bounded(products_XV), lm.unembed(h_XD))
    assert torch.equal(lm.bounded(products_XV), products_XV) == (kind != "gemma2")


@torch.no_grad()
def test_layers_without_positions_do_not_tell_the_order_of_words():
    lm = build("smollm3")
    h_BTD = torch.randn(1, 5, lm.spec.width, dtype=torch.float64)
    swapped_BTD = h_BTD[:, [1, 0, 2, 3, 4]]
    walk = lm.walk(text_of(torch.zeros(1, 5, dtype=torch.long)), torch.float64)
    same = [torch.allclose(b.attend(h_BTD, walk)[:, 4], b.attend(swapped_BTD, walk)[:, 4]) for b in lm.blocks()]
    assert same == [False, True, False]


# --------------------------------------------------------------------------------------------------------------------
# cache and padding
# --------------------------------------------------------------------------------------------------------------------
def cached(lm, ids_BT, valid_BT, cuts, ragged=False):
    """Logits of a text fed in pieces that end at ``cuts``."""
    cache, pieces = Cache(len(ids_BT), ids_BT.shape[1]), []
    for start, stop in zip((0, *cuts[:-1]), cuts, strict=True):
        pieces.append(logits(lm, ids_BT[:, start:stop], valid_BT[:, start:stop], ragged and start == 0, cache))
    return torch.cat(pieces, 1)


@ALL
@pytest.mark.parametrize("cuts", [(9,), (5, 6, 7, 8, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9), (4, 7, 9), (3, 4, 9)])
@torch.no_grad()
def test_cached_equals_full(kind, cuts):
    lm = build(kind)
    ids_BT, valid_BT = draw(3, 9)
    close(cached(lm, ids_BT, valid_BT, cuts), logits(lm, ids_BT, valid_BT))


@ALL
@pytest.mark.parametrize("cuts", [(9,), (6, 7, 8, 9), (4, 7, 9)])
@torch.no_grad()
def test_left_padded_rows_equal_each_row_alone(kind, cuts):
    lm = build(kind)
    ids_BT, valid_BT = left_padded()
    together_BTV = cached(lm, ids_BT, valid_BT, cuts, ragged=True)
    assert together_BTV.isfinite().all()
    for row, keep in enumerate(valid_BT):
        alone_1TV = logits(lm, ids_BT[row, keep][None], valid_BT[row, keep][None])
        close(together_BTV[row, keep][None], alone_1TV)


@ALL
@torch.no_grad()
def test_padding_between_prefix_and_text(kind):
    """Prefix vectors in front of left-padded text, as a prefix mechanism makes them."""
    lm = build(kind)
    ids_BT, valid_BT = left_padded()
    prefix_BPD = torch.randn(4, 3, lm.spec.width, dtype=torch.float64)

    def walk(prefix_BPD, ids_BT, valid_BT, ragged):
        inputs_BTD = torch.cat([prefix_BPD, lm.embed(ids_BT)], 1)
        valid_BT = torch.cat([valid_BT.new_ones(len(ids_BT), 3), valid_BT], 1)
        h_BTD, shared = lm.begin(inputs_BTD, text_of(valid_BT.long(), valid_BT, ragged))
        for block in lm.blocks():
            h_BTD = block.feed(block.attend(h_BTD, shared))
        return lm.final_norm(h_BTD)[:, 3:]

    together_BTD = walk(prefix_BPD, ids_BT, valid_BT, ragged=True)
    for row, keep in enumerate(valid_BT):
        alone_1TD = walk(prefix_BPD[row, None], ids_BT[row, keep][None], valid_BT[row, keep][None], ragged=False)
        close(together_BTD[row, keep][None], alone_1TD)


@ALL
@torch.no_grad()
def test_right_padding_changes_nothing(kind):
    lm = build(kind)
    ids_BT, valid_BT = draw(3, 9)
    full_BTV = logits(lm, ids_BT, valid_BT)
    ids_BT, valid_BT = ids_BT.clone(), valid_BT.clone()
    ids_BT[1, 5:], valid_BT[1, 5:] = 2, False
    close(logits(lm, ids_BT, valid_BT)[valid_BT], full_BTV[valid_BT])


@ALL
@pytest.mark.parametrize("ragged", [False, True])
@torch.no_grad()
def test_beams_equal_recomputation(kind, ragged):
    """Prefill, two beams a row, then a step each after one order, another, none, and two at once (one drops rows)."""
    lm = build(kind)
    ids_BT, valid_BT = left_padded() if ragged else draw(4, 9)
    next_ids_BT, next_valid_BT = draw(8, 5, seed=7)
    cache = Cache(4, 14)
    logits(lm, ids_BT, valid_BT, ragged, cache)
    cache.repeat(2)
    ids_BT, valid_BT = ids_BT.repeat_interleave(2, 0), valid_BT.repeat_interleave(2, 0)
    same, mixed = [0, 1, 2, 3, 4, 5, 6, 7], [1, 1, 2, 7, 0, 4, 6, 3]
    for step, orders in enumerate(([same], [mixed], [], [mixed, [5, 0, 2]], [])):
        for order in orders:
            cache.select(torch.tensor(order))
            ids_BT, valid_BT = ids_BT[order], valid_BT[order]
        ids_BT = torch.cat([ids_BT, next_ids_BT[: len(ids_BT), step, None]], 1)
        valid_BT = torch.cat([valid_BT, next_valid_BT[: len(valid_BT), step, None]], 1)
        stepped_BTV = logits(lm, ids_BT[:, -1:], valid_BT[:, -1:], False, cache)
        close(stepped_BTV, logits(lm, ids_BT, valid_BT, ragged)[:, -1:])


@ALL
@torch.no_grad()
def test_no_column_looks_ahead(kind):
    """Padding columns included: what they compute is unused, but must not be a way around causality."""
    lm = build(kind)
    ids_BT, valid_BT = left_padded()
    before_BTD = lm.hidden(text_of(ids_BT, valid_BT, ragged=True))
    ids_BT[:, -1] = 3 + (ids_BT[:, -1] + 1) % 40
    after_BTD = lm.hidden(text_of(ids_BT, valid_BT, ragged=True))
    close(after_BTD[:, :-1], before_BTD[:, :-1])
    assert ((after_BTD - before_BTD)[:, -1].abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fast_paths_make_no_mask(kind):
    lm = build(kind)
    ids_BT, _ = draw(2, 5)
    cache = Cache(2, 8)
    _, prefill = lm.begin(lm.embed(ids_BT), text_of(ids_BT), cache)
    _, step = lm.begin(lm.embed(ids_BT[:, :1]), text_of(ids_BT[:, :1]), cache)
    _, chunk = lm.begin(lm.embed(ids_BT[:, :2]), text_of(ids_BT[:, :2]), cache)
    assert (prefill.bias, prefill.causal) == (None, True)
    assert (step.bias, step.causal) == (None, False)
    assert chunk.bias.shape == (2, 1, 2, 8) and not chunk.causal
    assert prefill.positions_RT.tolist() == [[0, 1, 2, 3, 4]] and chunk.positions_RT.tolist() == [[6, 7]]


@ALL
@pytest.mark.parametrize("ragged", [False, True])
def test_no_value_is_read_from_the_device(kind, ragged):
    """Tensors without values raise as soon as Python asks for one."""
    with FakeTensorMode(), torch.no_grad():
        config = CONFIGS[kind]()
        lm = load.FAMILIES[config.model_type](transformers.AutoModelForCausalLM.from_config(config), Words()).eval()
        ids_BT = torch.zeros(2, 5, dtype=torch.long)
        valid_BT = torch.ones(2, 5, dtype=torch.bool)
        cache = Cache(2, 8)
        for columns in (5, 2, 1):
            step_BTV = logits(lm, ids_BT[:, :columns], valid_BT[:, :columns], ragged, cache)
    assert step_BTV.shape == (2, 1, VOCABULARY)


# --------------------------------------------------------------------------------------------------------------------
# precision and gradients
# --------------------------------------------------------------------------------------------------------------------
@ALL
def test_bfloat16_is_finite_with_left_padding(kind):
    lm = build(kind, torch.float32)
    ids_BT, valid_BT = left_padded()
    with torch.autocast("cpu", torch.bfloat16):
        half_BTV = logits(lm, ids_BT, valid_BT, ragged=True)
        half_BTV[valid_BT].float().logsumexp(-1).mean().backward()
    assert half_BTV.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in lm.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        steps_BTV = cached(lm, ids_BT, valid_BT, (6, 7, 9), ragged=True)
        logits(lm, ids_BT, valid_BT, ragged=True, cache=(cache := Cache(4, 9)))
    assert {x.dtype for slot in cache._slots.values() for x in slot.buffers} == {torch.bfloat16}  # not twice the memory
    full_BTV = logits(lm, ids_BT, valid_BT, ragged=True)
    for rough_BTV in (half_BTV, steps_BTV):
        assert (rough_BTV - full_BTV)[valid_BT].abs().mean() < 0.05 * full_BTV.std()


@ALL
@torch.no_grad()
def test_bfloat16_weights(kind):
    """No farther from what the same weights give in full precision than the library's own pass."""
    lm = build(kind, torch.bfloat16)
    ids_BT, valid_BT = draw(3, 11)
    ours_BTV, library_BTV = logits(lm, ids_BT, valid_BT), lm.model(ids_BT).logits
    full_BTV = logits(lm.float(), ids_BT, valid_BT)
    ours, library = ((x_BTV - full_BTV).abs().mean() for x_BTV in (ours_BTV, library_BTV))
    assert ours_BTV.dtype == torch.bfloat16 and ours < 1.3 * library < 0.07 * full_BTV.std()
    ids_BT, valid_BT = left_padded()
    assert logits(lm.bfloat16(), ids_BT, valid_BT, ragged=True).isfinite().all()


@ALL
def test_frozen_model_passes_gradients_to_its_inputs(kind):
    lm = build(kind).requires_grad_(False)
    ids_BT, valid_BT = left_padded()
    inputs_BTD = lm.embed(ids_BT).requires_grad_()
    h_BTD, walk = lm.begin(inputs_BTD, text_of(ids_BT, valid_BT, ragged=True))
    for block in lm.blocks():
        h_BTD = block.feed(block.attend(h_BTD, walk))
    lm.final_norm(h_BTD)[:, -1].pow(3).sum().backward()  # of the last column only
    assert (inputs_BTD.grad[valid_BT].abs().sum(-1) > 1e-6).all()
    assert (inputs_BTD.grad[~valid_BT] == 0).all()


# --------------------------------------------------------------------------------------------------------------------
# loading, and what it refuses
# --------------------------------------------------------------------------------------------------------------------
def save(folder: Path, kind: str):
    model = build(kind, torch.float32).model
    model.save_pretrained(folder)
    return model


@ALL
@torch.no_grad()
def test_folder_through_its_yaml(kind, tmp_path):
    saved = save(tmp_path, kind)
    config = OmegaConf.load(CONF / "hub.yaml")
    config.name = str(tmp_path)
    lm = instantiate(config.model)(Words())
    assert lm.training and all(module.training for module in lm.modules())
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    ids_BT, valid_BT = draw(2, 5)
    close(logits(lm.eval(), ids_BT, valid_BT), saved(ids_BT).logits, 2e-5)
    config.init = "random"
    drawn = instantiate(config.model)(Words())
    weights = drawn.state_dict()
    assert any((weights[f"model.{key}"] != value).any() for key, value in saved.state_dict().items())
    assert lm.pretrained and not drawn.pretrained


def test_tiny_through_its_yaml():
    lm = instantiate(OmegaConf.load(CONF / "tiny.yaml").model, width=32)(Words(size=70))
    assert isinstance(lm, GPT2)
    assert (lm.spec.width, lm.spec.layers, lm.spec.heads, lm.spec.context) == (32, 4, 4, 128)
    assert (lm.spec.vocabulary, lm.spec.bos, lm.spec.eos, lm.spec.pad) == (70, 1, 2, 2)


def test_gpt2_yaml_needs_no_network_for_random_weights(monkeypatch):
    made = []
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_config", lambda config, **_: made.append(config) or small())
    config = OmegaConf.load(CONF / "gpt2.yaml")
    config.init = "random"
    instantiate(config.model)(Words(size=50257))
    assert (made[0].n_embd, made[0].n_layer, made[0].vocab_size) == (768, 12, 50257)


def small():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2_SIZES, "vocab_size": 50257}))


@pytest.mark.parametrize("endpoint", ["offline switch", "http://127.0.0.1:9"])
def test_hub_out_of_reach_is_said_quickly(endpoint, monkeypatch):
    if endpoint == "offline switch":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"nobody/nothing.*give its folder") as caught:
        load.pretrained(Words(), "nobody/nothing")
    assert time.perf_counter() - start < 10
    assert "\n" not in str(caught.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match="no readable language model"):
        load.pretrained(Words(), str(tmp_path))


def test_broken_weights_are_named(tmp_path):
    save(tmp_path, "gpt2")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"no readable language model: model\.safetensors: .*deserializing"):
        load.pretrained(Words(), str(tmp_path))


def changed(folder: Path, kind: str, **options) -> str:
    """A saved model whose config.json says something else."""
    save(folder, kind)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return str(folder)


ROTATION = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
TURNED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *(
            ("llama", {"quantization_config": {"quant_method": method}}, f"are quantised \\({method}\\)")
            for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "mxfp4", "one_of_tomorrow")
        ),
        ("gpt2", {"quantization_config": {"bits": 4}}, "are quantised"),
        ("llama", {"vocab_size": 52}, r"lm_head.weight is \[50, 24\] among the weights and \[52, 24\] by the config"),
        ("llama", {"intermediate_size": 44}, r"layers.0.mlp.down_proj.weight is \[24, 40\] .* \[24, 44\]"),
        ("llama", {"num_hidden_layers": 2}, r"of 2 layers, leaves out: model\.layers\.2\.\S+, 9 in all"),
        ("gpt2", {"n_layer": 2}, r"of 2 layers, leaves out: transformer\.h\.2\."),
        ("llama_biased", {"attention_bias": False}, r"leaves out: \S+bias, 12 in all"),
        ("llama", {"rope_parameters": ROTATION | {"rope_type": "spiral"}}, "rope_parameters cannot be .*'spiral'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, r"config\.json: .*factor"),
        ("llama", {"rope_parameters": [1]}, r"config\.json: .*rope_parameters"),
        ("llama", {"rope_parameters": ROTATION | {"factor": 0.0}}, "not finite"),
        ("llama", {"rope_parameters": ROTATION | {"partial_rotary_factor": 0.5}}, "turn 4 of a head's 6 numbers"),
        ("llama", {"hidden_act": "tango"}, r"config\.json of \S+ describes no model: KeyError 'tango'"),
        ("llama", {"dtype": "float7"}, "float7"),
        ("neox", {"rope_parameters": TURNED | {"partial_rotary_factor": 1.5}}, "turn 12 of a head's 8 numbers"),
        ("neox", {"rope_parameters": TURNED | {"rope_theta": 0.0}}, "not finite"),
        ("phi3", {"rope_parameters": TURNED | {"rope_type": "linear", "factor": 2.0}}, "rope_parameters.*linear"),
        ("gemma3", {"rope_parameters": {"sliding_attention": ROTATION | {"factor": 0.0}}}, "not finite"),
        ("gemma2", {"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "chunked_attention"),
        ("gemma2", {"use_bidirectional_attention": True}, "has use_bidirectional_attention=True, which is not comp"),
        ("gemma3", {"use_bidirectional_attention": True}, "has use_bidirectional_attention=True, which is not comp"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "has attn_logit_softcapping=50.0, which is not computed here"),
        ("opt", {"layerdrop": 0.1}, "has layerdrop=0.1, which is not computed here; give a model without"),
        ("opt", {"word_embed_proj_dim": 12}, r"embed_tokens.weight is \[50, 24\] .* \[50, 12\]"),
        ("olmo2", {"num_hidden_layers": 2}, r"of 2 layers, leaves out: model\.layers\.2\."),
        ("neox", {"num_hidden_layers": 2}, r"of 2 layers, leaves out: gpt_neox\.layers\.2\."),
        ("llama", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}, "code of its own, which is never run"),
    ],
)
def test_checkpoints_that_would_be_opened_as_another_model(kind, options, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        load.pretrained(Words(), changed(tmp_path, kind, **options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_quantised_architecture_may_be_drawn_at_random(tmp_path):
    name = changed(tmp_path, "llama", quantization_config={"quant_method": "awq"})
    assert not load.pretrained(Words(), name, init="random").pretrained


def test_weights_beside_the_decoder_are_no_fault(tmp_path):
    """A head of another task, and angles that older versions saved."""
    save(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    others = {"score.weight": torch.ones(2, 24), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    save_file({**load_file(path), **others}, path, metadata={"format": "pt"})
    assert load.pretrained(Words(), str(tmp_path)).pretrained


@torch.no_grad()
def test_pythia_s_own_files_hold_masks_and_angles_and_name_the_output_differently(tmp_path):
    saved = save(tmp_path, "neox")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "embed_out.weight" in tensors
    layer = "gpt_neox.layers.1.attention"
    tensors |= {f"{layer}.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), f"{layer}.masked_bias": torch.tensor(-1e9)}
    tensors[f"{layer}.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, path, metadata={"format": "pt"})
    ids_BT, valid_BT = draw(2, 5)
    lm = load.pretrained(Words(), str(tmp_path)).eval()
    close(logits(lm, ids_BT, valid_BT), saved(ids_BT).logits, 2e-5)


@pytest.mark.parametrize("alone", [False, True])
def test_an_adapter_is_not_left_out(alone, tmp_path):
    if not alone:
        save(tmp_path, "llama")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config\.json\).*merge_and_unload"):
        load.pretrained(Words(), str(tmp_path))


def test_the_home_folder_may_be_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "model", "llama")
    assert load.pretrained(Words(), "~/model").spec.layers == 3


def test_missing_weights(tmp_path):
    model = save(tmp_path, "llama")
    kept = {key: value for key, value in model.state_dict().items() if "layers.1.mlp" not in key}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(UserError, match="lacks weights"):
        load.pretrained(Words(), str(tmp_path))


def test_unknown_family(tmp_path):
    transformers.GPTNeoConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"gpt_neo model.*gpt2, gpt_neox, llama, .*, smollm3"):
        load.pretrained(Words(), str(tmp_path))


def test_unknown_init():
    with pytest.raises(UserError, match="must be pretrained or random"):
        load.pretrained(Words(), "gpt2", init="zeros")


@pytest.mark.parametrize("words", [Words(size=VOCABULARY + 1), Words(size=30), Words(eos=VOCABULARY), Words(bos=-1)])
def test_wrong_tokenizer(words, tmp_path):
    save(tmp_path, "gpt2")
    with pytest.raises(UserError, match="tokenizer that belongs to the model"):
        load.pretrained(words, str(tmp_path))


def test_tiny_width_and_heads_disagree():
    with pytest.raises(UserError, match=r"heads=4 must divide language\.model\.width=30"):
        load.tiny(Words(), width=30, heads=4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_context_overflow(kind):
    lm = build(kind)
    ids_BT, valid_BT = draw(1, CONTEXT + 1)
    with pytest.raises(UserError, match=f"{CONTEXT + 1} positions"):
        lm.hidden(text_of(ids_BT, valid_BT))
    cache = Cache(1, CONTEXT + 8)
    lm.hidden(text_of(ids_BT[:, :CONTEXT]), cache)
    with pytest.raises(UserError, match="reads at most"):
        lm.hidden(text_of(ids_BT[:, :1]), cache)
    assert cache.length == CONTEXT


def windowed(kind: str, layer_types: list[str] | None = None):
    """A model with a window of 6; ``layer_types``: which layers have it."""
    config, config.sliding_window = (config := CONFIGS[kind]()), 6
    if layer_types is not None:
        config.layer_types = layer_types
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION.get(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return load.FAMILIES[config.model_type](model, Words()).eval()


@pytest.mark.parametrize(
    ("kind", "layer_types"),
    [("mistral", None), ("phi3", None), ("gemma2", GEMMA3_TYPES), ("gemma3", None), ("smollm3", GEMMA3_TYPES)],
)
@torch.no_grad()
def test_sliding_window_bounds_the_context(kind, layer_types):
    """Up to the window plain causal attention is what the library computes; beyond it we refuse."""
    lm = windowed(kind, layer_types)
    assert lm.spec.context == 6
    ids_BT, valid_BT = draw(2, 7)
    close(logits(lm, ids_BT[:, :6], valid_BT[:, :6]), lm.model(ids_BT[:, :6]).logits, 2e-5)
    with pytest.raises(UserError):
        lm.hidden(text_of(ids_BT, valid_BT))
    wide = lm.model(ids_BT).logits[:, 6]
    lm.model.config.sliding_window = CONTEXT
    assert (lm.model(ids_BT).logits[:, 6] - wide).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "smollm3"])
def test_a_window_that_no_layer_has_bounds_nothing(kind):
    assert windowed(kind, ["full_attention"] * 3).spec.context == CONTEXT


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 6,
    "rope_theta": 10000.0,
}


@pytest.mark.parametrize("kind", ["llama", "phi3"])
@torch.no_grad()
def test_longrope_bounds_the_context(kind):
    """Beyond the original length all angles change, those of keys in the cache too: the library's own decoding with a
    cache differs from its full pass there."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA_SIZES, rope_parameters=LONGROPE)
    if kind == "phi3":  # half of each head is turned
        sizes = {**LLAMA_SIZES, **NO_TOKENS, "hidden_size": 48, "original_max_position_embeddings": 6}
        config = transformers.Phi3Config(**sizes, rope_parameters=LONGROPE | {"partial_rotary_factor": 0.5})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    lm = load.FAMILIES[config.model_type](model, Words()).eval()
    assert lm.spec.context == 6
    ids_BT, valid_BT = draw(2, 7)
    full_BTV = logits(lm, ids_BT[:, :6], valid_BT[:, :6])
    close(full_BTV, model(ids_BT[:, :6]).logits, 1e-5)
    close(cached(lm, ids_BT[:, :6], valid_BT[:, :6], (3, 4, 5, 6)), full_BTV, 1e-5)
    with pytest.raises(UserError, match="reads at most 6"):
        lm.hidden(text_of(ids_BT, valid_BT))
    long_BTV = model(ids_BT).logits
    first = model(ids_BT[:, :6], use_cache=True)
    step_BTV = model(ids_BT[:, 6:], past_key_values=first.past_key_values).logits
    assert (step_BTV[:, -1] - long_BTV[:, -1]).abs().max() > 1e-3


# --------------------------------------------------------------------------------------------------------------------
# a real checkpoint
# --------------------------------------------------------------------------------------------------------------------
@pytest.mark.skipif("STORIES260K" not in os.environ, reason="STORIES260K does not name the folder of that checkpoint")
@torch.no_grad()
def test_pretrained_llama_tells_the_same_story():
    folder = os.environ["STORIES260K"]
    vocabulary = LibraryTokenizer.from_file(f"{folder}/tokenizer.json")
    lm = load.pretrained(Words(size=vocabulary.get_vocab_size(), bos=1, eos=2, pad=2), folder).eval()
    ids_BT = torch.tensor([[1, *vocabulary.encode("Once upon a time", add_special_tokens=False).ids]])
    prompt = ids_BT.shape[1]
    library_BT = lm.model.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=60, pad_token_id=2
    )
    cache, new_BT = Cache(1, prompt + 60), ids_BT
    for _ in range(60):
        next_BT = logits(lm, new_BT, torch.ones_like(new_BT, dtype=torch.bool), False, cache)[:, -1:].argmax(-1)
        ids_BT, new_BT = torch.cat([ids_BT, next_BT], 1), next_BT
    assert ids_BT[:, : library_BT.shape[1]].tolist() == library_BT.tolist()
    assert "little" in vocabulary.decode(ids_BT[0].tolist())
