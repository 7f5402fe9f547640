"""task=retrieval: does a picture find its captions, and a caption its picture, among all of a split?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from src.build import Parts
from src.errors import UserError
from src.fusion.base import Retriever
from src.metrics.retrieval import recall_at_k
from src.tasks.base import Evaluation, Task

CAPTIONS = 5  # of a picture


@dataclass
class Retrieval(Task):
    """Recall both ways; what is said of a picture in predictions.jsonl is the caption that it finds first."""

    name = "retrieval"
    needs = Retriever

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        if not parts.captioner.fusion.compares:
            raise UserError("task=retrieval needs a mechanism that learns to compare; fusion.contrastive_weight is 0.")

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        similarity_IB, picture_B = _similarity(parts, split)
        references = parts.data.references(split)
        texts = [caption for own in references.values() for caption in own[: len(picture_B) // len(references)]]
        found = [texts[b] for b in similarity_IB.argmax(1).tolist()]
        rows = [
            {"id": id, "caption": caption, "references": own}
            for (id, own), caption in zip(references.items(), found, strict=True)
        ]
        return Evaluation(split, recall_at_k(similarity_IB, picture_B), rows)


def retrieval_scores(parts: Parts, split: str) -> dict[str, float]:
    """The recalls alone."""
    return recall_at_k(*_similarity(parts, split))


@torch.no_grad()
def _similarity(parts: Parts, split: str) -> tuple[Tensor, Tensor]:
    """Of all pictures of the split with all their captions, (I, B), and whose each caption is, (B,).

    Every picture has as many captions here as the one with the fewest, five at most.
    """
    captioner = parts.captioner
    captioner.eval()
    per_picture = min(CAPTIONS, *(len(example.captions) for example in parts.data.examples(split)))
    pictures, texts = [], []
    for batch in parts.data.pictures(split, captions=per_picture):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            pictures.append(captioner.fusion.embed_pictures(captioner.memory(batch)).float())
            texts.append(captioner.fusion.embed_texts(captioner.language, batch.text).float())
    similarity_IB = torch.cat(pictures) @ torch.cat(texts).T
    return similarity_IB.cpu(), torch.arange(len(similarity_IB)).repeat_interleave(per_picture)
