"""BLEU-4, ROUGE-L and CIDEr-D of captions collected during validation, in one process or in several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed
from torchmetrics import Metric

from src.errors import UserError
from src.metrics.captions import CaptionScorer

SCORES = ("BLEU-4", "ROUGE-L", "CIDEr-D")


class OnlineCaptionScores(Metric):
    """``update`` with the captions of each batch, ``compute`` once at the end: a dict of scalar tensors, by ``SCORES``.

    The references of the whole split are given once, at construction, and make the document frequencies: scores of a
    batch mean nothing, so that ``forward`` is of no use here. In several processes the captions are brought together
    on the first, scored there, and the scores handed to all. A picture that several processes captioned, because a
    sampler filled up its last batch, counts once, with the caption of the lowest rank; processes may have different
    numbers of captions, or none. ``compute`` raises UserError, on every process, unless each picture has a caption.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, references: Mapping[str, Sequence[str]]):
        super().__init__()
        self.scorer = CaptionScorer(references)
        # Texts are no tensors, so that torchmetrics' own states cannot hold them, and they are gathered here.
        self.captions: dict[str, str] = {}

    def update(self, ids: Sequence[str], captions: Sequence[str]) -> None:
        """One caption of each picture, as the model wrote it; the first caption of a picture stays."""
        for id, caption in zip(ids, captions, strict=True):
            self.captions.setdefault(id, caption)

    def compute(self) -> dict[str, Tensor]:
        together = self.distributed_available_fn()
        everyone = _gather(self.captions, self.process_group) if together else [self.captions]
        answer: list[dict[str, float] | str | None] = [None]
        if everyone is not None:
            answer = [self._score({id: text for captions in reversed(everyone) for id, text in captions.items()})]
        if together:
            first = distributed.get_global_rank(self.process_group or distributed.group.WORLD, 0)
            distributed.broadcast_object_list(answer, src=first, group=self.process_group)
        if isinstance(answer[0], str):
            raise UserError(answer[0])
        return {name: torch.tensor(value, device=self.device) for name, value in answer[0].items()}

    def _score(self, captions: dict[str, str]) -> dict[str, float] | str:
        """Scores, or what is wrong: the other processes wait for one or the other."""
        try:
            corpus = self.scorer.score(captions).corpus
        except UserError as error:
            return str(error)
        return {name: corpus[name] for name in SCORES}

    def reset(self) -> None:
        super().reset()
        self.captions = {}


def _gather(captions: dict[str, str], group) -> list[dict[str, str]] | None:
    """The captions of every process, by rank, on the first process; None on the others."""
    rank, world = distributed.get_rank(group), distributed.get_world_size(group)
    everyone = [None] * world if rank == 0 else None
    first = distributed.get_global_rank(group or distributed.group.WORLD, 0)
    distributed.gather_object(captions, everyone, dst=first, group=group)
    return everyone
