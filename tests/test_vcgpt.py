"""VC-GPT: the stack against transformers' GPT-2 with cross-attention, and what the self-ensemble promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import VISION, fusion_config, make_fusion, make_language, make_text, make_visual
from hydra.utils import instantiate
from transformers import GPT2Config, GPT2Model

from src.contracts import UserError
from src.layers.cache import Cache

EXACT = {"rtol": 0, "atol": 1e-10}


def walk(fusion, language, visual, text, aux=None):
    return fusion.decode(language, fusion.encode(language, visual), text, aux=aux)


def logits(fusion, language, visual, text):
    return fusion.readout(language, walk(fusion, language, visual, text))


def test_stack_equals_transformers_gpt2_with_cross_attention():
    """The library's model as the stack: no positions, embeddings are h_G, encoder states are X."""
    language = make_language()
    fusion = make_fusion("vcgpt", language)
    D = language.spec.width
    config = GPT2Config(
        n_embd=D, n_layer=3, n_head=4, vocab_size=8, n_positions=16, add_cross_attention=True, use_cache=False
    )
    peer = GPT2Model(config).double().eval()
    state = {name: x for name, x in peer.state_dict().items() if name.startswith("wte")}
    state["wpe.weight"] = torch.zeros(16, D, dtype=torch.float64)
    state |= {f"ln_f.{n}": p for n, p in fusion.norm.named_parameters()}
    for j, layer in enumerate(fusion.stack):
        h = f"h.{j}."
        for theirs, ours in (("ln_1", layer.norm1), ("ln_cross_attn", layer.norm2), ("ln_2", layer.norm3)):
            state |= {f"{h}{theirs}.{n}": p for n, p in ours.named_parameters()}
        cross = layer.cross
        for theirs, ours in (
            ("attn.c_attn", [layer.qkv]),
            ("attn.c_proj", [layer.out]),
            ("crossattention.q_attn", [cross.q]),
            ("crossattention.c_attn", [cross.k, cross.v]),
            ("crossattention.c_proj", [cross.out]),
            ("mlp.c_fc", [layer.fc1]),
            ("mlp.c_proj", [layer.fc2]),
        ):
            state[f"{h}{theirs}.weight"] = torch.cat([o.weight for o in ours]).T
            state[f"{h}{theirs}.bias"] = torch.cat([o.bias for o in ours])
    peer.load_state_dict(state, strict=True)
    visual, text = make_visual(2), make_text(2, 7)
    hG_BTD, hF_BTD = walk(fusion, language, visual, text).chunk(2, dim=-1)
    torch.testing.assert_close(hG_BTD, language.hidden(text), **EXACT)
    X_IND = fusion.norm_v(fusion.W_v(visual.tokens_INC))
    want = peer(inputs_embeds=hG_BTD, encoder_hidden_states=X_IND).last_hidden_state
    torch.testing.assert_close(hF_BTD, want, **EXACT)
    mixed = hG_BTD @ fusion.W_G.T + hF_BTD @ fusion.W_F.T
    torch.testing.assert_close(logits(fusion, language, visual, text), mixed, **EXACT)


def test_zero_head_is_the_language_model_and_only_it_gets_a_gradient():
    language = make_language()
    fusion = make_fusion("vcgpt", language, "fusion.start=neutral", nudged=False)
    assert fusion.preserves_lm_at_init
    text = make_text(2, 6)
    out = logits(fusion, language, make_visual(2), text)
    assert torch.equal(out, language.unembed(language.hidden(text)))
    out.logsumexp(-1).sum().backward()
    assert fusion.W_F.grad.abs().max() > 0
    assert all(p.grad.abs().max() == 0 for p in fusion.stack.parameters())


def test_language_half_never_sees_the_picture():
    language = make_language()
    fusion = make_fusion("vcgpt", language)
    text = make_text(2, 6)
    one, two = (walk(fusion, language, make_visual(2, seed=s), text).chunk(2, dim=-1) for s in (2, 5))
    assert torch.equal(one[0], two[0])
    assert (one[1] - two[1]).abs().max() > 1e-4


def test_copies_start_at_the_word_embeddings_and_are_untied():
    language = make_language()
    for wg in ("copy_trained", "copy_frozen"):
        fusion = make_fusion("vcgpt", language, f"fusion.wg={wg}", nudged=False)
        assert torch.equal(fusion.W_G, language.unembedding()) and fusion.W_G is not language.unembedding()
        logits(fusion, language, make_visual(1), make_text(1, 4)).sum().backward()
        assert (fusion.W_G.grad is None) == (wg == "copy_frozen")
        assert "W_G" in fusion.state_dict()
    assert make_fusion("vcgpt", language, "fusion.wg=tied").W_G is None


def test_a_frozen_language_model_keeps_its_own_output():
    """wg=auto: what would be a trained copy of it is not one where the model is said to be frozen."""
    spec = make_language().spec
    frozen, trained = (
        instantiate(fusion_config("vcgpt"))(VISION, replace(spec, frozen=frozen)) for frozen in (True, False)
    )
    assert frozen.W_G is None and trained.W_G.requires_grad


def test_ablations_are_their_formulas():
    language = make_language()
    visual, text = make_visual(2), make_text(2, 5)
    whole = make_fusion("vcgpt", language)
    alone = make_fusion("vcgpt", language, "fusion.self_ensemble=false", "fusion.start=paper")
    alone.load_state_dict({n: x for n, x in whole.state_dict().items() if n != "W_G"})
    hG_BTD, hF_BTD = walk(whole, language, visual, text).chunk(2, dim=-1)
    rest = logits(whole, language, visual, text) - hG_BTD @ whole.W_G.T
    torch.testing.assert_close(logits(alone, language, visual, text), rest, **EXACT)
    grafting = make_fusion("vcgpt", language, "fusion.head=shared")
    grafting.load_state_dict({n: x for n, x in whole.state_dict().items() if n not in ("W_G", "W_F")})
    want = (hG_BTD + hF_BTD) @ language.unembedding().T
    torch.testing.assert_close(logits(grafting, language, visual, text), want, **EXACT)


def test_share_of_the_logits_is_noted():
    language = make_language()
    text, aux = make_text(2, 5), {}
    walk(make_fusion("vcgpt", language), language, make_visual(2), text, aux)
    (share_BT,) = aux["logit_share"]
    assert share_BT.shape == (2, 5) and ((share_BT > 0) & (share_BT < 1)).all()
    zero, aux = make_fusion("vcgpt", language, "fusion.start=neutral", nudged=False), {}
    walk(zero, language, make_visual(2), text, aux)
    assert aux["logit_share"][0].abs().max() == 0


def test_stack_has_a_cache_of_its_own():
    """Without the stack's own keys and values a later step would read only itself."""
    language = make_language()
    fusion = make_fusion("vcgpt", language)
    visual, text = make_visual(1), make_text(1, 5)
    memory, cache = fusion.encode(language, visual), Cache(1, 5)
    steps = [fusion.decode(language, memory, text.columns(t, t + 1), cache) for t in range(5)]
    torch.testing.assert_close(torch.cat(steps, 1), fusion.decode(language, memory, text), **EXACT)
    assert {f"fusion.{j}" for j in range(3)} < set(cache._slots)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("layers=0", "fusion.layers must be a whole number of at least 1"),
        ("head=both", "separate or shared"),
        ("wg=copied", "auto, copy_trained, copy_frozen or tied"),
        ("start=one", "neutral or paper"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(UserError, match=message):
        instantiate(fusion_config("vcgpt", f"fusion.{option}"))(VISION, make_language().spec)


def test_constant_logits_are_refused():
    with pytest.raises(UserError, match=r"add fusion\.start=paper"):
        make_fusion("vcgpt", make_language(), "fusion.start=neutral", "fusion.self_ensemble=false")
