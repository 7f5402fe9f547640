"""What every projector promises: other visual tokens in place of the encoder's, whichever mechanism reads them.

Projector(vision_spec, language_spec, **options).forward(visual, aux) -> visual   ``spec``: what comes out of it
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor, nn

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import Checked
from src.layers.notes import Aux


class Projector(Checked, nn.Module, ABC, group="projector"):
    """``spec``: the pictures as a fusion behind it gets them; levels are its own, if it has any.

    ``sizes(projector, language, vision)``, a static method where options and specs tell: what differs in ``spec``.
    """

    spec: VisionSpec
    needs_tokens: bool = True  # False: it reads the pooled vector only
    laid_out: bool = True  # its tokens lie as the picture does; False: they are vectors without a place
    undecayed: tuple[str, ...] = ()  # learnt constants: no weight decay, like norms and biases

    def __init__(self, vision: VisionSpec, language: LanguageSpec):
        super().__init__()

    @abstractmethod
    def forward(self, visual: Visual, aux: Aux | None = None) -> Visual:
        """Tokens (I, M, N, C) -> (I, M, N', C'), pooled vectors as they were.

        With ``aux``, vectors without a place note under "projected" what each makes of the encoder's tokens, weights
        (X, N', N) that sum to 1, if they read any; X = I*M, times the frames.
        """


def apart(visual: Visual) -> tuple[Tensor, Tensor | None]:
    """Tokens of every picture, or frame of a video, by itself: (X, N, C), and which are real; X = I*M*F."""
    valid_IMN, frames = visual.token_valid_IMN, (visual.frames, -1)
    valid_XN = None if valid_IMN is None else valid_IMN.unflatten(2, frames).flatten(0, 2)
    return visual.tokens_IMNC.unflatten(2, frames).flatten(0, 2), valid_XN


def together(visual: Visual, tokens_XND: Tensor) -> Visual:
    """``visual`` with these tokens in place of those that ``apart`` gave, all of them real."""
    tokens_IMFND = tokens_XND.unflatten(0, (*visual.tokens_IMNC.shape[:2], visual.frames))
    return replace(visual, tokens_IMNC=tokens_IMFND.flatten(2, 3), levels_IMKNC=None, token_valid_IMN=None)
