"""Flamingo: against Idefics by weight copying and slow loops, and what tokens of several pictures may read."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import VISION, fusion_config, make_fusion, make_language, make_text
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F
from transformers import IdeficsConfig
from transformers.models.idefics.modeling_idefics import IdeficsGatedCrossAttentionLayer
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from src.contracts import LanguageSpec, Text, UserError, VisionSpec, Visual
from src.fusion import flamingo
from src.layers.cache import Cache
from src.layers.gated_cross_attention import GatedCrossAttention
from src.layers.resampler import FeedForward

EXACT = {"rtol": 0, "atol": 1e-10}
SMALL = ("fusion.latents=4", "fusion.resampler_layers=2", "fusion.heads=2", "fusion.head_width=6")
PHI = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [0, 1, 1, 2, 2, 2, 2, 2, 3, 3]])
MODES = pytest.mark.parametrize("last_image", [True, False], ids=["own", "previous"])


def small(language, *overrides, nudged=True):
    """Gates far from 0, so that no difference hides behind them."""
    fusion = make_fusion("flamingo", language, *SMALL, *overrides, nudged=nudged)
    if nudged:
        for layer in fusion.layers:
            if layer.alpha is not None:
                layer.alpha.data.fill_(0.8)
                layer.beta.data.fill_(-0.4)
    return fusion


def pictures(contexts=2, M=3, tokens=VISION.tokens, seed=2, frames=1) -> Visual:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(contexts, M, tokens * frames, VISION.width, generator=g, dtype=torch.float64)
    return Visual(X, X.mean(2)[..., : VISION.pooled_width], frames=frames)


def document(phi_BT=PHI) -> Text:
    return replace(make_text(*phi_BT.shape), phi_BT=phi_BT)


def hidden(fusion, language, visual, text, cache=None):
    return fusion.decode(language, fusion.encode(language, visual), text, cache)


def with_picture(visual, m, seed=9) -> Visual:
    """The same pictures, the m-th (1-based) of every context replaced."""
    X = visual.tokens_IMNC.clone()
    X[:, m - 1] = pictures(*X.shape[:2], seed=seed).tokens_IMNC[:, m - 1]
    return replace(visual, tokens_IMNC=X)


def cut_self_attention(language, text, monkeypatch):
    """Self-attention inside chunks only (tokens of the same phi): what is left between chunks is the fusion."""
    begin = language.begin
    later_TT = torch.ones(text.ids_BT.shape[1], text.ids_BT.shape[1], dtype=torch.bool).triu(1)
    apart_BTT = (text.phi_BT[:, :, None] != text.phi_BT[:, None, :]) | later_TT
    bias_B1TT = torch.zeros(apart_BTT.shape, dtype=torch.float64).masked_fill(apart_BTT, -torch.inf)[:, None]

    def chunked(*args):
        h_BTD, walk = begin(*args)
        return h_BTD, replace(walk, bias=bias_B1TT, causal=False)

    monkeypatch.setattr(language, "begin", chunked)


# ------------------------------------------------------------------------------------------------- parity and formulas
def use_relu(module):
    for part in module.modules():
        if isinstance(part, FeedForward):
            part.act = F.relu


def idefics(**options) -> IdeficsConfig:
    config = IdeficsConfig(
        hidden_size=32,
        num_attention_heads=2,
        dropout=0.0,
        qk_layer_norms=False,
        alpha_type="float",
        vision_config={"embed_dim": VISION.width},
        perceiver_config={"qk_layer_norms_perceiver": False},
        **options,
    )
    config._attn_implementation = "sdpa"  # its eager attention rounds the softmax to float32
    return config


def test_resampler_equals_idefics():
    ours = small(make_language(), "fusion.latents=5").resampler
    use_relu(ours)  # the only activation that Idefics has here
    peer = IdeficsPerceiverResampler(idefics(), VISION.width, 2, n_heads=2, head_dim=6, n_latents=5).double()
    state = {"latents": ours.latents_RC, "layer_norm.weight": ours.norm.weight, "layer_norm.bias": ours.norm.bias}
    for i, layer in enumerate(ours.layers):
        attend, feed = layer.attend, layer.feed
        for theirs, mine in (
            ("0.context_layer_norm", layer.norm_x),
            ("0.latents_layer_norm", layer.norm_z),
            ("0.q_proj", attend.q),
            ("0.k_proj", attend.k),
            ("0.v_proj", attend.v),
            ("0.output_proj", attend.out),
            ("1.ln", feed.norm),
            ("1.fc", feed.fc1),
            ("1.c_proj", feed.fc2),
        ):
            state |= {f"blocks.{i}.{theirs}.{name}": p for name, p in mine.named_parameters()}
    peer.load_state_dict(state, strict=True)
    X = pictures(3, 1).tokens_IMNC[:, 0]
    torch.testing.assert_close(ours(X, 1, None), peer(X), **EXACT)


@MODES
def test_gated_layer_equals_idefics(last_image):
    """Wiring, projections, mask, row factor and gates; norms and feed-forward are ours (theirs: RMSNorm, SwiGLU)."""
    language = make_language(layers=1)
    fusion = small(language, "fusion.head_width=16", f"fusion.last_image={last_image}")
    layer, R, M = fusion.layers[0], 4, 3
    peer = IdeficsGatedCrossAttentionLayer(idefics(), layer_idx=0).double().eval()
    for theirs, mine in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "out")):
        getattr(peer.cross_attn, theirs).weight = getattr(layer.cross, mine).weight
    peer.input_layernorm, peer.post_attention_layernorm = layer.norm, layer.feed.norm
    peer.mlp = nn.Sequential(layer.feed.fc1, Square(), layer.feed.fc2)
    peer.alpha_cross_attn.data.fill_(layer.alpha.item())
    peer.alpha_dense.data.fill_(layer.beta.item())
    y, visual = torch.randn(2, 10, 32, dtype=torch.float64), pictures()
    memory = fusion.encode(language, visual)
    reads, bias = fusion._sight(memory, PHI)
    allowed = torch.tensor(
        [[[p == m if last_image else p >= m for m in range(1, M + 1)] for p in row] for row in PHI.tolist()]
    )
    mask = torch.zeros(2, 1, 10, M * R, dtype=torch.float64)
    mask = mask.masked_fill(~allowed.repeat_interleave(R, -1)[:, None], torch.finfo(torch.float64).min)
    Z = fusion.resampler(visual.tokens_IMNC.flatten(0, 1), 1, None).view(2, M * R, -1)
    want = peer(y, image_hidden_states=Z, image_attention_mask=mask, cross_attention_gate=(PHI > 0).double())
    want = want[0] if isinstance(want, tuple) else want
    torch.testing.assert_close(layer(y, memory["k0"], memory["v0"], bias, reads, None), want, **EXACT)


class Square(nn.Module):
    def forward(self, x):
        return x.relu() ** 2


def slow_norm(x, norm):
    return norm.weight * (x - x.mean()) / ((x - x.mean()).square().mean() + norm.eps).sqrt() + norm.bias


def slow_feed(x, feed):
    inner = feed.fc1.weight @ slow_norm(x, feed.norm)
    return feed.fc2.weight @ torch.tensor([max(float(a), 0.0) ** 2 for a in inner], dtype=x.dtype)


def slow_attention(cross, query, sources):
    """softmax(q k / sqrt(d)) v, head by head, over the given sources; 0 without any."""
    read = torch.zeros(cross.out.in_features, dtype=query.dtype)
    d = cross.out.in_features // cross.heads
    for head in range(cross.heads) if sources else ():
        rows = slice(head * d, head * d + d)
        q = cross.q.weight[rows] @ query
        exps = [math.exp(float(q @ (cross.k.weight[rows] @ z)) / math.sqrt(d)) for z in sources]
        read[rows] = sum(e / sum(exps) * (cross.v.weight[rows] @ z) for e, z in zip(exps, sources, strict=True))
    return cross.out.weight @ read


def slow_resample(resampler, tokens):
    Z = list(resampler.latents_RC)
    for layer in resampler.layers:
        z = [slow_norm(row, layer.norm_z) for row in Z]
        sources = [slow_norm(row, layer.norm_x) for row in tokens] + z
        Z = [row + slow_attention(layer.attend, q, sources) for row, q in zip(Z, z, strict=True)]
        Z = [row + slow_feed(row, layer.feed) for row in Z]
    return [slow_norm(row, resampler.norm) for row in Z]


@torch.no_grad()
@MODES
def test_the_whole_mechanism_is_its_formula(last_image):
    """Every row, token, picture, latent and head in loops; a padded picture, padded tokens, phi beyond the pictures."""
    language = make_language(layers=2)
    fusion = small(language, "fusion.every=2", f"fusion.last_image={last_image}")
    phi = torch.tensor([[0, 1, 2, 3, 3], [0, 1, 1, 2, 4], [1, 1, 2, 0, 3], [0, 0, 0, 2, 2]])
    visual, text = pictures(tokens=4), document(phi)  # two rows per context
    visual.image_valid_IM = torch.tensor([[True, True, True], [True, True, False]])
    visual.token_valid_IMN = torch.ones(2, 3, 4, dtype=torch.bool)
    visual.token_valid_IMN[0, 1, 2:] = False
    y, walk = language.begin(language.embed(text.ids_BT), text)
    latents = [
        [slow_resample(fusion.resampler, visual.tokens_IMNC[i, m][visual.token_valid_IMN[i, m]]) for m in range(3)]
        for i in range(2)
    ]
    layer, want = fusion.layers[0], torch.zeros_like(y)
    for b in range(4):
        for t in range(5):
            allowed = [m for m in range(3) if (m + 1 == phi[b, t] if last_image else m + 1 <= phi[b, t])]
            sources = [z for m in allowed if visual.image_valid_IM[b // 2, m] for z in latents[b // 2][m]]
            read = slow_attention(layer.cross, slow_norm(y[b, t], layer.norm), sources)
            u = y[b, t] + math.tanh(layer.alpha) * read
            want[b, t] = u + math.tanh(layer.beta) * slow_feed(u, layer.feed)
    for block in language.blocks():
        want = block.feed(block.attend(want, walk))
    torch.testing.assert_close(hidden(fusion, language, visual, text), language.final_norm(want), **EXACT)


def test_gelu_and_open_gates_are_their_formulas():
    x = torch.randn(3, 32, dtype=torch.float64)
    layer = small(make_language(), "fusion.activation=gelu", "fusion.gate=false").layers[1]
    inner = layer.feed.fc1(layer.feed.norm(x))
    want = layer.feed.fc2(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))
    torch.testing.assert_close(layer.feed(x), want, **EXACT)
    none = torch.zeros(1, 3, 1, dtype=torch.bool)
    k = v = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x[None], k, v, None, none, None)[0], x + want, **EXACT)


def test_sizes_at_gpt2_small():
    """Derived counts at width 768 for both sides, 8 heads of 64: 6.29 M per inserted layer, 37.8 M resampler."""
    vision = VisionSpec(width=768, tokens=49, pooled_width=512, image_size=224)
    spec = LanguageSpec(width=768, layers=12, heads=12, vocabulary=50257, context=1024, bos=0, eos=0, pad=0)
    with torch.device("meta"):
        fusion = instantiate(fusion_config("flamingo", "fusion.every=5"))(vision, spec)
    assert len(fusion.layers) == 3  # before blocks 0, 5, 10
    assert sum(p.numel() for p in fusion.layers[0].parameters()) == pytest.approx(6.29e6, rel=2e-3)
    assert sum(p.numel() for p in fusion.resampler.parameters()) == pytest.approx(37.8e6, rel=2e-3)


# ------------------------------------------------------------------------------------------------- gates and training
def test_starts_at_the_language_model_and_first_moves_only_the_gates():
    language = make_language().requires_grad_(False)
    fusion = small(language, nudged=False)
    visual, text = pictures(), document()
    plain = language.hidden(text)
    assert torch.equal(hidden(fusion, language, visual, text), plain)
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=0.1, weight_decay=0.0)
    for step in range(2):
        optimizer.zero_grad()
        language.unembed(hidden(fusion, language, visual, text)).logsumexp(-1).sum().backward()
        if step == 0:
            for name, p in fusion.named_parameters():
                assert (p.grad.abs().max() > 0) == name.endswith(("alpha", "beta")), name
        optimizer.step()
        moved = {name for name, p in fusion.named_parameters() if not torch.equal(before[name], p)}
        gates = {name for name in before if name.endswith(("alpha", "beta"))}
        assert moved == (gates if step == 0 else set(before))
    assert all(p.grad is None for p in language.parameters())


def test_without_gates_it_does_not_start_at_the_language_model():
    language, text = make_language(), document()
    fusion = small(language, "fusion.gate=false", nudged=False)
    assert not fusion.preserves_lm_at_init and small(language).preserves_lm_at_init
    plain = language.hidden(text)
    assert (hidden(fusion, language, pictures(), text) - plain).abs().max() > 1e-3
    assert fusion.scalars() == {} and not any(n.endswith(("alpha", "beta")) for n, _ in fusion.named_parameters())


def test_open_gates_start_where_they_are_told():
    language, text = make_language(), document()
    fusion = small(language, "fusion.gate_init=0.5", nudged=False)
    assert not fusion.preserves_lm_at_init
    assert list(fusion.scalars().values()) == pytest.approx([math.tanh(0.5)] * 2 * len(fusion.layers))
    plain = language.hidden(text)
    assert (hidden(fusion, language, pictures(), text) - plain).abs().max() > 1e-3
    with pytest.raises(UserError, match=r"fusion\.gate_init=0\.5 needs fusion\.gate=true"):
        small(language, "fusion.gate=false", "fusion.gate_init=0.5")


def test_scalars_are_named_by_block():
    fusion = small(make_language(), "fusion.every=2")
    fusion.layers[1].alpha.data.fill_(0.3)
    scalars = fusion.scalars()
    assert set(scalars) == {"tanh_alpha/0", "tanh_beta/0", "tanh_alpha/2", "tanh_beta/2"}
    assert scalars["tanh_alpha/2"] == pytest.approx(math.tanh(0.3))
    assert scalars["tanh_beta/0"] == pytest.approx(math.tanh(-0.4))


def test_learnt_constants_are_named_for_the_optimiser():
    names = {name for name, _ in small(make_language(), "fusion.max_frames=2").named_parameters()}
    assert {"resampler.latents_RC", "resampler.times_FC"} <= names
    assert small(make_language(), "fusion.max_frames=2").undecayed == ("resampler.latents_RC", "resampler.times_FC")
    assert small(make_language()).undecayed == ("resampler.latents_RC",)


# ------------------------------------------------------------------------------------------------- who reads what
@MODES
def test_tokens_without_a_picture_read_exactly_nothing(last_image):
    """phi = 0 in both modes; in that of the own picture also phi > M and phi of a padded picture."""
    language = make_language(layers=1)
    fusion = small(language, f"fusion.last_image={last_image}")
    visual = pictures()
    visual.image_valid_IM = torch.tensor([[True, False, True], [False, False, True]])
    phi = torch.tensor([[0, 1, 2, 3, 4, 9], [0, 1, 2, 3, 4, 9]])
    reads = [[0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]] if last_image else [[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    fusion.layers[0].beta.data.zero_()
    start, _ = language.begin(language.embed(document(phi).ids_BT), document(phi))
    memory = fusion.encode(language, visual)
    sees, bias = fusion._sight(memory, phi)
    change = fusion.layers[0](start, memory["k0"], memory["v0"], bias, sees, None) - start
    assert torch.equal(change.abs().amax(-1) > 0, torch.tensor(reads).bool())


def test_one_picture_needs_no_mask():
    language = make_language(layers=1)
    for last_image in (True, False):
        fusion = small(language, f"fusion.last_image={last_image}")
        memory = fusion.encode(language, pictures(2, M=1))
        reads, bias = fusion._sight(memory, torch.tensor([[0, 1, 2], [1, 0, 3]]))
        assert bias is None
        assert reads[..., 0].tolist() == [[False, True, not last_image], [True, False, not last_image]]


@MODES
def test_pure_text_with_shut_feed_forward_is_the_language_model(last_image):
    """Attention is silent at phi = 0 whatever alpha is; the feed-forward part is not, as in the paper."""
    language, text = make_language(), document(torch.zeros(2, 6, dtype=torch.long))
    fusion = small(language, f"fusion.last_image={last_image}")
    plain = language.hidden(text)
    assert (hidden(fusion, language, pictures(), text) - plain).abs().max() > 1e-3
    for layer in fusion.layers:
        layer.beta.data.zero_()
    assert torch.equal(hidden(fusion, language, pictures(), text), plain)


def check_isolation(language, fusion, monkeypatch):
    """With self-attention cut between chunks, picture m reaches the tokens of phi = m bit for bit alone."""
    visual, text = pictures(), document()
    with monkeypatch.context() as patch:
        cut_self_attention(language, text, patch)
        base = hidden(fusion, language, visual, text)
        for m in (1, 2, 3):
            moved = (hidden(fusion, language, with_picture(visual, m), text) - base).abs().amax(-1) > 0
            assert torch.equal(moved, text.phi_BT == m)


def test_own_picture_mode_isolates_pictures(monkeypatch):
    language = make_language()
    check_isolation(language, small(language), monkeypatch)


def test_earlier_pictures_reach_later_chunks_through_the_words():
    language = make_language()
    fusion, visual, text = small(language), pictures(), document()
    gap = hidden(fusion, language, with_picture(visual, 1), text) - hidden(fusion, language, visual, text)
    moved = gap.abs().amax(-1) > 1e-8
    assert torch.equal(moved, text.phi_BT >= 1)


def check_no_leak(language, fusion):
    """Picture m reaches tokens of phi >= m and no others, whatever the self-attention carries on."""
    visual, text = pictures(), document()
    base = hidden(fusion, language, visual, text)
    for m in (1, 2, 3):
        moved = (hidden(fusion, language, with_picture(visual, m), text) - base).abs().amax(-1) > 0
        assert torch.equal(moved, text.phi_BT >= m)


@MODES
def test_later_pictures_do_not_leak(last_image):
    language = make_language()
    check_no_leak(language, small(language, f"fusion.last_image={last_image}"))


def test_all_previous_pictures_are_read_directly(monkeypatch):
    language, text, visual = make_language(), document(), pictures()
    fusion = small(language, "fusion.last_image=false")
    cut_self_attention(language, text, monkeypatch)
    base = hidden(fusion, language, visual, text)
    for m in (1, 2, 3):
        moved = (hidden(fusion, language, with_picture(visual, m), text) - base).abs().amax(-1) > 0
        assert torch.equal(moved, text.phi_BT >= m)


def test_a_tag_token_reads_its_own_picture(monkeypatch):
    """With phi counted inclusively the tag already belongs to the picture that it announces."""
    tag, language = 7, make_language()
    ids = torch.tensor([[0, 9, tag, 8, 9, tag, 11, tag, 12]])
    text = Text(ids, torch.ones_like(ids, dtype=torch.bool), (ids == tag).cumsum(1))
    fusion, visual = small(language), pictures(1)
    cut_self_attention(language, text, monkeypatch)
    base = hidden(fusion, language, visual, text)
    for m, column in ((1, 2), (2, 5), (3, 7)):
        moved = (hidden(fusion, language, with_picture(visual, m), text) - base).abs().amax(-1)[0] > 0
        assert moved[column] and not moved[column - 1]


def test_pictures_and_their_numbers_may_change_places_together():
    language = make_language()
    fusion, visual, text = small(language), pictures(), document()
    order = torch.tensor([2, 0, 1])  # new place j shows old picture order[j]
    number = torch.cat([torch.zeros(1, dtype=torch.long), order.argsort() + 1])  # old number -> new number
    shuffled = replace(visual, tokens_IMNC=visual.tokens_IMNC[:, order])
    got = hidden(fusion, language, shuffled, replace(text, phi_BT=number[text.phi_BT]))
    want = hidden(fusion, language, visual, text)
    torch.testing.assert_close(got, want, **EXACT)
    assert (hidden(fusion, language, shuffled, text) - want).abs().max() > 1e-4


@MODES
def test_padded_pictures_and_tokens_change_nothing(last_image):
    language = make_language()
    fusion = small(language, f"fusion.last_image={last_image}")
    visual, text = pictures(), document()
    text.phi_BT = text.phi_BT.clone()
    text.phi_BT[:, -1] = 4  # points at padding below: at nothing above
    junk = pictures(2, M=2, seed=8)
    padded = replace(
        visual,
        tokens_IMNC=torch.cat([visual.tokens_IMNC, junk.tokens_IMNC], 1),
        image_valid_IM=torch.tensor([[True] * 3 + [False] * 2] * 2),
    )
    want = hidden(fusion, language, visual, text)
    torch.testing.assert_close(hidden(fusion, language, padded, text), want, **EXACT)
    wider = replace(
        visual,
        tokens_IMNC=torch.cat([visual.tokens_IMNC, pictures(2, tokens=2, seed=8).tokens_IMNC], 2),
        token_valid_IMN=torch.tensor([True] * VISION.tokens + [False] * 2).expand(2, 3, -1),
    )
    torch.testing.assert_close(hidden(fusion, language, wider, text), want, **EXACT)


def test_a_picture_without_any_valid_token_is_absent():
    language = make_language()
    fusion, visual = small(language), pictures()
    visual.token_valid_IMN = torch.ones(2, 3, VISION.tokens, dtype=torch.bool)
    visual.token_valid_IMN[:, 1] = False
    absent = replace(visual, token_valid_IMN=None, image_valid_IM=torch.tensor([[True, False, True]] * 2))
    got, want = (hidden(fusion, language, v, document()) for v in (visual, absent))
    assert torch.equal(got, want) and got.isfinite().all()


@MODES
def test_empty_rows_are_finite_in_bfloat16_forth_and_back(last_image):
    language = make_language()
    fusion = small(language, f"fusion.last_image={last_image}").float()
    language.float()
    visual, text = pictures(), document(torch.tensor([[0, 0, 2, 4], [0, 0, 0, 0]]))
    visual.tokens_IMNC = visual.tokens_IMNC.float()
    visual.image_valid_IM = torch.tensor([[True, False, True], [False, False, False]])
    with torch.autocast("cpu", torch.bfloat16):
        out = hidden(fusion, language, visual, text)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in [*fusion.parameters(), *language.parameters()])


# ------------------------------------------------------------------------------------------------- planted mistakes
def test_a_wrong_comparison_in_the_mask_is_caught(monkeypatch):
    """``>=`` instead of ``==`` breaks isolation, ``<=`` leaks later pictures, and an ignored phi = 0 leaks as well."""
    language = make_language()
    right = flamingo.allowed_pictures

    def wrong(compare):
        def allowed(phi_BT, image_valid_BM, last_image):
            m_M = torch.arange(1, image_valid_BM.shape[1] + 1)
            return compare(phi_BT[:, :, None], m_M) & image_valid_BM[:, None]

        return allowed

    monkeypatch.setattr(flamingo, "allowed_pictures", wrong(torch.ge))
    with pytest.raises(AssertionError):
        check_isolation(language, small(language), monkeypatch)
    monkeypatch.setattr(flamingo, "allowed_pictures", wrong(torch.le))
    with pytest.raises(AssertionError):
        check_no_leak(language, small(language))
    monkeypatch.setattr(flamingo, "allowed_pictures", wrong(torch.eq))
    with pytest.raises(AssertionError):  # the modes differ
        test_all_previous_pictures_are_read_directly(monkeypatch)
    uniform = wrong(lambda phi, m: (phi >= m) | (phi == 0))  # the public codes in the mode of all previous pictures
    monkeypatch.setattr(flamingo, "allowed_pictures", uniform)
    with pytest.raises(AssertionError):
        check_no_leak(language, small(language, "fusion.last_image=false"))
    monkeypatch.setattr(flamingo, "allowed_pictures", right)
    check_isolation(language, small(language), monkeypatch)


def test_a_mask_by_text_position_shows_the_wrong_picture(monkeypatch):
    """image = t // visual_tokens mixes two axes: words and visual tokens."""
    language, text, visual, visual_tokens = make_language(), document(), pictures(), 5

    def by_position(phi_BT, image_valid_BM, last_image):
        t_T1, m_M = torch.arange(phi_BT.shape[1])[:, None], torch.arange(image_valid_BM.shape[1])
        return (t_T1 // visual_tokens == m_M).expand(len(phi_BT), -1, -1)

    fusion = small(language)
    base = hidden(fusion, language, visual, text)
    right = hidden(fusion, language, with_picture(visual, 3), text)
    assert torch.equal((right - base).abs().amax(-1) > 0, text.phi_BT == 3)
    monkeypatch.setattr(flamingo, "allowed_pictures", by_position)
    base = hidden(fusion, language, visual, text)
    assert torch.equal(hidden(fusion, language, with_picture(visual, 3), text), base)  # the last picture is never seen
    leak = (hidden(fusion, language, with_picture(visual, 1), text) - base).abs().amax(-1) > 0
    assert leak[text.phi_BT == 0].all()  # the first one already before it appears
    with pytest.raises(AssertionError):
        check_isolation(language, fusion, monkeypatch)
    longer = by_position(torch.zeros(1, 17, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool), True)
    assert longer.any(-1)[0].tolist() == [True] * 15 + [False] * 2  # empty rows behind M * visual_tokens words


# ------------------------------------------------------------------------------------------------- resampler, videos
def test_latents_do_not_know_the_order_of_tokens_without_frames():
    resampler = small(make_language()).resampler
    X, order = pictures().tokens_IMNC.flatten(0, 1), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(resampler(X[:, order], 1, None), resampler(X, 1, None), **EXACT)


def test_latents_know_the_order_of_frames():
    language = make_language()
    fusion = small(language, "fusion.max_frames=4")
    resampler, visual = fusion.resampler, pictures(frames=3)
    X = visual.tokens_IMNC.flatten(0, 1)
    frames = X.unflatten(1, (3, VISION.tokens))
    inside = frames[:, :, torch.tensor([3, 1, 5, 0, 2, 4])].flatten(1, 2)  # a frame has no order of its own
    torch.testing.assert_close(resampler(inside, 3, None), resampler(X, 3, None), **EXACT)
    assert (resampler(frames.flip(1).flatten(1, 2), 3, None) - resampler(X, 3, None)).abs().max() > 1e-3
    by_hand = (frames + resampler.times_FC[:3, None]).flatten(1, 2)
    plain = small(language).resampler
    plain.load_state_dict({n: p for n, p in resampler.state_dict().items() if n != "times_FC"})
    torch.testing.assert_close(resampler(X, 3, None), plain(by_hand, 1, None), **EXACT)
    assert hidden(fusion, language, visual, document()).isfinite().all()


def test_too_long_a_video_is_named():
    language = make_language()
    for limit in (1, 2):
        with pytest.raises(UserError, match=rf"3 frames but fusion\.max_frames is {limit}"):
            small(language, f"fusion.max_frames={limit}").encode(language, pictures(frames=3))


# ------------------------------------------------------------------------------------------------- decoding, memory
@MODES
def test_cached_steps_with_several_pictures_and_ragged_prompts(last_image):
    """Left-padded rows, two per context, token by token: equal to the whole walk and to every row alone."""
    language = make_language()
    fusion = small(language, f"fusion.last_image={last_image}")
    visual, lengths = pictures(), (10, 7, 8, 10)
    visual.image_valid_IM = torch.tensor([[True, True, True], [True, True, False]])
    phi = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, 3], [1, 1, 1, 2, 2, 2, 3, 0, 0, 0]]).repeat(2, 1)
    plain = document(phi)
    ids, valid, phi = plain.ids_BT.clone(), plain.valid_BT.clone(), torch.zeros_like(phi)
    for b, length in enumerate(lengths):
        ids[b, 10 - length :], ids[b, : 10 - length] = plain.ids_BT[b, :length], language.spec.pad
        phi[b, 10 - length :], valid[b, : 10 - length] = plain.phi_BT[b, :length], False
    text = Text(ids, valid, phi, ragged=True)
    full = hidden(fusion, language, visual, text)
    memory, cache = fusion.encode(language, visual), Cache(4, 10)
    columns = [text.columns(0, 5)] + [text.columns(t, t + 1) for t in range(5, 10)]
    stepped = torch.cat([fusion.decode(language, memory, column, cache) for column in columns], 1)
    torch.testing.assert_close(stepped[text.valid_BT], full[text.valid_BT], **EXACT)
    for b, length in enumerate(lengths):
        own = slice(b // 2, b // 2 + 1)
        alone = Visual(visual.tokens_IMNC[own], visual.pooled_IMC[own], image_valid_IM=visual.image_valid_IM[own])
        row = Text(*(x[b : b + 1, :length] for x in (plain.ids_BT, plain.valid_BT, plain.phi_BT)))
        torch.testing.assert_close(full[b, 10 - length :], hidden(fusion, language, alone, row)[0], **EXACT)


def test_contexts_can_be_selected_from_the_memory():
    language = make_language()
    fusion, visual, text = small(language), pictures(3), document(PHI[[0, 1, 0]])
    memory, keep = fusion.encode(language, visual, aux={}), torch.tensor([2, 0])
    assert all(len(x) == 3 for x in memory.values())
    kept = Text(*(x[keep] for x in (text.ids_BT, text.valid_BT, text.phi_BT)))
    got = fusion.decode(language, memory.select(keep), kept)
    torch.testing.assert_close(got, fusion.decode(language, memory, text)[keep], **EXACT)


# ------------------------------------------------------------------------------------------------- diagnostics
@MODES
def test_diagnostics_are_weights_over_picture_tokens_and_change_nothing(last_image):
    language = make_language()
    fusion = small(language, "fusion.every=2", f"fusion.last_image={last_image}")
    visual, text, aux = pictures(), document(PHI.repeat_interleave(2, 0)), {}
    visual.token_valid_IMN = torch.ones(2, 3, VISION.tokens, dtype=torch.bool)
    visual.token_valid_IMN[0, 1, 4:] = False
    silent = fusion.encode(language, visual)
    memory = fusion.encode(language, visual, aux)
    assert all(torch.equal(silent[name], memory[name]) for name in silent)
    assert set(memory) - set(silent) == {"pooler"}
    want = fusion.decode(language, silent, text)
    assert torch.equal(fusion.decode(language, memory, text, aux=aux), want)
    (pooler_XRN,) = aux["pooler"]
    assert pooler_XRN.shape == (6, 4, VISION.tokens)
    torch.testing.assert_close(pooler_XRN.sum(-1), torch.ones(6, 4, dtype=torch.float64))
    assert len(aux["attention"]) == 2 and "latent_attention" not in aux
    sums_BT = (text.phi_BT > 0).double()
    for weights_BHTN in aux["attention"]:
        assert weights_BHTN.shape == (4, 2, 10, 3 * VISION.tokens)
        torch.testing.assert_close(weights_BHTN.sum(-1), sums_BT[:, None].expand(-1, 2, -1))
        per_picture = weights_BHTN.unflatten(-1, (3, VISION.tokens))
        assert per_picture[:2, :, :, 1, 4:].abs().max() == 0
        own = per_picture.sum(-1)[:, 0] > 0
        assert torch.equal(own, flamingo.allowed_pictures(text.phi_BT, torch.ones(4, 3).bool(), last_image))
    gates = torch.tensor([math.tanh(0.8), math.tanh(-0.4)], dtype=torch.float64)
    assert len(aux["tanh_gate"]) == 2
    torch.testing.assert_close(aux["tanh_gate"][0], gates)
    bare: dict = {}
    assert torch.equal(fusion.decode(language, silent, text, aux=bare), want)
    assert "attention" not in bare and bare["latent_attention"][0].shape == (4, 2, 10, 3 * 4)


# ------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("option", "message"),
    [
        *[
            (f"{name}={value}", rf"fusion\.{name} must be a whole number of at least 1; got {value}\.")
            for name, value in (
                ("every", 0),
                ("latents", 0),
                ("resampler_layers", 0),
                ("heads", -1),
                ("head_width", 1.5),
                ("ffw_ratio", 0),
                ("max_frames", 0),
            )
        ],
        ("every=true", "whole number"),
        ("activation=relu", "sqrelu or gelu"),
        ("last_image=2", "fusion.last_image must be true or false"),
        ("gate=1", "fusion.gate must be true or false"),
    ],
)
def test_wrong_options_are_named(option, message):
    with pytest.raises(UserError, match=message) as error:
        instantiate(fusion_config("flamingo", f"fusion.{option}"))(VISION, make_language().spec)
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


def test_a_gated_layer_has_scalar_gates_at_zero():
    layer = GatedCrossAttention(8, 6, heads=2, head_width=4, ffw_ratio=2, activation="sqrelu", dropout=0.0, gate=0.0)
    assert layer.alpha.shape == layer.beta.shape == (1,) and layer.alpha == layer.beta == 0
    assert not any("bias" in name for name, _ in layer.named_parameters() if "norm" not in name)
