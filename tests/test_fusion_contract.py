"""What every mechanism must keep, run over every yaml of conf/fusion: a new file is tested by existing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import FUSIONS, IN_BLOCKS, VISION, language_of, make_fusion, make_text, make_visual
from families import make_family

from src.contracts import Text, Visual
from src.layers.cache import Cache
from src.layers.dropout import Dropout

EXACT = {"rtol": 0, "atol": 1e-10}
# Options that change the computation are contracts of their own, and so are blocks that are no GPT-2's: attention and
# MLP side by side; norms on both sides of them, and bounded logits; norms on sums, or none in front.
BLOCKS = {"neox": IN_BLOCKS, "gemma2": IN_BLOCKS, "opt_350m": ("cross_attention", "srau"), "olmo2": ("srau",)}
VARIANTS = [
    *[(name, ()) for name in FUSIONS],
    *[(name, (f"language={family}",)) for family, names in BLOCKS.items() for name in names],
    ("clipcap", ("fusion.mapper=transformer",)),
    ("srau", ("fusion.level_source=encoder",)),
    ("srau_paper", ("fusion.gate=none",)),
    ("srau", ("fusion.level_norm=mean", "fusion.share_ln=false", "fusion.gate_bias_init=4.0", "fusion.start=paper")),
    ("srau", ("fusion.every=2", "fusion.levels=2")),
    ("srau", ("fusion.gate=none", "fusion.level_norm=mean")),
    ("cross_attention", ("fusion.every=2",)),
    ("cross_attention", ("fusion.norm_visual=false", "fusion.start=usual")),
    ("vcgpt", ("fusion.head=shared",)),
    ("vcgpt", ("fusion.self_ensemble=false", "fusion.start=paper")),
    ("flamingo", ("fusion.last_image=false", "fusion.every=2")),
    ("flamingo", ("fusion.gate=false", "fusion.activation=gelu", "fusion.resampler_width=16")),
    ("flamingo", ("fusion.gate_init=1.0",)),
    ("coca", ("fusion.pool=parallel", "fusion.n_uni=2")),
    ("coca", ("fusion.start=paper",)),
    ("show_attend_tell", ("fusion.query=current", "fusion.width=20")),
    ("show_attend_tell", ("fusion.score=dot", "fusion.doubly_stochastic=0")),
    ("show_attend_tell", ("fusion.score=scaled_dot", "fusion.attention_width=12")),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *(o.split(".")[-1] for o in v[1])]))
def parts(request):
    name, overrides = request.param
    language, options = hosted(name, overrides)
    return make_fusion(name, language, *options), language


def hosted(name, overrides):
    """The language model that ``overrides`` name, or the mechanism asks for, and the rest of them."""
    named = [option for option in overrides if option.startswith("language=")]
    language = make_family(named[0].partition("=")[2]) if named else language_of(name)
    return language, [option for option in overrides if option not in named]


def logits(fusion, language, visual, text, cache=None, aux=None):
    memory = fusion.encode(language, visual)
    return fusion.readout(language, fusion.decode(language, memory, text, cache, aux))


def test_shape_with_several_captions_per_picture(parts):
    fusion, language = parts
    assert logits(fusion, language, make_visual(2), make_text(6, 5)).shape == (6, 5, 131)


def test_causality(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(2, 8)
    other = replace(text, ids_BT=text.ids_BT.clone())
    other.ids_BT[:, 5:] = make_text(2, 8, seed=9).ids_BT[:, 5:]
    one, two = logits(fusion, language, visual, text), logits(fusion, language, visual, other)
    torch.testing.assert_close(one[:, :5], two[:, :5], rtol=0, atol=0)
    assert (one[:, 5:] - two[:, 5:]).abs().max() > 1e-4


def test_rows_do_not_mix(parts):
    fusion, language = parts
    visual, text = make_visual(3), make_text(6, 7)
    full = logits(fusion, language, visual, text)
    for i in range(3):
        alone = Visual(visual.tokens_IMNC[i : i + 1], visual.pooled_IMC[i : i + 1], visual.levels_IMKNC[i : i + 1])
        rows = slice(2 * i, 2 * i + 2)
        mine = Text(text.ids_BT[rows], text.valid_BT[rows], text.phi_BT[rows])
        torch.testing.assert_close(logits(fusion, language, alone, mine), full[rows], **EXACT)


def test_sees_the_picture_unless_blind(parts):
    fusion, language = parts
    text = make_text(2, 6)
    gap = logits(fusion, language, make_visual(2, seed=2), text) - logits(
        fusion, language, make_visual(2, seed=5), text
    )
    if fusion.sees:
        assert (gap.abs().amax((1, 2)) > 1e-4).all()
    else:
        assert gap.abs().max() == 0


def test_reads_no_tokens_where_it_says_so(parts):
    fusion, language = parts
    if fusion.needs_tokens or not fusion.sees:
        return
    visual, text = make_visual(2), make_text(2, 6)
    pooled = replace(visual, tokens_IMNC=visual.tokens_IMNC[:, :, :0])
    torch.testing.assert_close(logits(fusion, language, pooled, text), logits(fusion, language, visual, text), **EXACT)


def test_cached_steps_equal_the_full_walk(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(4, 9)
    full = logits(fusion, language, visual, text)
    memory, cache = fusion.encode(language, visual), Cache(4, 9 + fusion.extra_positions)
    columns = [text.columns(0, 3)] + [text.columns(t, t + 1) for t in range(3, 9)]
    hidden = torch.cat([fusion.decode(language, memory, column, cache) for column in columns], dim=1)
    torch.testing.assert_close(fusion.readout(language, hidden), full, **EXACT)


@torch.no_grad()
def test_left_padded_prompts_and_reordered_beams(parts):
    """A ragged prompt, then beams in another order, then one more token: equal to each row computed alone."""
    fusion, language = parts
    visual, text = make_visual(2), make_text(2, 6)
    short = 4  # the second prompt has 4 tokens; two columns of padding stand before it
    ids_BT, valid_BT = text.ids_BT.clone(), text.valid_BT.clone()
    ids_BT[1, 2:], ids_BT[1, :2] = text.ids_BT[1, :short], language.spec.pad
    valid_BT[1, :2] = False
    ragged = Text(ids_BT, valid_BT, valid_BT.long(), ragged=True)
    memory, cache = fusion.encode(language, visual), Cache(2, 8 + fusion.extra_positions)
    fusion.decode(language, memory, ragged, cache)
    cache.repeat(2)
    order = torch.tensor([1, 0, 3, 3])  # beams stay with their picture
    cache.select(order)
    new = torch.tensor([[11], [12], [13], [14]])
    step = Text(new, torch.ones_like(new, dtype=torch.bool), torch.ones_like(new))
    got = fusion.readout(language, fusion.decode(language, memory, step, cache))[:, 0]
    for row in range(4):
        picture = row // 2
        prompt = text.ids_BT[picture, : (6, short)[picture]]
        ids = torch.cat([prompt, new[row]])[None]
        alone = Visual(
            *(x[picture : picture + 1] for x in (visual.tokens_IMNC, visual.pooled_IMC, visual.levels_IMKNC))
        )
        want = logits(fusion, language, alone, Text(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones_like(ids)))
        torch.testing.assert_close(got[row], want[0, -1], **EXACT)


def test_right_padding_changes_nothing(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(2, 5)
    pad = torch.full((2, 3), language.spec.pad)
    none = torch.zeros(2, 3)
    padded = Text(
        torch.cat([text.ids_BT, pad], 1),
        torch.cat([text.valid_BT, none.bool()], 1),
        torch.cat([text.phi_BT, none.long()], 1),
    )
    want = logits(fusion, language, visual, text)
    torch.testing.assert_close(logits(fusion, language, visual, padded)[:, :5], want, **EXACT)


def test_padded_regions_change_nothing(parts):
    fusion, language = parts
    visual, text = make_visual(2), make_text(2, 5)
    junk = make_visual(2, seed=7, tokens=3)
    padded = Visual(
        torch.cat([visual.tokens_IMNC, junk.tokens_IMNC], 2),
        visual.pooled_IMC,
        torch.cat([visual.levels_IMKNC, junk.levels_IMKNC], 3),
        token_valid_IMN=torch.tensor([True] * VISION.tokens + [False] * 3).expand(2, 1, -1),
    )
    want = logits(fusion, language, visual, text)
    torch.testing.assert_close(logits(fusion, language, padded, text), want, rtol=0, atol=1e-9)


def test_gradient_reaches_every_trainable_parameter(parts):
    fusion, language = parts
    memory = fusion.train().encode(language, make_visual(2))
    hidden, terms = fusion.learn(language, memory, make_text(4, 7))
    loss = fusion.readout(language, hidden).logsumexp(-1).sum()
    (loss + sum(value for value, _ in terms.values())).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


DROPOUT = 0.1  # as conftest has it


def test_dropout_is_the_rate_of_all(parts):
    """What drops anything has the one rate, and eval mode drops nothing."""
    fusion, language = parts
    rates = {part.p for part in fusion.modules() if isinstance(part, Dropout)}
    rates |= {part.dropout for part in fusion.modules() if isinstance(getattr(part, "dropout", None), float)}
    rates -= {0.0}  # on the attention weights of SRAU's encoder, as in the authors' code
    assert rates <= {DROPOUT}
    visual, text = make_visual(2), make_text(4, 7)
    one, other = (logits(fusion.train(), language, visual, text) for _ in range(2))
    assert torch.equal(one, other) == (not rates)
    one, other = (logits(fusion.eval(), language, visual, text) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    "name", sorted({"clipcap", "coca", "cross_attention", "flamingo", "prefix", "show_attend_tell", "srau", "vcgpt"})
)
def test_every_mechanism_of_ours_drops_something(name):
    fusion = make_fusion(name, language_of(name))
    assert any(isinstance(part, Dropout) and part.p == DROPOUT for part in fusion.modules()) or any(
        getattr(part, "dropout", 0) == DROPOUT for part in fusion.modules()
    )


def test_language_model_is_left_alone(parts):
    fusion, language = parts
    before = copy.deepcopy(language.state_dict())
    language.requires_grad_(False)
    out = logits(fusion, language, make_visual(2), make_text(2, 6))
    if fusion.sees:
        out.sum().backward()
    assert all(parameter.grad is None for parameter in language.parameters())
    assert all(torch.equal(before[name], x) for name, x in language.state_dict().items())
    assert not set(map(id, fusion.parameters())) & set(map(id, language.parameters()))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_equals_the_plain_model_at_init_if_it_says_so(name, options):
    """And then the first step of training moves it away, by the picture."""
    (language, options), text, visual = hosted(name, options), make_text(2, 6), make_visual(2)
    fusion = make_fusion(name, language, *options, nudged=False)
    plain = language.unembed(language.hidden(text))
    same = torch.allclose(logits(fusion, language, visual, text), plain, rtol=0, atol=1e-6)
    assert same == fusion.preserves_lm_at_init
    if not same or not fusion.sees or not fusion.state_dict():
        return
    logits(fusion, language, visual, text)[..., 5].sum().backward()
    with torch.no_grad():
        for parameter in fusion.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    if name != "flamingo":  # whose gates have to open before anything else learns
        assert not torch.allclose(logits(fusion, language, visual, text), plain, rtol=0, atol=1e-4)


def test_bfloat16_is_finite(parts):
    fusion, language = parts
    fusion, language, visual = fusion.float(), language.float(), make_visual(2)
    visual = Visual(visual.tokens_IMNC.float(), visual.pooled_IMC.float(), visual.levels_IMKNC.float())
    text = make_text(2, 6)
    text.valid_BT[1, :3] = False
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(fusion, language, visual, replace(text, ragged=True))
    assert out.isfinite().all()


def test_diagnostics_change_nothing(parts):
    fusion, language = parts
    visual, text, aux = make_visual(2), make_text(4, 6), {}
    with_aux = logits(fusion, language, visual, text, aux=aux)
    torch.testing.assert_close(with_aux, logits(fusion, language, visual, text), rtol=0, atol=0)
    for weights in aux.get("attention", []):
        assert weights.shape[0] == 4 and weights.shape[2:] == (6, VISION.tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_state_dict_round_trip(parts):
    fusion, language = parts
    twin = copy.deepcopy(fusion)
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter)
    twin.load_state_dict(fusion.state_dict(), strict=True)
    visual, text = make_visual(2), make_text(2, 4)
    assert torch.equal(logits(twin, language, visual, text), logits(fusion, language, visual, text))
