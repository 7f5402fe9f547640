"""What textbooks say of the bricks, held against libraries; and what is often written down wrong."""

from __future__ import annotations

import timm
import torch
import transformers
from conftest import make_text, nudge
from torch import nn
from torch.nn import functional as F

from src.contracts import Target
from src.fusion.flamingo import allowed_pictures
from src.language.base import seen_bias
from src.layers.attention import CrossAttention
from src.layers.chunked_loss import summed_cross_entropy
from src.vision.vit import ViT

EXACT = {"rtol": 0, "atol": 1e-10}


def attention_pair(heads: int) -> tuple[CrossAttention, nn.MultiheadAttention]:
    """Ours and torch's with the same weights: text of width 64 over sources of width 24."""
    torch.manual_seed(0)
    ours = nudge(CrossAttention(64, 24, heads).double()).eval()
    theirs = nn.MultiheadAttention(64, heads, kdim=24, vdim=24, batch_first=True, dtype=torch.float64).eval()
    state = {
        **{f"{name}_proj_weight": getattr(ours, name).weight for name in "qkv"},
        "in_proj_bias": torch.cat([getattr(ours, name).bias for name in "qkv"]),
        "out_proj.weight": ours.out.weight,
        "out_proj.bias": ours.out.bias,
    }
    theirs.load_state_dict(state)
    return ours, theirs


def test_heads_cost_nothing_and_sources_of_another_width_are_torchs():
    x_BTD, source_INC = torch.randn(2, 5, 64).double(), torch.randn(2, 7, 24).double()
    for heads in (1, 4, 8):
        ours, theirs = attention_pair(heads)
        got = ours(x_BTD, *ours.keys_values(source_INC))
        torch.testing.assert_close(got, theirs(x_BTD, source_INC, source_INC)[0], **EXACT)
        assert sum(p.numel() for p in ours.parameters()) == 2 * (64 * 64 + 64) + 2 * (24 * 64 + 64)


def test_sources_are_a_set_and_what_is_hidden_gets_no_gradient():
    ours, _ = attention_pair(4)
    x_BTD, source_INC = torch.randn(2, 5, 64).double(), torch.randn(2, 7, 24).double().requires_grad_()
    order = torch.randperm(7)
    one, other = (ours(x_BTD, *ours.keys_values(source)) for source in (source_INC, source_INC[:, order]))
    torch.testing.assert_close(one, other, **EXACT)
    bias = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
    bias[..., 3] = -torch.inf
    aux = {}
    ours(x_BTD, *ours.keys_values(source_INC), bias, aux=aux).sum().backward()
    assert source_INC.grad[:, 3].abs().max() == 0 < source_INC.grad[:, 2].abs().max()
    torch.testing.assert_close(aux["attention"][0].sum(-1), torch.ones(2, 4, 5, dtype=torch.float64))


def vit_pair() -> tuple[ViT, timm.models.VisionTransformer]:
    """Ours with one linear map a patch, and timm's without a class token, with the same weights."""
    torch.manual_seed(0)
    ours = ViT(image_size=16, patch=4, width=24, layers=2, heads=2, stem="patch").double().eval()
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, class_token=False, global_pool="avg",
        fc_norm=False, num_classes=0, norm_layer=nn.LayerNorm,
    ).double().eval()  # fmt: skip
    nudge(ours)
    state = {"pos_embed": ours.position_NC[None], **_named("norm", ours.norm), **_named("patch_embed.proj", ours.stem)}
    for i, block in enumerate(ours.blocks):
        pairs = {"norm1": block.norm1, "norm2": block.norm2, "attn.qkv": block.qkv, "attn.proj": block.out}
        for name, part in {**pairs, "mlp.fc1": block.up, "mlp.fc2": block.down}.items():
            state |= _named(f"blocks.{i}.{name}", part)
    theirs.load_state_dict(state)
    return ours, theirs


def _named(name: str, part: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": part.weight, f"{name}.bias": part.bias}


@torch.no_grad()
def test_the_vision_transformer_is_timms():
    ours, theirs = vit_pair()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tokens, pooled, _ = ours.encode(pixels, 0)
    torch.testing.assert_close(tokens, theirs.forward_features(pixels), **EXACT)
    torch.testing.assert_close(pooled, theirs(pixels), **EXACT)


@torch.no_grad()
def test_patches_are_a_convolution_without_overlap_and_have_no_order_but_the_learnt_one():
    ours, _ = vit_pair()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    patches_XCN = F.unfold(pixels, 4, stride=4)  # C = 3 * 4 * 4
    want = patches_XCN.transpose(1, 2) @ ours.stem.weight.flatten(1).T + ours.stem.bias
    torch.testing.assert_close(ours.stem(pixels).flatten(2).transpose(1, 2), want, **EXACT)
    order = torch.randperm(16)
    moved = F.fold(patches_XCN[..., order], 16, 4, stride=4)
    assert (ours.encode(moved, 0)[0] - ours.encode(pixels, 0)[0][:, order]).abs().max() > 1e-3
    ours.position_NC.zero_()
    torch.testing.assert_close(ours.encode(moved, 0)[0], ours.encode(pixels, 0)[0][:, order], **EXACT)


@torch.no_grad()
def test_an_open_prefix_is_seen_as_gits_pictures_are():
    """GIT (Wang et al. 2022, arXiv 2205.14100): its own layers under our mask say what it says itself."""
    vision = transformers.GitVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.GitConfig(vision_config=vision.to_dict(), vocab_size=131, **sizes)
    torch.manual_seed(0)
    git = transformers.GitModel(config).double().eval()
    pixels, text = torch.randn(2, 3, 16, 16, dtype=torch.float64), make_text(2, 6)
    text.valid_BT[1, 4:] = False
    want = git(input_ids=text.ids_BT, attention_mask=text.valid_BT.long(), pixel_values=pixels).last_hidden_state
    prefix = git.visual_projection(git.image_encoder(pixels).last_hidden_state)
    inputs, N = torch.cat([prefix, git.embeddings(input_ids=text.ids_BT)], 1), prefix.shape[1]
    behind = text.behind(N, open=True)
    bias = seen_bias(behind.valid_BT, N + 6, torch.float64, behind.open_BT)
    got = git.encoder(inputs, attention_mask=bias).last_hidden_state
    torch.testing.assert_close(got[behind.valid_BT], want[behind.valid_BT], **EXACT)


# --------------------------------------------------------------------------------------------- often written down wrong
def test_the_loss_is_of_log_probabilities_and_not_of_raw_outputs():
    """nn.NLLLoss wants log-softmax; of raw outputs it has no lower bound, and of one class it teaches nothing."""
    logits_XV, text = torch.randn(9, 11), make_text(1, 10)
    ids_X = Target.next(text).id_X % 11
    right = F.nll_loss(logits_XV.log_softmax(-1), ids_X, reduction="sum")
    torch.testing.assert_close(summed_cross_entropy(lambda h: h, logits_XV, ids_X, [], 11), right)
    assert F.nll_loss(1000 * logits_XV.abs(), ids_X) < 0  # "better" without end
    only = torch.randn(4, 1, requires_grad=True)
    F.cross_entropy(only, torch.zeros(4, dtype=torch.long)).backward()
    assert only.grad.abs().max() == 0


def test_which_picture_a_word_looks_at_does_not_follow_from_its_place():
    """Three pictures of five tokens and ten words behind each other: t // 5 never shows the third, and shows the first
    to words before it; the number of pictures before a word is what counts."""
    phi_BT = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 3, 3]])
    allowed_BTM = allowed_pictures(phi_BT, torch.ones(1, 3, dtype=torch.bool), last_image=True)
    by_place = F.one_hot(torch.arange(10) // 5, 3).bool()
    assert not by_place[:, 2].any() and by_place[:2, 0].all()
    assert allowed_BTM[0].int().argmax(-1)[2:].tolist() == [0, 0, 0, 1, 1, 1, 2, 2] and not allowed_BTM[0, :2].any()
