"""pipeline=nearest: a picture gets a caption of the training picture that looks most like it.

    n(x)  = the training picture whose pooled features have the largest cosine with those of x
    y(x)  = the caption of n(x) with the highest mean CIDEr-D to the other captions of n(x)

Devlin et al. 2015, "Exploring nearest neighbor approaches for image captioning", arXiv 1505.04467, with one neighbour:
there, too, the caption is taken that agrees best with all captions at hand. The first one would be that of whichever
person came first; the one that agrees says what several people found worth saying. What a trained captioner scores
above this it owes to more than remembering.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from src.contracts import Batch, present
from src.loading.module import CaptionData
from src.metrics.cider import CiderD
from src.metrics.ngrams import ReferenceNgrams
from src.metrics.tokens import TOKENS
from src.pipelines.base import Pipeline
from src.vision.base import Vision

SAME = 1e-6  # cosines nearer to each other than this are equal: sums of float32 are no more exact than that


class Nearest(Pipeline):
    """Keeps the pooled features and one caption of every training picture of ``data``; of equally near ones the picture
    whose id comes first is taken."""

    def __init__(self, vision: Vision, data: CaptionData):
        super().__init__(vision, data)
        pooled_NC = torch.cat([self._pooled(batch) for batch in data.pictures("train")])
        examples = list(data.examples("train"))
        order = sorted(range(len(examples)), key=lambda row: examples[row].id)
        self.pooled_NC = pooled_NC[order]
        self.captions = agreed([examples[row].captions for row in order])

    def rounds(self, split: str) -> list[tuple[Nearest, CaptionData]]:
        return [(self, self.data)]

    def caption(self, batches: Iterable[Batch], decoder=None, prompted: bool = False) -> dict[str, str]:
        """Captions by id, as people wrote them: nothing is decoded, and no text of the batches is gone on with."""
        said: dict[str, str] = {}
        for batch in batches:
            cosine_IN = self._pooled(batch) @ self.pooled_NC.T
            nearest_IN = cosine_IN >= cosine_IN.amax(1, keepdim=True) - SAME
            chosen = nearest_IN.int().argmax(1).tolist()  # the first of them
            said |= {id: self.captions[row] for id, row in zip(batch.ids, chosen, strict=True)}
        return said

    @torch.no_grad()
    def _pooled(self, batch: Batch) -> Tensor:
        """Unit vectors (I, C)."""
        visual = batch.visual or present(self.vision, "vision")(batch.pixels_IM3hw)
        return F.normalize(visual.pooled_IC.float(), dim=1)


def agreed(captions: Sequence[Sequence[str]]) -> list[str]:
    """Of each picture's captions the one with the highest mean CIDEr-D to its others; of equal ones the first.

    Words weigh by all captions that are given.
    """
    tokenised = [[TOKENS["words"](caption) for caption in own] for own in captions]
    ngrams = ReferenceNgrams(tokenised)
    cider = CiderD(ngrams)
    columns = [[own[k] if k < len(own) else "" for own in tokenised] for k in range(max(map(len, captions)))]
    scores_NK = np.stack([cider.to_others(ngrams.look_up(column)) for column in columns], axis=1)
    return [own[k] for own, k in zip(captions, scores_NK.argmax(1).tolist(), strict=True)]
