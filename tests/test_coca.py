"""CoCa against open_clip and transformers by weight copying, against its formulas as slow loops, and its invariants."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import transformers
from conftest import (
    OBJECTIVES,
    Characters,
    fusion_config,
    make_fusion,
    make_language,
    make_text,
    make_visual,
    nudge,
    text_of,
    viewed,
)
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional as F

from src.captioner import Captioner
from src.contracts import Batch, LanguageSpec, Memory, Text, UserError, VisionSpec, Visual
from src.decoding.greedy import Greedy
from src.language.llama import Llama
from src.layers.attention import CrossAttention
from src.layers.cache import Cache
from src.layers.contrast import Contrast
from src.layers.pooler import AttentionalPooler
from src.metrics.retrieval import recall_at_k, recall_of_each

EXACT = {"rtol": 0, "atol": 1e-10}
SMALL = ("fusion.queries=5", "fusion.embed_width=12", "fusion.pooler_heads=4")
POOLS = ("cascade", "parallel")
CONTRASTIVE_ONLY = "contrast."


def make_coca(language, *overrides: str, nudged: bool = True):
    torch.manual_seed(0)  # the same weights at every call
    return make_fusion("coca", language, *SMALL, *overrides, nudged=nudged)


def padded_text(*lengths: int, width: int | None = None, seed: int = 3) -> Text:
    """Random captions of these lengths, start and end token included, padded on the right."""
    width = width or max(lengths)
    text = make_text(len(lengths), width, seed)
    length_B1 = torch.tensor(lengths)[:, None]
    column_T = torch.arange(width)
    ids_BT = text.ids_BT.where(column_T < length_B1 - 1, Characters.eos)
    valid_BT = column_T < length_B1
    return Text(ids_BT.where(valid_BT, Characters.pad), valid_BT, valid_BT.long())


def learn(fusion, language, visual: Visual, text: Text):
    """Hidden states of all columns that something is asked of, and the value of the contrastive term."""
    hidden_BTD, terms = fusion.learn(language, fusion.encode(language, visual), text)
    return hidden_BTD[:, :-1], terms["contrastive"][0]


def caption_loss(fusion, language, hidden_BTD, text: Text):
    target_BT = text.valid_BT[:, 1:]
    return F.cross_entropy(fusion.readout(language, hidden_BTD[target_BT]), text.ids_BT[:, 1:][target_BT])


def moved(parameters) -> set[str]:
    """Names of parameters with a gradient other than 0."""
    return {name for name, p in parameters if p.grad is not None and p.grad.abs().max() > 0}


# ----------------------------------------------------------------------------------------------------------- open_clip
def attention_state(cross: CrossAttention, name: str, packed: bool) -> dict[str, torch.Tensor]:
    """Our attention under the names of torch's MultiheadAttention, which packs matrices of equal widths."""
    parts = (cross.q, cross.k, cross.v)
    weights = (
        {"in_proj_weight": torch.cat([part.weight for part in parts])}
        if packed
        else {f"{n}_proj_weight": part.weight for n, part in zip("qkv", parts, strict=True)}
    )
    state = {
        **weights,
        "in_proj_bias": torch.cat([part.bias for part in parts]),
        "out_proj.weight": cross.out.weight,
        "out_proj.bias": cross.out.bias,
    }
    return {f"{name}.{key}": value for key, value in state.items()}


def layer_norm_state(norm: nn.LayerNorm, name: str) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def block_state(block: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """A block of transformers' GPT-2 (whose matrices are (in, out)) under open_clip's names."""
    layers = {"attn.in_proj_": block.attn.c_attn, "attn.out_proj.": block.attn.c_proj}
    layers |= {"mlp.c_fc.": block.mlp.c_fc, "mlp.c_proj.": block.mlp.c_proj}
    return {
        **layer_norm_state(block.ln_1, f"{name}.ln_1"),
        **layer_norm_state(block.ln_2, f"{name}.ln_2"),
        **{f"{name}.{key}weight": layer.weight.T for key, layer in layers.items()},
        **{f"{name}.{key}bias": layer.bias for key, layer in layers.items()},
    }


def fast_gelu():
    return nn.GELU(approximate="tanh")  # GPT-2's


@pytest.mark.parametrize("source_width", [24, 32])
def test_pooler_equals_open_clip(source_width):
    from open_clip.transformer import AttentionalPooler as Reference

    ours = nudge(AttentionalPooler(32, source_width, heads=4, queries=7).double())
    peer = Reference(32, source_width, n_head=4, n_queries=7).double()
    state = {
        "query": ours.query_nD,
        **layer_norm_state(ours.norm_q, "ln_q"),
        **layer_norm_state(ours.norm_k, "ln_k"),
        **attention_state(ours.attend, "attn", packed=source_width == 32),
    }
    peer.load_state_dict(state, strict=True)
    X = torch.randn(3, 6, source_width, dtype=torch.float64)
    torch.testing.assert_close(ours(X), peer(X), **EXACT)


@pytest.mark.parametrize("source_width", [96, 128, 200])
@pytest.mark.parametrize("pool", POOLS)
def test_poolers_start_like_open_clips(source_width, pool):
    """As spread as theirs, both of them, the mechanism's own start left behind."""
    from open_clip.transformer import AttentionalPooler as Reference

    vision = VisionSpec(width=source_width, tokens=6, pooled_width=20, image_size=32)
    language = LanguageSpec(width=128, layers=2, heads=4, context=64, vocabulary=131, bos=0, eos=1, pad=2)
    fusion = instantiate(fusion_config("coca", "fusion.pooler_heads=4", f"fusion.pool={pool}"))(vision, language)
    read_by = {fusion.pooler: source_width, fusion.contrast.pooler: 128 if pool == "cascade" else source_width}
    for pooler, width in read_by.items():
        theirs = Reference(128, width, n_head=4, n_queries=1).attn
        packed = theirs.in_proj_weight
        matrices = packed.chunk(3) if packed is not None else [getattr(theirs, f"{n}_proj_weight") for n in "qkv"]
        ours = [getattr(pooler.attend, name).weight for name in ("q", "k", "v", "out")]
        for mine, peer in zip(ours, (*matrices, theirs.out_proj.weight), strict=True):
            assert mine.std().item() == pytest.approx(peer.std().item(), rel=0.03)
            assert mine.abs().max().item() == pytest.approx(peer.abs().max().item(), rel=0.01)  # uniform, too
        assert all(getattr(pooler.attend, name).bias.abs().max() == 0 for name in ("q", "k", "v", "out"))
        assert theirs.in_proj_bias.abs().max() == theirs.out_proj.bias.abs().max() == 0
    assert fusion.pooler.query_nD.std().item() == pytest.approx(1.0, rel=0.03)


def test_upper_half_equals_open_clip():
    """Theirs has two MLPs per layer (C-d4): with the first one at 0 it is ours, several layers deep."""
    from open_clip.transformer import MultimodalTransformer

    language = make_language(layers=4)
    fusion = make_coca(language, "fusion.n_uni=1")
    peer = MultimodalTransformer(32, 3, 4, context_length=16, output_dim=32, act_layer=fast_gelu).double()
    host = language.model.transformer
    state = {**layer_norm_state(host.ln_f, "ln_final"), "text_projection": torch.eye(32)}
    for i, cross in enumerate(fusion.cross):
        mine = block_state(host.h[1 + i], f"resblocks.{i}")
        theirs = block_state(host.h[1 + i], f"cross_attn.{i}")
        state |= {k: torch.zeros_like(v) if ".mlp.c_proj." in k else v for k, v in mine.items()}
        state |= {k: v for k, v in theirs.items() if ".ln_2." in k or ".mlp." in k}
        state |= layer_norm_state(fusion.norms[i], f"cross_attn.{i}.ln_1")
        state |= layer_norm_state(fusion.norm_u, f"cross_attn.{i}.ln_1_kv")
        state |= attention_state(cross, f"cross_attn.{i}.attn", packed=True)
    peer.load_state_dict(state, strict=True)
    visual, text = make_visual(2), make_text(2, 7)
    ours = fusion.decode(language, fusion.encode(language, visual), text)
    h, walk = language.begin(language.embed(text.ids_BT), text)
    t = language.blocks()[0].feed(language.blocks()[0].attend(h, walk))
    torch.testing.assert_close(ours, peer(fusion.pooler(visual.tokens_INC), t), **EXACT)


@pytest.mark.parametrize(("right_mask", "lengths"), [(True, (8, 5, 6)), (False, (8, 5, 6)), (False, (8, 8, 8))])
def test_cls_equals_open_clip_with_its_mask_put_right(right_mask, lengths):
    """C-d3: equal with padding only under ``correct_cls_mask``, and without padding in both modes."""
    from open_clip.transformer import TextTransformer

    language = make_language(layers=4)
    host = language.model.transformer
    with torch.no_grad():  # theirs stands at position 8 always, ours behind the text: make these positions alike
        host.wpe.weight[5:] = host.wpe.weight[5]
    fusion = make_coca(language)
    peer = TextTransformer(
        **{"context_length": 8, "vocab_size": 131, "width": 32, "heads": 4, "layers": 2, "output_dim": 12},
        **{"embed_cls": True, "correct_cls_mask": right_mask, "pad_id": Characters.pad, "output_tokens": True},
        act_layer=fast_gelu,
    ).double()
    state = {
        "token_embedding.weight": host.wte.weight,
        "positional_embedding": host.wpe.weight[:9],
        "cls_emb": fusion.contrast.cls_D,
        "text_projection": fusion.contrast.W_t.weight.T,
        **layer_norm_state(fusion.contrast.norm_cls, "ln_final"),
    }
    for l in range(2):
        state |= block_state(host.h[l], f"transformer.resblocks.{l}")
    peer.load_state_dict(state, strict=True)
    text = padded_text(*lengths)
    theirs, their_tokens = peer(text.ids_BT)
    gap = (fusion.embed_texts(language, text) - F.normalize(theirs, dim=-1)).abs().amax(1)
    padded = ~text.valid_BT.all(1)
    assert gap[~padded].max() < 1e-10
    assert (gap[padded] < 1e-10 if right_mask else gap[padded] > 1e-4).all()
    if right_mask:
        tokens, _ = fusion._tokens_and_cls(language, text)
        torch.testing.assert_close(tokens[text.valid_BT], their_tokens[text.valid_BT], **EXACT)


def test_losses_equal_open_clip():
    from open_clip.loss import ClipLoss, CoCaLoss

    language = make_language()
    fusion = make_coca(language, "fusion.contrastive_weight=1")
    visual, text = make_visual(3), padded_text(8, 5, 6)
    memory = fusion.encode(language, visual)
    hidden, terms = fusion.learn(language, memory, text)
    hidden = hidden[:, :-1]
    value, weight = terms["contrastive"]
    x, y = fusion.embed_pictures(memory), fusion.embed_texts(language, text)
    scale = 1 / fusion.scalars()["temperature"]
    torch.testing.assert_close(value, ClipLoss()(x, y, scale), **EXACT)
    peer = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=Characters.pad)
    contrastive, caption = peer(x, y, fusion.readout(language, hidden), text.ids_BT[:, 1:], scale)
    torch.testing.assert_close(weight * value, contrastive, **EXACT)
    ours = fusion.caption_weight * caption_loss(fusion, language, hidden, text)
    torch.testing.assert_close(ours, caption, **EXACT)


# -------------------------------------------------------------------------------------------------------- transformers
def test_decoder_equals_gpt2_with_cross_attention_in_its_upper_blocks():
    """GPT2LMHeadModel(add_cross_attention=True) whose lower blocks read nothing (output matrices of 0)."""
    language = make_language()
    fusion = make_coca(language)
    config = transformers.GPT2Config(**{**language.model.config.to_dict(), "add_cross_attention": True})
    peer = transformers.GPT2LMHeadModel(config).double().eval()
    state = {**peer.state_dict(), **language.model.state_dict()}
    for key in [k for k in state if ".h.0.crossattention.c_proj." in k]:
        state[key] = torch.zeros_like(state[key])
    for l, (norm, cross) in enumerate(zip(fusion.norms, fusion.cross, strict=True), start=fusion.n_uni):
        name = f"transformer.h.{l}"
        state |= layer_norm_state(norm, f"{name}.ln_cross_attn")
        state |= {f"{name}.crossattention.q_attn.weight": cross.q.weight.T}
        state |= {f"{name}.crossattention.q_attn.bias": cross.q.bias}
        state |= {f"{name}.crossattention.c_attn.weight": torch.cat([cross.k.weight, cross.v.weight]).T}
        state |= {f"{name}.crossattention.c_attn.bias": torch.cat([cross.k.bias, cross.v.bias])}
        state |= {f"{name}.crossattention.c_proj.weight": cross.out.weight.T}
        state |= {f"{name}.crossattention.c_proj.bias": cross.out.bias}
    peer.load_state_dict(state, strict=True)
    visual, text = make_visual(2), make_text(2, 7)
    U = fusion.norm_u(fusion.pooler(visual.tokens_INC))
    ours = fusion.readout(language, fusion.decode(language, fusion.encode(language, visual), text))
    theirs = peer(input_ids=text.ids_BT, encoder_hidden_states=U).logits
    torch.testing.assert_close(ours, theirs, **EXACT)


# ---------------------------------------------------------------------------------------------------------- slow loops
def slow_attention(cross: CrossAttention, query: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(d)) v head by head, for one query."""
    q, k, v = cross.q(query), cross.k(source), cross.v(source)
    d = len(q) // cross.heads
    out = []
    for head in range(cross.heads):
        part = slice(head * d, (head + 1) * d)
        weights = torch.stack([q[part] @ row[part] / math.sqrt(d) for row in k]).softmax(0)
        out.append(sum(w * row[part] for w, row in zip(weights, v, strict=True)))
    return cross.out(torch.cat(out))


def slow_pool(pooler: AttentionalPooler, X: torch.Tensor) -> torch.Tensor:
    source = torch.stack([pooler.norm_k(x) for x in X])
    return torch.stack([slow_attention(pooler.attend, pooler.norm_q(q), source) for q in pooler.query_nD])


def slow_lower(fusion, language, inputs: torch.Tensor) -> torch.Tensor:
    """The lower blocks on one row without padding, plainly causal."""
    h, walk = language.begin(inputs[None], text_of(torch.zeros(1, len(inputs), dtype=torch.long)))
    for block in list(language.blocks())[: fusion.n_uni]:
        h = block.feed(block.attend(h, walk))
    return h[0]


def slow_text_vector(fusion, language, ids: torch.Tensor) -> torch.Tensor:
    """y of one text, from its real tokens alone."""
    contrast = fusion.contrast
    inputs = torch.cat([language.embed(ids[None])[0], contrast.cls_D[None]])
    y = contrast.W_t(contrast.norm_cls(slow_lower(fusion, language, inputs)[-1]))
    return y / y.norm()


def slow_picture_vector(fusion, X: torch.Tensor) -> torch.Tensor:
    source = slow_pool(fusion.pooler, X) if fusion.cascade else X
    x = fusion.contrast.W_i(slow_pool(fusion.contrast.pooler, source)[0])
    return x / x.norm()


def slow_hidden(fusion, language, X: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    U = torch.stack([fusion.norm_u(u) for u in slow_pool(fusion.pooler, X)])
    t = slow_lower(fusion, language, language.embed(ids[None])[0])[None]
    _, walk = language.begin(language.embed(ids[None]), text_of(ids[None]))
    for i, block in enumerate(list(language.blocks())[fusion.n_uni :]):
        a = block.attend(t, walk)
        t = block.feed(a + torch.stack([slow_attention(fusion.cross[i], fusion.norms[i](row), U) for row in a[0]]))
    return language.final_norm(t)[0]


def slow_contrast(x_IE: list, y_IE: list, temperature: float) -> float:
    I, total = len(x_IE), 0.0
    for rows, others in ((x_IE, y_IE), (y_IE, x_IE)):
        for i in range(I):
            s = [(rows[i] @ other).item() / temperature for other in others]
            total -= s[i] - math.log(sum(map(math.exp, s)))
    return total / (2 * I)


@pytest.mark.parametrize("pool", POOLS)
def test_whole_head_is_its_formulas(pool):
    """Pictures with padded regions, texts with padding, against loops that see real tokens only."""
    language = make_language(layers=4)
    fusion = make_coca(language, f"fusion.pool={pool}")
    regions, lengths = (6, 4, 5), (8, 5, 6)
    visual, text = make_visual(3), padded_text(*lengths)
    visual.token_valid_IMN = (torch.arange(6) < torch.tensor(regions)[:, None])[:, None]
    real_X = [visual.tokens_INC[i, :n] for i, n in enumerate(regions)]
    real_ids = [text.ids_BT[b, :n] for b, n in enumerate(lengths)]
    hidden, value = learn(fusion, language, visual, text)
    for i in range(3):
        want = slow_hidden(fusion, language, real_X[i], real_ids[i][:-1])
        torch.testing.assert_close(hidden[i, : lengths[i] - 1], want, **EXACT)
    x = [slow_picture_vector(fusion, X) for X in real_X]
    y = [slow_text_vector(fusion, language, ids) for ids in real_ids]
    torch.testing.assert_close(fusion.embed_pictures(fusion.encode(language, visual)), torch.stack(x), **EXACT)
    torch.testing.assert_close(fusion.embed_texts(language, text), torch.stack(y), **EXACT)
    assert value.item() == pytest.approx(slow_contrast(x, y, fusion.scalars()["temperature"]), abs=1e-10)


# ----------------------------------------------------------------------------------------------------------------- CLS
def check_cls_sees_its_text_alone(fusion, language, text: Text) -> None:
    y_BE = fusion.embed_texts(language, text)
    for row, valid, y in zip(text.ids_BT, text.valid_BT, y_BE, strict=True):
        torch.testing.assert_close(y, slow_text_vector(fusion, language, row[valid]), **EXACT)


@pytest.mark.parametrize("lengths", [(8, 8), (8, 3), (2, 7)])
def test_cls_sees_all_real_tokens_itself_and_no_padding(lengths):
    language = make_language()
    check_cls_sees_its_text_alone(make_coca(language), language, padded_text(*lengths, width=9))


def test_cls_of_left_padded_texts():
    language = make_language()
    text = make_text(2, 7)
    text.valid_BT[1, :3] = False
    check_cls_sees_its_text_alone(make_coca(language), language, replace(text, ragged=True))


def test_an_end_token_that_is_also_padding_is_seen():
    """GPT-2 pads with its end token: the end of the text counts, the padding behind it does not."""
    language = make_language()
    fusion, text = make_coca(language), padded_text(8, 5)
    text.ids_BT[~text.valid_BT] = Characters.eos
    check_cls_sees_its_text_alone(fusion, language, text)
    without_end = text.valid_BT.clone()
    without_end[1, 4] = False
    gap = fusion.embed_texts(language, text) - fusion.embed_texts(language, replace(text, valid_BT=without_end))
    assert gap[0].abs().max() < 1e-12 and gap[1].abs().max() > 1e-4


def test_a_mask_shifted_by_one_is_noticed(monkeypatch):
    """C-d3 planted: validity of [tokens ; CLS] moved by one column, as in open_clip's released models."""
    language = make_language()
    fusion, text, begin = make_coca(language), padded_text(8, 5), language.begin
    check_cls_sees_its_text_alone(fusion, language, text)
    monkeypatch.setattr(language, "begin", lambda x, text: begin(x, replace(text, valid_BT=text.valid_BT.roll(1, 1))))
    padded = Text(text.ids_BT[1:], text.valid_BT[1:], text.phi_BT[1:])
    y = fusion.embed_texts(language, padded)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(y, fusion.embed_texts(language, padded), **EXACT)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(y[0], slow_text_vector(fusion, language, text.ids_BT[1, :5]), **EXACT)


def test_token_0_is_a_word():
    """C-d6: it is a target, and CLS sees it."""
    language = make_language()
    fusion, text = make_coca(language), padded_text(8, 6)
    text.ids_BT[1, 3] = 0
    check_cls_sees_its_text_alone(fusion, language, text)
    rates = {"train_language": True, "train_vision": False}
    model = Captioner(None, fusion, language, Characters(), rates, {}, Greedy(8), OBJECTIVES).eval()
    model.visual = lambda batch, aux=None: batch.visual  # not rounded to float32
    loss, targets, terms, _ = model.losses(viewed(Batch(["p", "q"], text, visual=make_visual(2))))["next_token"]
    hidden, _ = learn(fusion, language, make_visual(2), text)
    logp = fusion.readout(language, hidden).log_softmax(-1)
    said = [-logp[b, t, text.ids_BT[b, t + 1]].item() for b, n in enumerate((8, 6)) for t in range(n - 1)]
    assert int(targets) == len(said) == 12 and set(terms) == {"contrastive"}
    assert loss.item() == pytest.approx(sum(said) / 12, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------- invariants
def test_1_texts_know_nothing_of_pictures():
    language, text = make_language(), padded_text(8, 5)
    fusion, seen = make_coca(language), []
    embed = fusion.contrast.text
    fusion.contrast.text = lambda cls: seen.append(embed(cls)) or seen[-1]
    one, two = (learn(fusion, language, make_visual(2, seed=seed), text)[0] for seed in (2, 5))
    assert torch.equal(*seen) and (one - two).abs().max() > 1e-4


@pytest.mark.parametrize("pool", POOLS)
def test_2_contrastive_loss_alone_leaves_captioning_untouched(pool):
    language = make_language()
    fusion = make_coca(language, f"fusion.pool={pool}").train()
    learn(fusion, language, make_visual(3), padded_text(8, 5, 6))[1].backward()
    moving = moved(fusion.named_parameters())
    contrastive = {n for n, _ in fusion.named_parameters() if n.startswith(CONTRASTIVE_ONLY)}
    pooler = {n for n, _ in fusion.named_parameters() if n.startswith("pooler.")}
    assert moving == contrastive | (pooler if pool == "cascade" else set())
    blocks = moved(language.named_parameters())
    assert any(".h.0." in name for name in blocks)
    assert not any(".h.1." in name or ".h.2." in name or "ln_f" in name for name in blocks)


@pytest.mark.parametrize("pool", POOLS)
def test_3_caption_loss_alone_leaves_retrieval_untouched(pool):
    language = make_language()
    fusion = make_coca(language, f"fusion.pool={pool}").train()
    text = padded_text(8, 5, 6)
    hidden, _ = learn(fusion, language, make_visual(3), text)
    caption_loss(fusion, language, hidden, text).backward()
    assert moved(fusion.named_parameters()) == {
        n for n, _ in fusion.named_parameters() if not n.startswith(CONTRASTIVE_ONLY)
    }


def test_4_token_states_are_those_without_cls():
    language = make_language()
    fusion, visual, text = make_coca(language), make_visual(2), padded_text(8, 5, 6, 7)
    with_cls, _ = learn(fusion, language, visual, text)
    without = fusion.decode(language, fusion.encode(language, visual), text.columns(None, -1))
    real = text.valid_BT[:, :-1]
    torch.testing.assert_close(with_cls[real], without[real], rtol=0, atol=1e-12)
    with torch.no_grad():
        fusion.contrast.cls_D.add_(1.0)
    other, _ = learn(fusion, language, visual, text)
    assert torch.equal(with_cls, other)  # padding columns included: CLS reaches nothing of the caption's walk


def test_5_more_padding_changes_nothing():
    language = make_language()
    fusion, visual = make_coca(language), make_visual(2)
    short, pad = padded_text(8, 5), torch.full((2, 4), Characters.pad)
    long = Text(
        torch.cat([short.ids_BT, pad], 1),
        torch.cat([short.valid_BT, pad < 0], 1),
        torch.cat([short.phi_BT, 0 * pad], 1),
    )
    torch.testing.assert_close(fusion.embed_texts(language, long), fusion.embed_texts(language, short), **EXACT)
    one, two = learn(fusion, language, visual, short), learn(fusion, language, visual, long)
    torch.testing.assert_close(two[1], one[1], **EXACT)
    torch.testing.assert_close(two[0][:, :7][short.valid_BT[:, :-1]], one[0][short.valid_BT[:, :-1]], **EXACT)


def test_6_both_halves_are_causal():
    language = make_language()
    fusion, visual, text = make_coca(language), make_visual(2), make_text(2, 9)
    other = replace(text, ids_BT=text.ids_BT.clone())
    other.ids_BT[:, 5:] = make_text(2, 9, seed=9).ids_BT[:, 5:]
    for walk in (lambda t: fusion._tokens_and_cls(language, t)[0], lambda t: learn(fusion, language, visual, t)[0]):
        one, two = walk(text), walk(other)
        assert torch.equal(one[:, :5], two[:, :5]) and (one[:, 5:] - two[:, 5:]).abs().max() > 1e-4
    assert (fusion.embed_texts(language, text) - fusion.embed_texts(language, other)).abs().amax(1).min() > 1e-4


def test_7_contrastive_loss_knows_no_order_and_is_log_of_the_batch_for_equal_vectors():
    contrast = nudge(Contrast(8, 8, 2, 6, 0.07).double())
    x, y = (F.normalize(torch.randn(5, 6, dtype=torch.float64), dim=-1) for _ in range(2))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(contrast.loss(x[order], y[order]), contrast.loss(x, y), **EXACT)
    assert (contrast.loss(x[order], y) - contrast.loss(x, y)).abs() > 1e-3
    same = x[:1].expand(5, -1)
    assert contrast.loss(same, same).item() == pytest.approx(math.log(5), abs=1e-12)


def test_8_without_contrastive_weight_it_is_a_plain_captioner():
    language = make_language()
    fusion, plain = make_coca(language), make_coca(language, "fusion.contrastive_weight=0")
    visual, text = make_visual(2), padded_text(8, 5, 6, 7)
    hidden, terms = plain.learn(language, plain.encode(language, visual), text.columns(None, -1))
    assert terms == {} and not plain.compares and fusion.compares
    both, _ = learn(fusion, language, visual, text)
    real = text.valid_BT[:, :-1]
    torch.testing.assert_close(hidden[real], both[real], rtol=0, atol=1e-12)
    caption_loss(plain.train(), language, hidden, text).backward()
    trained = {n for n, p in plain.named_parameters() if p.requires_grad}
    assert trained == moved(plain.named_parameters())
    assert trained == {n for n, _ in plain.named_parameters() if not n.startswith(CONTRASTIVE_ONLY)}
    assert plain.state_dict().keys() == fusion.state_dict().keys()  # a checkpoint with the loss goes on without it


def test_9_weights_are_factors():
    language, visual, text = make_language(), make_visual(2), padded_text(8, 5)
    one = make_coca(language)
    three = make_coca(language, "fusion.contrastive_weight=3", "fusion.caption_weight=0.5")
    (hidden1, terms1), (hidden3, terms3) = (f.learn(language, f.encode(language, visual), text) for f in (one, three))
    assert torch.equal(hidden1, hidden3) and torch.equal(terms1["contrastive"][0], terms3["contrastive"][0])
    assert (terms1["contrastive"][1], terms3["contrastive"][1]) == (0.15, 3.0)
    assert (one.caption_weight, three.caption_weight) == (2.0, 0.5)


def test_10_zero_start_is_the_language_model():
    language = make_language()
    fusion = make_coca(language, "fusion.start=neutral", nudged=False)
    text = make_text(2, 6)
    h = fusion.decode(language, fusion.encode(language, make_visual(2)), text)
    assert torch.equal(fusion.readout(language, h), language.unembed(language.hidden(text)))
    assert fusion.preserves_lm_at_init and not make_coca(language, "fusion.start=paper").preserves_lm_at_init


# --------------------------------------------------------------------------------------------------------- what it does
@pytest.mark.parametrize("options", [("fusion.pool=parallel",), ("fusion.n_uni=2",), ("fusion.n_uni=1",)])
def test_cached_steps_equal_the_full_walk(options):
    language = make_language()
    fusion, visual, text = make_coca(language, *options), make_visual(2), make_text(4, 9)
    memory, cache = fusion.encode(language, visual), Cache(4, 9)
    steps = [text.columns(0, 3)] + [text.columns(t, t + 1) for t in range(3, 9)]
    got = torch.cat([fusion.decode(language, memory, step, cache) for step in steps], dim=1)
    torch.testing.assert_close(got, fusion.decode(language, memory, text), **EXACT)
    assert cache.length == 9


@pytest.mark.parametrize("pool", POOLS)
def test_padded_regions_reach_neither_captions_nor_picture_vectors(pool):
    language = make_language()
    fusion, visual, text = make_coca(language, f"fusion.pool={pool}"), make_visual(2), make_text(2, 5)
    tokens = torch.cat([visual.tokens_IMNC, make_visual(2, seed=7, tokens=3).tokens_IMNC], 2)
    padded = Visual(tokens, visual.pooled_IMC, token_valid_IMN=(torch.arange(9) < 6).expand(2, 1, -1))
    (one, l1), (two, l2) = (learn(fusion, language, v, text) for v in (visual, padded))
    torch.testing.assert_close(two, one, **EXACT)
    torch.testing.assert_close(l2, l1, **EXACT)


def test_one_caption_of_each_picture_enters_the_contrast():
    language = make_language()
    fusion, visual, text = make_coca(language), make_visual(2), padded_text(8, 5, 6, 7)
    _, value = learn(fusion, language, visual, text)
    first = Text(text.ids_BT[::2], text.valid_BT[::2], text.phi_BT[::2])
    torch.testing.assert_close(value, learn(fusion, language, visual, first)[1], **EXACT)


def test_memory_goes_by_picture():
    language = make_language()
    fusion = make_coca(language)
    memory = fusion.encode(language, make_visual(3))
    assert isinstance(memory, Memory) and all(len(x) == 3 for x in memory.values())
    x = fusion.embed_pictures(memory.select(torch.tensor([2, 0])))
    assert torch.equal(x, fusion.embed_pictures(memory)[[2, 0]])
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, dtype=torch.float64))


def test_a_host_with_rotary_positions():
    """Each half of a training pass has its own number of columns, so also its own rotations."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=131, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    language = nudge(Llama(transformers.LlamaForCausalLM(config), Characters()).double()).eval()
    fusion, visual, text = make_coca(language), make_visual(2), padded_text(8, 5)
    hidden, _ = learn(fusion, language, visual, text)
    want = fusion.decode(language, fusion.encode(language, visual), text.columns(None, -1))
    real = text.valid_BT[:, :-1]
    torch.testing.assert_close(hidden[real], want[real], **EXACT)
    check_cls_sees_its_text_alone(fusion, language, text)


def test_diagnostics_lead_from_words_to_visual_tokens():
    language = make_language()
    fusion, visual, text, aux, late = make_coca(language), make_visual(2), make_text(4, 6), {}, {}
    memory = fusion.encode(language, visual, aux)
    hidden = fusion.decode(language, memory, text, aux=aux)
    plain = fusion.encode(language, visual)
    assert all(torch.equal(x, plain[name]) for name, x in memory.items())
    assert torch.equal(hidden, fusion.decode(language, plain, text, aux=late))
    assert set(aux) == {"pooler", "attention"} and set(late) == {"latent_attention"}
    (pooled,) = aux["pooler"]
    assert pooled.shape == (2, 5, 6) and len(aux["attention"]) == len(late["latent_attention"]) == 2
    for latent, weights in zip(late["latent_attention"], aux["attention"], strict=True):
        assert latent.shape == (4, 4, 6, 5) and weights.shape == (4, 4, 6, 6)
        for b in range(4):
            torch.testing.assert_close(weights[b, 1, 2], latent[b, 1, 2] @ pooled[b // 2], **EXACT)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 6, dtype=torch.float64))


def test_half_precision_compares_in_single():
    language = make_language().float()
    fusion = make_coca(language).float()
    visual, text = make_visual(2), padded_text(8, 5)
    visual = Visual(visual.tokens_IMNC.float(), visual.pooled_IMC.float())
    _, want = learn(fusion, language, visual, text)
    with torch.autocast("cpu", torch.bfloat16):
        hidden, value = learn(fusion, language, visual, text)
    assert value.dtype == torch.float32 and hidden.isfinite().all()
    assert value.item() == pytest.approx(want.item(), abs=0.1)


def test_learnt_constants_are_not_decayed():
    fusion = make_coca(make_language())
    names = dict(fusion.named_parameters())
    assert set(fusion.undecayed) <= set(names) and names["contrast.cls_D"].ndim == 1
    assert names["contrast.log_temperature"].shape == (1,)
    assert make_coca(make_language(), nudged=False).scalars()["temperature"] == pytest.approx(0.07)


def test_size_beside_gpt2_small():
    """Six cross-attentions of 768: 14.2 M; a pooler of 256 queries: 2.6 M."""
    spec = LanguageSpec(width=768, layers=12, heads=12, vocabulary=50257, context=1024, bos=0, eos=0, pad=0)
    with torch.device("meta"):
        vision = VisionSpec(width=768, tokens=196, pooled_width=512, image_size=224)
        fusion = instantiate(fusion_config("coca"))(vision, spec)
    assert fusion.n_uni == len(fusion.cross) == 6
    assert sum(p.numel() for p in fusion.cross.parameters()) == pytest.approx(14.2e6, rel=5e-3)
    assert sum(p.numel() for p in fusion.pooler.parameters()) == pytest.approx(2.56e6, rel=5e-3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("n_uni=0", "n_uni must be a whole number of at least 1 or null; got 0"),
        ("n_uni=3", "n_uni=3 leaves no block for the upper half: the language model has 3"),
        ("pool=mean", "pool must be cascade or parallel"),
        ("queries=0", "queries must be a whole number of at least 1"),
        ("embed_width=0", "embed_width must be a whole number of at least 1"),
        ("pooler_heads=0", "pooler_heads must be a whole number of at least 1"),
        ("pooler_heads=5", "pooler_heads=5 must divide the language model's width 32"),
        ("start=one", "start must be neutral or paper"),
        ("contrastive_weight=-1", "contrastive_weight must be a number of at least 0; got -1"),
        ("caption_weight=-1", "caption_weight must be a number of at least 0; got -1"),
        ("temperature_init=0", "temperature_init must be a number above 0; got 0"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(UserError, match=message):
        make_coca(make_language(), f"fusion.{option}")


def test_a_model_of_one_block_or_without_any_loss_is_refused():
    with pytest.raises(UserError, match="at least 2 blocks"):
        make_coca(make_language(layers=1))
    with pytest.raises(UserError, match="are both 0"):
        make_coca(make_language(), "fusion.contrastive_weight=0", "fusion.caption_weight=0")


# ---------------------------------------------------------------------------------------------------- several processes
def rank_gradients(rank: int, store: str, results) -> None:
    """One of two processes: half of the pictures, its own loss and gradients."""
    torch.set_num_threads(1)
    init = f"file://{store}"
    torch.distributed.init_process_group("gloo", init, timedelta(seconds=60), world_size=2, rank=rank)
    value, gradients = contrast_gradients(slice(2 * rank, 2 * rank + 2))
    results[rank] = (value, gradients)
    torch.distributed.destroy_process_group()


def contrast_gradients(rows: slice):
    torch.manual_seed(0)
    contrast = nudge(Contrast(8, 8, 2, 6, 0.5).double()).train()
    U, cls = torch.randn(4, 3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    value = contrast.loss(contrast.picture(U[rows]), contrast.text(cls[rows]))
    value.backward()
    return value.item(), {n: p.grad for n, p in contrast.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_processes_share_their_negatives(tmp_path):
    """Two processes of two pictures: the loss of all four, and its gradients as the mean of theirs."""
    want, gradients = contrast_gradients(slice(0, 4))
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(rank_gradients, (str(tmp_path / "store"), results), nprocs=2)
        (one, g1), (two, g2) = results[0], results[1]
    assert one == pytest.approx(want, abs=1e-12) and two == pytest.approx(want, abs=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close((g1[name] + g2[name]) / 2, gradient, rtol=0, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------- retrieval
def slow_recall(similarity: list[list[float]], picture: list[int], k: int) -> tuple[float, float]:
    I, B = len(similarity), len(picture)

    def found(scores: list[float], own: set[int]) -> bool:
        # Worst order among equals: strangers first. NaN is as good as anything.
        def key(j: int):
            return (-math.inf if math.isnan(scores[j]) and j not in own else -scores[j], j in own)

        return bool(own & set(sorted(range(len(scores)), key=key)[:k]))

    i2t = [found(similarity[i], {b for b in range(B) if picture[b] == i}) for i in range(I)]
    t2i = [found([similarity[i][b] for i in range(I)], {picture[b]}) for b in range(B)]
    return sum(i2t) / I, sum(t2i) / B


@pytest.mark.parametrize("steps", [None, 3], ids=["different", "ties"])
def test_recall_is_a_slow_loop(steps):
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        picture = torch.cat([torch.arange(7), torch.randint(7, (8,), generator=g)])[torch.randperm(15, generator=g)]
        similarity = torch.randn(7, 15, generator=g, dtype=torch.float64)
        similarity += 1.5 * (picture == torch.arange(7)[:, None])
        if steps:
            similarity = (similarity * steps).round() / steps
        got = recall_at_k(similarity, picture, ks=(1, 2, 5))
        for k in (1, 2, 5):
            i2t, t2i = slow_recall(similarity.tolist(), picture.tolist(), k)
            assert got[f"i2t/R@{k}"] == pytest.approx(i2t) and got[f"t2i/R@{k}"] == pytest.approx(t2i)
        alone = [similarity[i : i + 1] for i in range(7)]
        for i, of_it in enumerate(recall_of_each(similarity, picture, ks=(1, 2))):
            best = float(alone[i][0, picture == i].max())
            ahead = sum(float(x) >= best for x in alone[i][0, picture != i])
            assert of_it["i2t/R@2"] == (ahead < 2)
            found = [(similarity[:, b] >= similarity[i, b]).sum() - 1 < 1 for b in range(15) if picture[b] == i]
            assert of_it["t2i/R@1"] == pytest.approx(sum(map(bool, found)) / len(found))


def test_recall_of_certain_models():
    picture = torch.arange(12).repeat_interleave(5)
    own = (picture == torch.arange(12)[:, None]).double()
    names = {f"{way}/R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert recall_at_k(own, picture) == dict.fromkeys(names, 1.0)
    for nothing_learnt in (torch.zeros_like(own), torch.full_like(own, torch.nan)):
        assert recall_at_k(nothing_learnt, picture) == dict.fromkeys(names, 0.0)
    one_of_five = torch.zeros_like(own)
    one_of_five[torch.arange(12), 5 * torch.arange(12) + 3] = 1.0
    scores = recall_at_k(one_of_five, picture)
    assert scores["i2t/R@1"] == 1.0 and scores["t2i/R@1"] == pytest.approx(0.2)


@pytest.mark.parametrize("picture", [[0, 0, 0], [0, 1], [0, 1, 2], []])
def test_recall_needs_a_text_for_every_picture(picture):
    with pytest.raises(ValueError, match="at least one text"):
        recall_at_k(torch.zeros(2, 3), torch.tensor(picture))


def test_a_trained_pair_of_encoders_finds_its_pairs():
    """A few steps on the contrastive term alone: recall rises from chance to 1."""
    language = make_language(width=16, layers=2)
    fusion = make_coca(language, "fusion.pooler_heads=2", nudged=False).train()
    visual, text = make_visual(6), make_text(6, 7)
    optimizer = torch.optim.Adam(fusion.contrast.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        learn(fusion, language, visual, text)[1].backward()
        optimizer.step()
    x = fusion.embed_pictures(fusion.encode(language, visual))
    scores = recall_at_k(x @ fusion.embed_texts(language, text).T, torch.arange(6))
    assert scores["i2t/R@1"] == scores["t2i/R@1"] == 1.0
