"""What every projector promises, whichever mechanism reads what it hands out, and each by its paper's formulas."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from conftest import (
    OBJECTIVES,
    ROOT,
    VISION,
    Characters,
    fusion_config,
    make_fusion,
    make_language,
    make_text,
    make_visual,
    nudge,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf
from test_captioner import OPTIM
from torch import nn
from torch.nn import functional as F

from src.captioner import Captioner
from src.config.classes import static_method
from src.contracts import LanguageSpec, UserError, VisionSpec, Visual
from src.decoding.greedy import Greedy
from src.diagnostics.reading import _over_picture, read
from src.projectors.base import Projector
from src.projectors.grid import as_grid
from src.projectors.ldp import LDP
from src.projectors.ldp_v2 import LDPv2
from src.vision.vit import ViT

PROJECTORS = sorted(path.stem for path in (ROOT / "conf" / "projector").glob("*.yaml"))


GRID = replace(VISION, tokens=16)  # 4 x 4, which all of them read
READING = [name for name in PROJECTORS if name not in ("constant", "pooled")]  # the encoder's tokens
HALVING = ["ldp", "ldp_v2", "pixel_shuffle"]
EXACT = {"rtol": 0, "atol": 1e-10}


def make_projector(name: str, language, vision: VisionSpec = GRID, **options) -> Projector:
    written = OmegaConf.create({"it": OmegaConf.load(ROOT / "conf" / "projector" / f"{name}.yaml"), "dropout": 0.1})
    written.it.update(options)
    return nudge(instantiate(written.it)(vision, language.spec).double()).eval()


def pictures(contexts: int, seed: int = 2, tokens: int = GRID.tokens) -> Visual:
    return make_visual(contexts, seed, tokens)


@pytest.mark.parametrize("name", PROJECTORS)
def test_what_comes_out_is_what_the_spec_and_the_options_say(name):
    language = make_language()
    projector = make_projector(name, language)
    seen, spec = projector(pictures(2)), projector.spec
    assert seen.tokens_IMNC.shape == (2, 1, spec.tokens, spec.width)
    assert (seen.levels_IMKNC is None) == (spec.levels == 0)
    if spec.levels:
        assert seen.levels_IMKNC.shape == (2, 1, spec.levels, spec.tokens, spec.width)
    options = OmegaConf.load(ROOT / "conf" / "projector" / f"{name}.yaml")
    told = static_method(options._target_, "sizes")(options, language.spec, GRID)
    assert told == {key: vars(spec)[key] for key in ("width", "tokens", "levels")}


@pytest.mark.parametrize("name", PROJECTORS)
def test_padding_is_not_looked_at(name):
    projector, visual, junk = make_projector(name, make_language()), pictures(2), pictures(2, seed=7, tokens=9)
    valid = torch.tensor([True] * 16 + [False] * 9).expand(2, 1, -1)
    padded = replace(visual, tokens_IMNC=torch.cat([visual.tokens_IMNC, junk.tokens_IMNC], 2), token_valid_IMN=valid)
    padded = replace(padded, levels_IMKNC=None)
    if name in HALVING:
        with pytest.raises(UserError, match="whole grids of visual tokens"):
            projector(padded)
        return
    got = projector(padded).tokens_IMNC[:, :, : projector.spec.tokens]
    torch.testing.assert_close(got, projector(visual).tokens_IMNC, **EXACT)


@pytest.mark.parametrize("name", PROJECTORS)
@pytest.mark.parametrize("fusion", ["prefix", "cross_attention", "srau", "flamingo", "coca", "vcgpt"])
def test_everything_in_it_learns_behind_any_mechanism(name, fusion):
    language = make_language()
    projector = make_projector(name, language).train()
    reader = nudge(instantiate(fusion_config(fusion))(projector.spec, language.spec).double())
    memory = reader.encode(language, projector(pictures(2)))
    reader.readout(language, reader.decode(language, memory, make_text(4, 6))).logsumexp(-1).sum().backward()
    for part, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, part


@pytest.mark.parametrize("name", [name for name in READING if name != "encoder"])  # whose tokens read all frames
def test_the_frames_of_a_video_are_pictures(name):
    projector, visual = make_projector(name, make_language()), pictures(6)
    tokens_IMNC = visual.tokens_IMNC.view(2, 1, 48, -1)  # three frames, one after the other
    video = Visual(tokens_IMNC, visual.pooled_IMC.view(2, 1, 3, -1).mean(2), frames=3)
    want = projector(replace(visual, levels_IMKNC=None)).tokens_IMNC
    torch.testing.assert_close(projector(video).tokens_IMNC, want.reshape(2, 1, -1, want.shape[-1]), **EXACT)


@pytest.mark.parametrize("name", HALVING)
def test_a_grid_without_halves_is_refused_with_a_way_out(name):
    language, square, row = make_language(), replace(VISION, tokens=49), replace(VISION, tokens=6)
    with pytest.raises(UserError, match=r"7 x 7.*half.*(projector=attention_pool|projector\.side)"):
        make_projector(name, language, square)
    with pytest.raises(UserError, match=r"no square grid.*attention_pool"):
        make_projector(name, language, row)


def test_the_second_ldp_takes_any_side_that_is_no_larger():
    language, square = make_language(), replace(VISION, tokens=49)
    projector = make_projector("ldp_v2", language, square, side=4)
    assert projector(pictures(2, tokens=49)).tokens_IMNC.shape == (2, 1, 16, 32) and projector.spec.tokens == 16
    with pytest.raises(UserError, match=r"projector\.side=8 is more than the 7 x 7"):
        make_projector("ldp_v2", language, square, side=8)


# ------------------------------------------------------------------------------------------------------- what is mixed
@torch.no_grad()
@pytest.mark.parametrize("name", READING)
def test_which_tokens_mix_and_whether_their_order_tells(name):
    """Pools read all tokens in any order, maps of single tokens keep order and place, halves see their square."""
    projector, visual = make_projector(name, make_language()), pictures(1)
    order = torch.randperm(16)
    before = projector(visual).tokens_IMNC[0, 0]
    after = projector(replace(visual, tokens_IMNC=visual.tokens_IMNC[:, :, order])).tokens_IMNC[0, 0]
    visual.tokens_IMNC[0, 0, 5] += torch.randn(24)
    moved = ((projector(visual).tokens_IMNC[0, 0] - before).abs().amax(1) > 1e-9).tolist()
    if not projector.laid_out:
        torch.testing.assert_close(after, before, **EXACT)
        assert all(moved)
    elif name == "encoder":
        torch.testing.assert_close(after, before[order], **EXACT)
        assert all(moved)
    elif name not in HALVING:
        torch.testing.assert_close(after, before[order], **EXACT)
        assert moved == [i == 5 for i in range(16)]
    else:  # token 5 lies in the upper left of four squares
        assert moved[0] and (name != "pixel_shuffle" or moved == [True, False, False, False])
        assert (after - before).abs().max() > 1e-6


@torch.no_grad()
def test_a_one_by_one_convolution_is_a_linear_map():
    projector, visual = make_projector("conv1x1", make_language()), pictures(2)
    conv = torch.nn.Conv2d(24, 32, 1).double()
    conv.weight.copy_(projector.steps[0].weight[:, :, None, None])
    conv.bias.copy_(projector.steps[0].bias)
    want = conv(as_grid(visual.tokens_IMNC[:, 0])).flatten(2).transpose(1, 2)
    torch.testing.assert_close(projector(visual).tokens_IMNC[:, 0], want, **EXACT)


@torch.no_grad()
def test_one_query_that_weighs_all_alike_is_the_mean_of_a_linear_map():
    projector, visual = make_projector("attention_pool", make_language(), queries=1), pictures(2)
    projector.pooler.attend.q.weight.zero_()
    projector.pooler.attend.q.bias.zero_()
    attend = projector.pooler.attend
    want = attend.out(attend.v(projector.pooler.norm_k(visual.tokens_IMNC[:, 0])).mean(1))
    torch.testing.assert_close(projector(visual).tokens_IMNC[:, 0, 0], want, **EXACT)


# ----------------------------------------------------------------------------------------------------- papers and peers
def ldp_by_formula(ldp, x_NC: torch.Tensor) -> torch.Tensor:
    """The layer list of the authors' code with torchvision's and timm's modules, (N / 4, D)."""
    from timm.layers.norm_act import LayerNormAct2d
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
    from torchvision.ops.misc import SqueezeExcitation

    D, blocks = ldp.mlp[2].out_features, []
    for ours, stride in ((ldp.mix, 1), (ldp.shrink, 2)):
        config = InvertedResidualConfig(D, 3, D, D, True, "HS", stride, 1, 1)
        norm, squeeze = (
            partial(LayerNormAct2d, act_layer=None),
            partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid),
        )
        block = InvertedResidual(config, norm, squeeze).double()
        (depthwise, norm1, _), excite, (pointwise, norm2) = block.block
        for theirs, mine in (
            (depthwise, ours.depthwise),
            (norm1, ours.norm1),
            (excite.fc1, ours.squeeze),
            (excite.fc2, ours.excite),
            (pointwise, ours.pointwise),
            (norm2, ours.norm2),
        ):
            theirs.load_state_dict(mine.state_dict())
        blocks.append(block)
    h_ND = ldp.mlp[2](F.gelu(ldp.mlp[0](x_NC)))
    side = math.isqrt(len(x_NC))
    return nn.Sequential(*blocks)(h_ND.T.reshape(1, D, side, side)).flatten(2)[0].T


@torch.no_grad()
def test_ldp_is_the_authors_layer_list():
    ldp, visual = make_projector("ldp", make_language()), pictures(2)
    for picture in range(2):
        got = ldp(visual).tokens_IMNC[picture, 0]
        torch.testing.assert_close(got, ldp_by_formula(ldp, visual.tokens_IMNC[picture, 0]), **EXACT)


@torch.no_grad()
def test_ldp_shifts_with_what_it_sees_away_from_the_borders():
    """Two tokens to the right in, one to the right out; but for the squeezed mean, which is the whole picture's."""
    ldp = make_projector("ldp", make_language(), replace(VISION, tokens=256))
    for block in (ldp.mix, ldp.shrink):
        block.excite.weight.zero_()  # its one global part
    grid = torch.randn(1, 16, 16, 24, dtype=torch.float64)

    def out(grid):
        return ldp(Visual(grid.reshape(1, 1, 256, 24), grid.mean((1, 2))[:, None])).tokens_IMNC.view(8, 8, 32)

    torch.testing.assert_close(out(grid.roll(2, 2))[2:6, 3:6], out(grid)[2:6, 2:5], **EXACT)


@torch.no_grad()
def test_the_second_ldp_is_its_formula_and_without_its_kernel_a_mean():
    ldp, x = make_projector("ldp_v2", make_language()), pictures(1)
    h_ND = ldp.mlp[2](F.gelu(ldp.mlp[0](x.tokens_IMNC[0, 0])))
    mean = torch.stack([h_ND.view(4, 4, 32)[u : u + 2, v : v + 2].mean((0, 1)) for u in (0, 2) for v in (0, 2)])
    want = mean.clone().view(2, 2, 32)
    for u, v, dy, dx in itertools.product(range(2), range(2), range(-1, 2), range(-1, 2)):
        if u + dy in (0, 1) and v + dx in (0, 1):
            want[u, v] += ldp.place.weight[:, 0, dy + 1, dx + 1] * mean.view(2, 2, 32)[u + dy, v + dx]
    torch.testing.assert_close(ldp(x).tokens_IMNC[0, 0].view(2, 2, 32), want + ldp.place.bias, **EXACT)
    nn.init.zeros_(ldp.place.weight)
    nn.init.zeros_(ldp.place.bias)
    torch.testing.assert_close(ldp(x).tokens_IMNC[0, 0], mean, **EXACT)


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    [("ldp", 2048, 18.94), ("ldp", 2560, 28.91), ("ldp", 512, 1.59), ("ldp_v2", 2048, 6.32)],
)
def test_ldps_have_the_papers_size(name, width, millions):
    language = LanguageSpec(width, 2, 8, 100, 64, 0, 1, 2)
    with torch.device("meta"):
        options = {"side": 12} if name == "ldp_v2" else {}
        made = {"ldp": LDP, "ldp_v2": LDPv2}[name](VisionSpec(1024, 576, 1024, 336), language, dropout=0.0, **options)
    assert made.spec.tokens == 144
    assert sum(p.numel() for p in made.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@torch.no_grad()
def test_pixel_shuffle_lays_four_neighbours_side_by_side():
    projector, visual = make_projector("pixel_shuffle", make_language()), pictures(1)
    x_yxC = visual.tokens_IMNC[0, 0].view(4, 4, 24)
    four = [x_yxC[u : u + 2, v : v + 2].reshape(-1) for u in (0, 2) for v in (0, 2)]
    torch.testing.assert_close(projector(visual).tokens_IMNC[0, 0], projector.steps(torch.stack(four)), **EXACT)


def copy_attention(theirs, ours) -> None:
    """Our cross-attention's weights, norms and MLP into a layer of transformers' Perceiver."""
    own, dense = theirs.attention.self, theirs.attention.output.dense
    pairs = [(own.query, ours.attend.q), (own.key, ours.attend.k), (own.value, ours.attend.v), (dense, ours.attend.out)]
    pairs += [(own.layernorm1, ours.norm_z), (theirs.layernorm, ours.norm)]
    pairs += [(theirs.mlp.dense1, ours.fc1), (theirs.mlp.dense2, ours.fc2)]
    if ours.norm_x is not None:
        pairs.append((own.layernorm2, ours.norm_x))
    for theirs, mine in pairs:
        theirs.load_state_dict(mine.state_dict())


@torch.no_grad()
def test_a_perceiver_that_reads_once_is_that_of_transformers():
    config = transformers.PerceiverConfig(
        num_latents=5,
        d_latents=32,
        d_model=24,
        num_blocks=1,
        num_self_attends_per_block=2,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        qk_channels=32,
        v_channels=32,
        attention_probs_dropout_prob=0.0,
    )
    peer = transformers.PerceiverModel(config).double().eval()
    ours = make_projector("perceiver", make_language(), latents=5, rounds=1, layers=2)
    peer.embeddings.latents.copy_(ours.latents_RD)
    copy_attention(peer.encoder.cross_attention, ours.reads[0])
    for theirs, mine in zip(peer.encoder.self_attends, ours.thinks, strict=True):
        copy_attention(theirs, mine)
    visual = pictures(2)
    want = peer(inputs=visual.tokens_IMNC[:, 0]).last_hidden_state
    torch.testing.assert_close(ours(visual).tokens_IMNC[:, 0], want, **EXACT)


@torch.no_grad()
def test_rounds_of_a_perceiver_read_again_and_share_after_the_first():
    language, visual = make_language(), pictures(2)
    apart, shared = (make_projector("perceiver", language, rounds=3, share=share) for share in (False, True))
    assert (len(apart.reads), len(shared.reads), len(shared.thinks)) == (3, 2, 2)
    for mine, theirs in zip(apart.reads, [shared.reads[0], shared.reads[1], shared.reads[1]], strict=True):
        mine.load_state_dict(theirs.state_dict())
    for mine, theirs in zip(apart.thinks, [shared.thinks[0], shared.thinks[1], shared.thinks[1]], strict=True):
        mine.load_state_dict(theirs.state_dict())
    apart.latents_RD.copy_(shared.latents_RD)
    torch.testing.assert_close(apart(visual).tokens_IMNC, shared(visual).tokens_IMNC, **EXACT)
    once = make_projector("perceiver", language, rounds=1)
    once.load_state_dict({k: v for k, v in apart.state_dict().items() if ".1." not in k and ".2." not in k})
    assert (once(visual).tokens_IMNC - apart(visual).tokens_IMNC).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["attention_pool", "perceiver"])
def test_what_is_noted_of_vectors_without_a_place_are_weights_over_the_tokens(name):
    projector, visual, aux = make_projector(name, make_language()), pictures(2), {}
    torch.testing.assert_close(projector(visual, aux).tokens_IMNC, projector(visual).tokens_IMNC, rtol=0, atol=0)
    (weights,) = aux["projected"]
    assert weights.shape == (2, projector.spec.tokens, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_the_encoder_is_the_one_that_srau_trains():
    """Weights copied: the same levels, so the control has exactly its layers."""
    language, visual = make_language(), make_visual(2)
    srau = make_fusion("srau", language, "fusion.level_source=encoder")
    projector = make_projector("encoder", language)
    projector.layers.load_state_dict(srau.encoder.state_dict())
    levels_IKND, _ = srau._levels(visual)
    torch.testing.assert_close(projector(visual).levels_IMKNC[:, 0], levels_IKND, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------------------ heat maps
def looked_at(name: str, **options):
    """What a captioner with cross-attention behind a projector looks at, 4 x 4 tokens of its encoder."""
    language, vision = make_language(), ViT(16, 4, 24, 2, 2).double()
    projector = make_projector(name, language, vision.spec, **options)
    fusion = nudge(instantiate(fusion_config("cross_attention"))(projector.spec, language.spec).double())
    regime = {"train_language": True, "train_vision": True}
    captioner = Captioner(
        vision, fusion, language, Characters(), regime, OPTIM, Greedy(4), OBJECTIVES, projector=projector
    )
    return read(captioner, torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8), squares=2)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [("linear", {}, 4), ("ldp", {}, 2), ("attention_pool", {"queries": 9}, 4), ("perceiver", {"latents": 4}, 4)],
)
def test_heat_maps_lie_over_the_picture(name, options, side):
    """On the smaller grid, or through the queries on the encoder's: nine vectors are no 3 x 3 picture."""
    reading = looked_at(name, **options)
    assert reading.attention.shape[1:] == (side, side)
    torch.testing.assert_close(reading.attention.sum((1, 2)), torch.ones(len(reading.words)).to(reading.attention))
    assert ("pooler" in reading.aux) == (side == 4 and name != "linear")


def test_vectors_of_the_pooled_feature_have_no_heat_map():
    assert looked_at("mlp", pooled=4).attention is None


@torch.no_grad()
def test_a_word_that_reads_one_query_looks_where_that_query_looks():
    projected = torch.rand(1, 9, 16, dtype=torch.float64).softmax(-1)
    aux = {"attention": [torch.eye(9).double().expand(1, 2, 9, 9)], "projected": [projected]}
    _over_picture(make_projector("attention_pool", make_language(), queries=9), aux)
    torch.testing.assert_close(aux["attention"][0], projected[None].expand(1, 2, 9, 16))
    torch.testing.assert_close(aux["pooler"][0], projected)
