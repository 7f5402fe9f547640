"""What every vision encoder shares: pixels in, normalised here, tokens out; and a name for its weights."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.contracts import UserError, VisionSpec, Visual, present
from src.kinds import Checked
from src.records.weights import tensor_hash


class Vision(Checked, nn.Module, ABC, group="vision"):
    """A vision encoder. Subclasses implement ``encode``; normalisation and the picture axis are handled here.

    ``preprocessing`` says how pictures become this encoder's input: "size" in pixels, "resize" ("squash" | "crop") and
    "interpolation" for the data room, "mean" and "std" per channel of pixels scaled to 0..1. ``architecture`` names the
    computation as far as the shapes of the weights leave it open (numbers of heads, activations). ``pretrained`` is
    False where the weights are random. ``sizes(vision)``, a static method where options alone tell: the encoder's spec.
    """

    mean: Tensor  # (3, 1, 1), as std
    std: Tensor
    recompute: int | None = None  # pictures encoded at a time where gradients are wanted, which need only these' room

    def __init__(self, spec: VisionSpec, preprocessing: dict, architecture: str, pretrained: bool):
        super().__init__()
        self.spec, self.preprocessing = spec, preprocessing
        self.architecture, self.pretrained = architecture, pretrained
        for name in ("mean", "std"):
            values_311 = torch.tensor(preprocessing[name])[:, None, None]
            self.register_buffer(name, values_311, persistent=False)  # a constant: no business of checkpoints

    @abstractmethod
    def encode(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Normalised pixels -> tokens (X, N, C), pooled (X, pooled_width), last ``levels`` levels (X, K, N, C) or None.

        Levels are ordered as the encoder computes them: the last one is the deepest.
        """

    def forward(self, pixels: Tensor, levels: int = 0) -> Visual:
        """Encode uint8 pictures (I, M, 3, size, size), or videos of F frames (I, M, F, 3, size, size).

        The tokens and levels of a video are those of its frames one after the other, its pooled vector is their mean.
        Raises UserError for pictures of another size and for more levels than the encoder has, TypeError for pixels
        that are no uint8: those have been scaled already, and would be scaled again.
        """
        if pixels.ndim == 6:
            return _joined(self(pixels.flatten(1, 2), levels), frames=pixels.shape[2])
        return self._pictures(pixels, levels)

    def _pictures(self, pixels_IM3hw: Tensor, levels: int) -> Visual:
        self._check(pixels_IM3hw, levels)
        pictures = pixels_IM3hw.shape[:2]
        pixels_X3hw = self.normalise(pixels_IM3hw.flatten(0, 1))  # X = I*M
        in_pieces = self.recompute is not None and torch.is_grad_enabled()
        tokens_XNC, pooled_XC, levels_XKNC = (self._in_pieces if in_pieces else self.encode)(pixels_X3hw, levels)
        return Visual(
            tokens_IMNC=tokens_XNC.unflatten(0, pictures),
            pooled_IMC=pooled_XC.unflatten(0, pictures),
            levels_IMKNC=None if levels_XKNC is None else levels_XKNC.unflatten(0, pictures),
        )

    def _in_pieces(self, pixels_X3hw: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """``encode``, a piece at a time, which the backward pass encodes again (Gao et al. 2021, arXiv 2101.06983): the
        same gradients, and what lies between pixels and tokens is there for one piece only."""
        pieces = pixels_X3hw.split(present(self.recompute, "size of the pieces"))
        found = [checkpoint(self.encode, piece, levels, use_reentrant=False) for piece in pieces]
        tokens, pooled, deep = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(pooled), None if deep[0] is None else torch.cat(deep)

    def normalise(self, pixels_X3hw: Tensor) -> Tensor:
        """(pixels / 255 - mean) / std, in the dtype of the buffers."""
        return pixels_X3hw.to(self.mean.dtype).div_(255).sub_(self.mean).div_(self.std)

    def identity(self) -> str:
        """sha256 of all that features depend on: architecture, weights and preprocessing."""
        about = [type(self).__name__, self.architecture, self.preprocessing]
        text = json.dumps(about, sort_keys=True) + tensor_hash(self.state_dict())
        return hashlib.sha256(text.encode()).hexdigest()

    def _check(self, pixels_IM3hw: Tensor, levels: int) -> None:
        if pixels_IM3hw.dtype != torch.uint8:
            raise TypeError(f"Vision encoders read uint8 pixels, 0 to 255; these are {pixels_IM3hw.dtype}.")
        size = self.spec.image_size
        if pixels_IM3hw.shape[-2:] != (size, size):
            height, width = pixels_IM3hw.shape[-2:]
            raise UserError(f"The vision encoder reads {size} x {size} pixels; these pictures have {height} x {width}.")
        if levels > self.spec.levels:
            have = f"only its last {self.spec.levels}" if self.spec.levels else "none"
            raise UserError(
                f"This fusion reads {levels} levels of the vision encoder, which hands out {have}; "
                "choose another vision encoder or fewer levels."
            )


def _joined(visual: Visual, frames: int) -> Visual:
    """Frames that were encoded as pictures of their own, (I, M*F, ...), as videos (I, M, F*N, ...)."""
    levels = visual.levels_IMKNC
    return Visual(
        tokens_IMNC=visual.tokens_IMNC.unflatten(1, (-1, frames)).flatten(2, 3),
        pooled_IMC=visual.pooled_IMC.unflatten(1, (-1, frames)).mean(2),
        levels_IMKNC=None if levels is None else levels.unflatten(1, (-1, frames)).transpose(2, 3).flatten(3, 4),
        frames=frames,
    )
