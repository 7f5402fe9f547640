"""vision=vit: a small vision transformer that learns from scratch in minutes on a CPU.

Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv 2010.11929, with the convolutional stem of Xiao et al.
2021, "Early convolutions help transformers see better", arXiv 2106.14881: stride-2 3x3 convolutions instead of one
large patch projection. Two departures from the latter: the last convolution is 3x3 instead of 1x1, so that a patch sees
its neighbours before attention does, and there are as many transformer blocks with either stem.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.contracts import UserError, VisionSpec
from src.hub import reason
from src.kinds import Count, Size
from src.layers.attention import softmax
from src.layers.lists import ModuleList
from src.records.folder import Saved
from src.vision.base import Vision
from src.vision.resnet_stem import resnet_stem


class ViT(Vision):
    """Random weights, or with ``weights`` those of a run that trained such an encoder.

    Tokens are the patches after the final norm, pooled is their mean. ``layers``: 0 leaves them as the stem makes them.

    Levels are the outputs of the last blocks, each after the final norm: raw outputs grow from block to block, and the
    last level equals the tokens this way.
    """

    def __init__(
        self,
        image_size: Size = 64,
        patch: Size = 8,
        width: Size = 128,
        layers: Count = 4,
        heads: Size = 4,
        stem: Literal["conv", "patch", "resnet"] = "conv",
        weights: str | None = None,
        recompute: Size | None = None,
    ):
        tokens = (image_size // patch) ** 2
        preprocessing = {
            "size": image_size,
            "resize": "squash",  # captions speak of things at the edges too
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        }
        super().__init__(
            VisionSpec(width, tokens, width, image_size, levels=layers),
            preprocessing,
            f"heads={heads}",
            pretrained=weights is not None,
        )
        self.recompute = recompute
        self.stem = stem_of(stem, width, patch)
        self.position_NC = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02))
        self.blocks = ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        if weights is not None:
            self._load(trained_vision(Path(weights).expanduser()), weights)

    @staticmethod
    def refusals(vision):
        size, patch = vision.image_size, vision.patch
        if vision.width % vision.heads:
            yield f"vision.heads={vision.heads} must divide vision.width={vision.width}."
        if size % patch:
            yield f"vision.patch={patch} must divide vision.image_size={size}; the picture is cut into whole patches."
        if vision.stem == "conv" and (patch < 2 or patch & (patch - 1)):
            yield (
                "vision.stem=conv halves the picture step by step: vision.patch must be 2, 4, 8 or a further power of "
                f"two; got {patch}."
            )

        if vision.stem == "resnet" and patch != 16:
            yield f"vision.stem=resnet makes a token of 16 x 16 pixels: say vision.patch=16; got {patch}."

    @staticmethod
    def sizes(vision):
        return {
            "width": vision.width,
            "tokens": (vision.image_size // vision.patch) ** 2,
            "pooled_width": vision.width,
            "image_size": vision.image_size,
            "levels": vision.layers,
        }

    def _load(self, state: dict[str, Tensor], run: str) -> None:
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"The vision encoder of {run} has other sizes than vision=vit here; give the vision options of its "
                f"config.yaml ({reason(error)})."
            ) from error

    def encode(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        # Channels last: on a CPU the convolutions are a seventh faster, counted over the whole encoder.
        grid_XCyx = self.stem(pixels_X3hw.contiguous(memory_format=torch.channels_last))
        h_XNC = grid_XCyx.flatten(2).transpose(1, 2) + self.position_NC  # N = y*x, row by row
        outputs: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            h_XNC = block(h_XNC)
            if index >= len(self.blocks) - levels:
                outputs.append(self.norm(h_XNC))
        tokens_XNC = outputs[-1] if outputs else self.norm(h_XNC)
        return tokens_XNC, tokens_XNC.mean(1), torch.stack(outputs, 1) if outputs else None


def trained_vision(run: Path) -> dict[str, Tensor]:
    """The encoder's tensors of a run or an export. Raises UserError where none lies there."""
    found = Saved.at(run).part("vision")
    if not found:
        raise UserError(f"{run} holds no trained vision encoder; give a run that trained one.")
    return found


class Block(nn.Module):
    """Pre-norm transformer block: x + Attention(norm(x)), then x + MLP(norm(x)), with four times the width inside."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h_XNC: Tensor) -> Tensor:
        h_XNC = h_XNC + self._attend(self.norm1(h_XNC))
        return h_XNC + self.down(F.gelu(self.up(self.norm2(h_XNC))))

    def _attend(self, h_XNC: Tensor) -> Tensor:
        """Attention as two matrix products: with this few tokens the CPU kernel of scaled_dot_product_attention, and
        nn.TransformerEncoderLayer with it, trains at less than half the speed in bfloat16."""
        qkv_XN3Hd = self.qkv(h_XNC).unflatten(-1, (3, self.heads, -1))
        q_XHNd, k_XHNd, v_XHNd = qkv_XN3Hd.permute(2, 0, 3, 1, 4)  # unpacks the axis of 3
        weights_XHNN = softmax(q_XHNd * q_XHNd.shape[-1] ** -0.5 @ k_XHNd.transpose(-1, -2))
        read_XHNd = weights_XHNN @ v_XHNd
        return self.out(read_XHNd.transpose(1, 2).flatten(2))  # (X, N, C)


def stem_of(stem: str, width: int, patch: int) -> nn.Module:
    """From pictures (X, 3, h, w) to a grid of tokens (X, C, y, x)."""
    if stem == "resnet":
        return resnet_stem(width)
    return conv_stem(width, patch) if stem == "conv" else nn.Conv2d(3, width, patch, stride=patch)


def conv_stem(width: int, patch: int) -> nn.Sequential:
    """Stride-2 3x3 convolutions that double their channels up to ``width``, then a 3x3 one without stride."""
    steps = patch.bit_length() - 1
    layers: list[nn.Module] = []
    before = 3
    for step in range(steps):
        channels = max(8, width >> (steps - 1 - step))
        layers += [
            nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False),  # the norm brings a bias
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        before = channels
    return nn.Sequential(*layers, nn.Conv2d(before, width, 3, padding=1))
