"""Mechanisms against independent computations: other libraries by weight copying, formulas as slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import VISION, Characters, fusion_config, make_fusion, make_language, make_text, make_visual, nudge
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from src.config.added_keys import ABSENT
from src.contracts import UserError, VisionSpec, Visual
from src.fusion.clipcap import MapperLayer, MLPMapper, TransformerMapper
from src.fusion.cross_attention import PlainCrossAttention
from src.language.load import tiny
from src.layers.attention import CrossAttention, key_bias
from src.layers.level_encoder import LevelLayer

EXACT = {"rtol": 0, "atol": 1e-10}


@pytest.mark.parametrize("norm_visual", [False, True])
def test_cross_attention_equals_gpt2_with_cross_attention(norm_visual):
    """transformers' GPT2Model(add_cross_attention=True), same weights and numbers; what it reads is normed outside."""
    language = make_language()
    vision = VisionSpec(width=32, tokens=6, pooled_width=32, image_size=32)
    fusion = nudge(
        PlainCrossAttention(vision, language.spec, 1, norm_visual, start="usual", dropout=0.0).double()
    ).eval()
    config = GPT2Config(**{**language.model.config.to_dict(), "add_cross_attention": True})
    peer = GPT2LMHeadModel(config).double().eval()
    state = {**peer.state_dict(), **language.model.state_dict()}
    for l, (norm, cross) in enumerate(zip(fusion.norms, fusion.cross, strict=True)):
        name = f"transformer.h.{l}"
        state[f"{name}.ln_cross_attn.weight"], state[f"{name}.ln_cross_attn.bias"] = norm.weight, norm.bias
        # transformers' Conv1D holds (in, out); keys and values are packed side by side.
        state[f"{name}.crossattention.q_attn.weight"] = cross.q.weight.T
        state[f"{name}.crossattention.q_attn.bias"] = cross.q.bias
        state[f"{name}.crossattention.c_attn.weight"] = torch.cat([cross.k.weight, cross.v.weight]).T
        state[f"{name}.crossattention.c_attn.bias"] = torch.cat([cross.k.bias, cross.v.bias])
        state[f"{name}.crossattention.c_proj.weight"] = cross.out.weight.T
        state[f"{name}.crossattention.c_proj.bias"] = cross.out.bias
    peer.load_state_dict(state, strict=True)
    X = torch.randn(2, 1, 6, 32, dtype=torch.float64)
    text = make_text(2, 7)
    memory = fusion.encode(language, Visual(X, X.mean(2)))
    ours = fusion.readout(language, fusion.decode(language, memory, text))
    theirs = peer(input_ids=text.ids_BT, encoder_hidden_states=fusion.norm_visual(X[:, 0])).logits
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_cross_attention_layer_equals_torch_multihead_attention():
    ours = CrossAttention(16, 10, heads=4, bias=True).double()
    peer = nn.MultiheadAttention(16, 4, kdim=10, vdim=10, batch_first=True).double()
    with torch.no_grad():
        for mine, theirs in zip((ours.q, ours.k, ours.v), ("q", "k", "v"), strict=True):
            getattr(peer, f"{theirs}_proj_weight").copy_(mine.weight)
        peer.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        peer.out_proj.weight.copy_(ours.out.weight)
        peer.out_proj.bias.copy_(ours.out.bias)
    h, x = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 7, 10, dtype=torch.float64)
    valid = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    got = ours(h, *ours.keys_values(x), key_bias(valid, x.dtype))
    torch.testing.assert_close(got, peer(h, x, x, key_padding_mask=~valid, need_weights=False)[0], **EXACT)


# ------------------------------------------------------------------------------------------------------------ ClipCap
def test_mlp_mapper_is_its_formula():
    mapper = nudge(MLPMapper(20, 8, prefix_length=3).double())
    e = torch.randn(2, 20, dtype=torch.float64)
    for i in range(2):
        hidden = [math.tanh(float(w @ e[i] + b)) for w, b in zip(mapper.fc1.weight, mapper.fc1.bias, strict=True)]
        flat = mapper.fc2.weight @ torch.tensor(hidden, dtype=torch.float64) + mapper.fc2.bias
        for k in range(3):
            torch.testing.assert_close(mapper(e)[i, k], flat[8 * k : 8 * k + 8], **EXACT)


def test_mapper_layer_equals_torch_encoder_layer():
    ours = nudge(MapperLayer(16, heads=4, dropout=0.0).double())
    peer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "relu", batch_first=True, norm_first=True).double().eval()
    state = {
        "self_attn.in_proj_weight": torch.cat([ours.to_queries.weight, ours.to_keys_values.weight]),
        "self_attn.in_proj_bias": torch.zeros(48),
        "self_attn.out_proj.weight": ours.project.weight,
        "self_attn.out_proj.bias": ours.project.bias,
        **{f"linear{i}.{n}": getattr(getattr(ours, f"fc{i}"), n) for i in (1, 2) for n in ("weight", "bias")},
        **{f"norm{i}.{n}": getattr(getattr(ours, f"norm{i}"), n) for i in (1, 2) for n in ("weight", "bias")},
    }
    peer.load_state_dict(state, strict=True)
    s = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(s), peer(s), **EXACT)


def test_transformer_mapper_moves_with_its_constants():
    """Without positions, permuting the learnt constants permutes the prefix (Enc has no order)."""
    mapper = nudge(TransformerMapper(20, 16, prefix_length=4, clip_length=3, layers=2, heads=4, dropout=0.0).double())
    e, order = torch.randn(2, 20, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    before = mapper(e)
    with torch.no_grad():
        mapper.const_kD.copy_(mapper.const_kD[order])
    torch.testing.assert_close(mapper(e), before[:, order], **EXACT)


@pytest.mark.parametrize(("mapper", "layers", "want"), [("mlp", 8, 31.47e6), ("transformer", 8, 41.75e6)])
def test_clipcap_has_the_papers_size(mapper, layers, want):
    """ViT-B/32 (512) and GPT-2 small (768), k = c = 10: derived counts of the paper's Table 1 setting."""
    with torch.device("meta"):
        vision = VisionSpec(width=768, tokens=49, pooled_width=512, image_size=224)
        language = tiny(Characters(), width=768, layers=1, heads=12)
    fusion = make_on_meta("clipcap", vision, language, f"fusion.mapper={mapper}")
    assert sum(p.numel() for p in fusion.parameters()) == pytest.approx(want, rel=2e-3)


def test_prefix_of_word_embeddings_is_the_language_model_on_those_words():
    """Replacing the prefix by embeddings of k real tokens gives the plain model on the text [tokens ; caption]."""
    language = make_language()
    fusion = make_fusion("clipcap", language, "fusion.prefix_length=4")
    words, text = torch.randint(3, 131, (2, 4)), make_text(2, 6)
    memory = {"prefix": language.embed(words)}
    ours = fusion.readout(language, fusion.decode(language, memory, text))
    plain_ids = torch.cat([words, text.ids_BT[:, 1:]], dim=1)  # the start token's place is the last prefix vector's
    plain = language.model(input_ids=plain_ids).logits[:, 3:]
    torch.testing.assert_close(ours, plain, **EXACT)


# --------------------------------------------------------------------------------------------------------------- SRAU
def test_srau_gates_are_the_formula():
    """One block of the authors' form, elementwise, against loops over rows, tokens, levels and channels."""
    language = make_language(layers=1)
    fusion = make_fusion("srau", language, "fusion.tau=0.45", "fusion.start=paper")
    visual, text, aux = make_visual(2), make_text(2, 4), {}
    memory = fusion.encode(language, visual)
    h = fusion.decode(language, memory, text, aux=aux)
    block = language.blocks()[0]
    start, walk = language.begin(language.embed(text.ids_BT), text)
    a = block.attend(start, walk)
    levels = fusion.encoder(visual.levels_IKNC())
    fused = torch.zeros_like(a)
    for b in range(2):
        for t in range(4):
            for i in range(3):
                c = slow_attention(fusion.cross[0], block.norm(a[b, t]), block.norm(levels[b, i]))
                gate = fusion.gates[0].W[i]
                z = gate.weight @ torch.cat([a[b, t], c]) + gate.bias
                for d in range(a.shape[-1]):
                    alpha = 1 / (1 + math.exp(-z[d]))
                    if alpha > 0.45:
                        fused[b, t, d] += alpha * a[b, t, d] / math.sqrt(3)
                    if alpha < 1 - 0.45:
                        fused[b, t, d] += (1 - alpha) * c[d] / math.sqrt(3)
    torch.testing.assert_close(h, language.final_norm(block.feed(fused)), **EXACT)
    shut = torch.stack(aux["visual_gate"]) == 0
    assert 0 < shut.double().mean() < 1


def test_srau_paper_form_is_the_formula():
    language = make_language(layers=1)
    fusion = make_fusion("srau_paper", language, "fusion.tau=0.3")
    visual, text = make_visual(1), make_text(1, 3)
    h = fusion.decode(language, fusion.encode(language, visual), text)
    block = language.blocks()[0]
    start, walk = language.begin(language.embed(text.ids_BT), text)
    a = block.attend(start, walk)
    level = fusion.encoder(visual.levels_IKNC())[0, 0]
    fused = torch.zeros_like(a)
    for t in range(3):
        c = slow_attention(fusion.cross[0], a[0, t], level)
        for d in range(a.shape[-1]):
            s = 1 / (1 + math.exp(-a[0, t, d]))
            fused[0, t, d] = s * (s > 0.3) * c[d] + (1 - s) * (1 - s > 0.3) * a[0, t, d]
    torch.testing.assert_close(h, language.final_norm(block.feed(fused)), **EXACT)


def slow_attention(cross: CrossAttention, query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v head by head, for one query."""
    q, k, v = cross.q(query), cross.k(source), cross.v(source)
    d = len(q) // cross.heads
    out = []
    for head in range(cross.heads):
        part = slice(head * d, (head + 1) * d)
        weights = torch.tensor([float(q[part] @ row[part]) / math.sqrt(d) for row in k], dtype=q.dtype).softmax(0)
        out.append(sum(w * row[part] for w, row in zip(weights, v, strict=True)))
    return cross.out(torch.cat(out))


def test_srau_level_layer_equals_torch_encoder_layer():
    ours = nudge(LevelLayer(24, heads=4, dropout=0.1).double()).eval()
    peer = nn.TransformerEncoderLayer(24, 4, 64, 0.1, "relu", batch_first=True).double().eval()
    parts = [ours.attend.q, ours.attend.k, ours.attend.v]
    state = {
        **{f"self_attn.in_proj_{n}": torch.cat([getattr(part, n) for part in parts]) for n in ("weight", "bias")},
        **{f"self_attn.out_proj.{n}": getattr(ours.attend.out, n) for n in ("weight", "bias")},
        **{f"linear{i}.{n}": getattr(getattr(ours, f"fc{i}"), n) for i in (1, 2) for n in ("weight", "bias")},
        **{f"norm{i}.{n}": getattr(getattr(ours, f"norm{i}"), n) for i in (1, 2) for n in ("weight", "bias")},
    }
    peer.load_state_dict(state, strict=True)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x, None), peer(x), **EXACT)


def plain_norm(x, norm: nn.LayerNorm):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def plain_attention(cross: CrossAttention, queries, source, hidden, dropped: float):
    """softmax(q k / sqrt(d)) v head by head; the keys where ``hidden`` (N) count nothing, weights lose ``dropped``."""
    q, k, v = cross.q(queries), cross.k(source), cross.v(source)
    d = q.shape[-1] // cross.heads
    out = []
    for head in range(cross.heads):
        part = slice(head * d, (head + 1) * d)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(d)).masked_fill(hidden, -torch.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        out.append((1 - dropped) * weights @ v[:, part])
    return cross.out(torch.cat(out, -1))


def authors_encoder(encoder, tokens, hidden, dropped: float, erf: bool = False, on_weights: float = 0.0):
    """x = LN(drop(GELU(W x))) of one picture (N, C), and the outputs of the layers; drop: times 1 - ``dropped``."""
    z, keep = encoder.fc(tokens), 1 - dropped
    inner = torch.erf(z / math.sqrt(2)) if erf else torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))
    start = x = plain_norm(keep * 0.5 * z * (1 + inner), encoder.norm)
    hidden = x.sum(-1) == 0 if hidden is None else hidden
    levels = []
    for layer in encoder.layers:
        x = plain_norm(x + keep * plain_attention(layer.attend, x, x, hidden, on_weights), layer.norm1)
        x = plain_norm(x + keep * layer.fc2(keep * layer.fc1(x).clamp(min=0)), layer.norm2)
        levels.append(x)
    return start, levels


@pytest.fixture
def dropout_that_scales(monkeypatch):
    """Dropout in training scales by 1 - p, so that what it falls on can be read off the numbers."""

    def scaled(x, p, training):
        return (1 - p) * x if training else x

    for place in ("src.layers.dropout.dropout", "src.layers.attention.drop", "src.fusion.srau.dropout"):
        monkeypatch.setattr(place, scaled)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", ["authors", "early"])
def test_srau_encoder_is_the_authors(form, training, dropout_that_scales):
    """GELU by tanh, and dropout that leaves attention weights alone; ``early``: by erf, and it falls on them, too."""
    language = make_language()
    options = ("fusion.level_source=encoder", f"fusion.encoder_form={form}", "fusion.encoder_dropout=0.3")
    encoder = make_fusion("srau", language, *options).encoder.train(training)
    tokens, dropped = make_visual(2).tokens_INC, 0.3 * training
    shown = torch.zeros(VISION.tokens, dtype=torch.bool)
    for picture, levels in zip(tokens, encoder.climb(encoder.enter(tokens), None), strict=True):
        early = {"erf": True, "on_weights": dropped} if form == "early" else {}
        want = authors_encoder(encoder, picture, shown, dropped, **early)[1]
        torch.testing.assert_close(levels, torch.stack(want), **EXACT)


def test_runs_without_a_form_keep_the_early_encoder():
    assert ABSENT["src.fusion.srau.SRAU.encoder_form"] == "early"
    assert fusion_config("srau").encoder_form == fusion_config("srau_paper").encoder_form == "authors"


@pytest.mark.parametrize("training", [False, True])
def test_srau_reference_defects_are_those_of_the_authors(training, dropout_that_scales):
    """The whole walk: one mask from the encoder's input, and dropout on the stream alone, whatever GPT-2 was made with.

    Regions 1 and 4 are flat, so they leave a norm without offset as zeros; 4 and 5 are padding.
    """
    language = make_language(dropout=0.1)
    options = ("fusion.reference_defects=true", "fusion.encoder_dropout=0.3", "fusion.cross_dropout=0.2")
    fusion = make_fusion("srau", language, *options)
    visual, text = make_visual(1), make_text(1, 4)
    with torch.no_grad():
        fusion.encoder.norm.weight.fill_(1.0), fusion.encoder.norm.bias.zero_(), fusion.encoder.fc.bias.zero_()
    visual.tokens_IMNC[0, 0, [1, 4]] = 0.0
    visual.token_valid_IMN = torch.ones(1, 1, VISION.tokens, dtype=torch.bool)
    visual.token_valid_IMN[0, 0, [4, 5]] = False  # the authors' mask does not know
    fusion.train(training), language.train(training)
    h = fusion.decode(language, fusion.encode(language, visual), text)

    start, levels = authors_encoder(fusion.encoder, visual.tokens_INC[0], None, 0.3 * training)
    hidden = start.sum(-1) == 0
    assert hidden.tolist() == [False, True, False, False, True, False]
    keep = 1 - 0.1 * training
    x = language.model.transformer.wte(text.ids_BT[0]) + language.model.transformer.wpe.weight[:4]
    for block, cross, gates in zip(language.model.transformer.h, fusion.cross, fusion.gates, strict=True):
        a = keep * (x + plain_self_attention(block.attn, plain_norm(x, block.ln_1)))
        fused = 0
        for level, gate in zip(levels, gates.W, strict=True):
            c = plain_attention(cross, plain_norm(a, block.ln_1), plain_norm(level, block.ln_1), hidden, 0.2 * training)
            alpha = 1 / (1 + torch.exp(-gate(torch.cat([a, c], -1))))
            fused = fused + alpha * (alpha > 0.2) * a + (1 - alpha) * (alpha < 1 - 0.2) * c
        fused = fused / math.sqrt(3)
        z = plain_norm(fused, block.ln_2) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        z = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = keep * (fused + z @ block.mlp.c_proj.weight + block.mlp.c_proj.bias)
    torch.testing.assert_close(h[0], plain_norm(x, language.model.transformer.ln_f), **EXACT)


def plain_self_attention(attn, n):
    """GPT-2's causal self-attention of one row (T, D), without dropout."""
    q, k, v = (n @ attn.c_attn.weight + attn.c_attn.bias).chunk(3, -1)
    d, out = n.shape[-1] // attn.num_heads, []
    for part in (slice(i, i + d) for i in range(0, n.shape[-1], d)):
        scores = (q[:, part] @ k[:, part].T / math.sqrt(d)).masked_fill(
            torch.ones(len(n), len(n)).triu(1) > 0, -math.inf
        )
        out.append(scores.softmax(-1) @ v[:, part])
    return torch.cat(out, -1) @ attn.c_proj.weight + attn.c_proj.bias


def test_srau_reference_defects_need_the_encoder():
    language = make_language()
    assert make_fusion("srau", language, "fusion.reference_defects=true").needs_levels == 0  # auto takes the encoder
    with pytest.raises(UserError, match=r"fusion\.level_source=encoder"):
        make_fusion("srau", language, "fusion.reference_defects=true", "fusion.level_source=vision")


def test_srau_shut_gate_still_learns():
    """Self-resurrection: at gate logit -2 and tau 0.2 the visual gate is 0, yet the output depends on the logit."""
    language = make_language(layers=1)
    fusion = make_fusion("srau_paper", language)
    z = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    a, c = z.expand(1, 1, 32), torch.ones(1, 1, 32, dtype=torch.float64)
    visual_gate, language_gate = fusion._gate_pair(0, a, c[None])
    assert visual_gate.abs().max() == 0
    (visual_gate * c + language_gate * 1.5)[0, 0, 0, 0].backward()
    s = torch.sigmoid(z.detach())
    torch.testing.assert_close(z.grad, -s * (1 - s) * 1.5)


def test_srau_without_gates_adds_what_it_read():
    language = make_language(layers=1)
    fusion = make_fusion("srau_paper", language, "fusion.gate=none", "fusion.cross_dropout=0.0")
    memory = fusion.encode(language, make_visual(2))
    a = torch.randn(2, 5, 32, dtype=torch.float64)
    c = fusion.cross[0].levels(a, memory["k0"], memory["v0"], memory.get("bias"))
    torch.testing.assert_close(fusion._fuse(0, language.blocks()[0], a, memory, None), a + c[0], **EXACT)


def test_srau_closed_share_grows_with_tau():
    """Shares of shut gates for a ~ N(0, 1) in the paper's form: 1.4, 8.3, 19.9, 34.3 % at tau .1, .2, .3, .4."""
    a = torch.randn(1, 1, 400_000, dtype=torch.float64)
    shares = []
    for tau in (0.1, 0.2, 0.3, 0.4):
        fusion = make_fusion("srau_paper", make_language(layers=1), f"fusion.tau={tau}")
        shares.append((fusion._gate_pair(0, a, a[None])[0] == 0).double().mean().item())
    assert shares == pytest.approx([0.014, 0.083, 0.199, 0.343], abs=2e-3)


def test_srau_pair_is_never_empty_and_sums_to_one_without_threshold():
    language = make_language(layers=1)
    a, c = 3 * torch.randn(2, 5, 32, dtype=torch.float64), 3 * torch.randn(3, 2, 5, 32, dtype=torch.float64)
    for name in ("srau", "srau_paper"):
        start = "fusion.start=paper"
        open_pair = make_fusion(name, language, "fusion.tau=0.0", start)._gate_pair(0, a, c)
        torch.testing.assert_close(sum(open_pair), torch.ones_like(c), rtol=0, atol=1e-15)
        assert (sum(make_fusion(name, language, "fusion.tau=0.49", start)._gate_pair(0, a, c)) > 0.5).all()


def test_srau_shut_visual_gates_hide_the_picture_only_in_the_papers_form():
    """With learnt gates the image leaks through alpha, which scales the words (measured on the authors' code)."""
    language = make_language(layers=1)
    text = make_text(1, 4)
    paper = make_fusion("srau_paper", language, "fusion.tau=0.4")
    with torch.no_grad():
        language.model.transformer.h[0].attn.c_proj.bias.fill_(-60)  # a far below 0: sigmoid(a) under tau everywhere
    one, two = (paper.decode(language, paper.encode(language, make_visual(1, seed=s)), text) for s in (2, 5))
    assert torch.equal(one, two)
    concat = make_fusion("srau", language, "fusion.tau=0.4", "fusion.gate_bias_init=0.0")
    with torch.no_grad():
        for gate in concat.gates[0].W:
            gate.weight.mul_(1e-3)
            gate.bias.fill_(1.0)  # alpha near .73 > 1 - tau: every visual gate shut
    aux: dict = {}
    one, two = (concat.decode(language, concat.encode(language, make_visual(1, seed=s)), text, aux=aux) for s in (2, 5))
    assert all(gate.abs().max() == 0 for gate in aux["visual_gate"])
    assert not torch.equal(one, two)


def test_srau_reference_defect_leaves_padding_unmasked():
    language = make_language()
    visual, junk = make_visual(1), make_visual(1, seed=7, tokens=2)
    padded = Visual(
        torch.cat([visual.tokens_IMNC, junk.tokens_IMNC], 2),
        visual.pooled_IMC,
        token_valid_IMN=torch.tensor([True] * VISION.tokens + [False] * 2)[None, None],
    )
    text = make_text(1, 4)
    for defect in (False, True):
        fusion = make_fusion("srau", language, f"fusion.reference_defects={defect}", "fusion.level_source=encoder")
        gap = fusion.decode(language, fusion.encode(language, padded), text)
        gap = gap - fusion.decode(language, fusion.encode(language, visual), text)
        assert (gap.abs().max() > 1e-6) == defect


def test_srau_near_the_language_model_with_mean_and_a_language_bias():
    language = make_language()
    text = make_text(2, 6)
    plain = language.unembed(language.hidden(text)).log_softmax(-1)

    def divergence(*overrides):
        fusion = make_fusion("srau", language, "fusion.start=paper", *overrides, nudged=False)
        ours = fusion.readout(language, fusion.decode(language, fusion.encode(language, make_visual(2)), text))
        return (plain.exp() * (plain - ours.log_softmax(-1))).sum(-1).mean()

    near = divergence("fusion.level_norm=mean", "fusion.gate_bias_init=6.0")
    assert near < 0.05 * divergence()


@pytest.mark.parametrize("tau", [0.5, -0.1, 0.9])
def test_srau_refuses_thresholds_that_shut_both_gates(tau):
    with pytest.raises(UserError, match=r"fusion\.tau"):
        make_fusion("srau", make_language(), f"fusion.tau={tau}")


def make_on_meta(name, vision, language, *overrides):
    from hydra.utils import instantiate

    with torch.device("meta"):
        return instantiate(fusion_config(name, *overrides))(vision, language.spec)


# ------------------------------------------------------------------------------------------------- ClipCap's invariants
def test_clipcap_reads_the_pooled_vector_only():
    language = make_language()
    fusion, text = make_fusion("clipcap", language), make_text(1, 5)
    one, two = make_visual(1, seed=2), make_visual(1, seed=5)
    two.pooled_IMC = one.pooled_IMC
    outs = [fusion.decode(language, fusion.encode(language, visual), text) for visual in (one, two)]
    assert torch.equal(*outs)


def test_clipcap_transformer_sees_the_picture_through_its_linear_map_alone():
    mapper = nudge(TransformerMapper(20, 32, prefix_length=4, clip_length=3, layers=2, heads=4, dropout=0.0).double())
    e = torch.randn(2, 20, dtype=torch.float64)
    assert (mapper(e)[0] - mapper(e)[1]).abs().max() > 1e-3
    with torch.no_grad():
        mapper.linear.weight.zero_()
    torch.testing.assert_close(mapper(e)[0], mapper(e)[1], **EXACT)


def test_clipcap_mapper_learns_through_a_frozen_language_model():
    language = make_language().requires_grad_(False)
    fusion = make_fusion("clipcap", language)
    fusion.decode(language, fusion.encode(language, make_visual(2)), make_text(2, 5)).sum().backward()
    assert all(p.grad is None for p in language.parameters())
    assert all(p.grad.abs().max() > 0 for p in fusion.parameters())
