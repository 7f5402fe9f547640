"""What every projector promises: other visual tokens in place of the encoder's, whichever mechanism reads them.

Projector(vision_spec, language_spec, **options).forward(visual) -> visual        ``spec``: what comes out of it
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from src.contracts import LanguageSpec, VisionSpec, Visual
from src.kinds import Checked


class Projector(Checked, nn.Module, ABC, group="projector"):
    """``spec``: the pictures as a fusion behind it gets them; levels are its own, if it has any.

    ``sizes(projector, language, vision)``, a static method where options and specs tell: what differs in ``spec``.
    """

    spec: VisionSpec
    needs_tokens: bool = True  # False: it reads the pooled vector only
    undecayed: tuple[str, ...] = ()  # learnt constants: no weight decay, like norms and biases

    def __init__(self, vision: VisionSpec, language: LanguageSpec):
        super().__init__()

    @abstractmethod
    def forward(self, visual: Visual) -> Visual:
        """Tokens (I, M, N, C) -> (I, M, N', C'), pooled vectors as they were."""
