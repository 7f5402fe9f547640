"""What a pipeline promises: whether it needs an encoder, and who is to be asked about which data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from src.contracts import Speaker
from src.loading.module import CaptionData
from src.vision.base import Vision


class Pipeline(ABC):
    """Built as ``Pipeline(vision, data, **options)``; ``vision``: None where it does not see.

    ``notes``: what one has to know of its scores, by what they are about.
    """

    sees = True
    notes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, vision: Vision | None, data: CaptionData):
        self.vision, self.data = vision, data

    @abstractmethod
    def rounds(self, split: str) -> Iterable[tuple[Speaker, CaptionData]]:
        """Who answers, and the data with the references that answers are held against; scores are means over rounds."""
