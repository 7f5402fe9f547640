"""A finished run that compares, as the judge of what others write (decode=magic, pipelines)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from src.build import Parts, use_features
from src.contracts import Line
from src.errors import UserError
from src.fusion.base import Retriever
from src.loading.batches import text_rows
from src.pretrained import restore_on


class RunJudge:
    """See contracts.Judge. Pictures are those of ``split``, looked at once."""

    @torch.no_grad()
    def __init__(self, parts: Parts, split: str):
        self.captioner = parts.captioner.eval()
        self.fusion = self.captioner.fusion
        if not isinstance(self.fusion, Retriever) or not self.fusion.compares:
            raise UserError(
                f"The judge must compare texts with pictures, and {type(self.fusion).__name__} does not; give a run of "
                "fusion=clip."
            )
        self.scale = self.fusion.scale().item()
        self.vector: dict[str, Tensor] = {}
        for batch in parts.data.pictures(split):
            batch = self.captioner.transfer_batch_to_device(batch, self.captioner.device, 0)
            with self.captioner.autocast():
                x_IE = self.fusion.embed_pictures(self.captioner.memory(batch)).float()
            self.vector |= dict(zip(batch.ids, x_IE, strict=True))

    def pictures(self, ids: Sequence[str]) -> Tensor:
        return torch.stack([self.vector[id] for id in ids])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        captioner = self.captioner
        lines = [Line(text) for text in texts]
        text = text_rows(lines, captioner.tokenizer, captioner.language.spec.context, 1, captioner.tagged)
        text = captioner.transfer_batch_to_device(text, captioner.device, 0)
        with captioner.autocast():
            return self.fusion.embed_texts(captioner.language, text).float()


def judge_on(folder: Path, options: DictConfig, split: str) -> RunJudge:
    """The run in ``folder`` as a judge of the pictures of a data set's ``split``; ``options``: as in conf/data.

    Raises UserError where it does not compare, or cannot look at them.
    """
    parts = restore_on(folder, options, split)
    use_features(parts.data, options, parts.captioner, [split])
    return RunJudge(parts, split)
