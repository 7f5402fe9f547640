"""task=retrieval: does a picture find its captions, and a caption its picture, among all of a split?

Mechanisms that compare give each a vector. Those that read both together would have to read every pair: the vectors
that they learn beside (``objectives.match``) choose ``READ`` captions of each picture and as many pictures of each
caption, which are read and ordered by how likely they are to match; the rest stays behind these, as the vectors have
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from src.build import Parts
from src.contracts import present
from src.errors import UserError
from src.fusion.base import Fusion, Reader, Retriever
from src.metrics.retrieval import recall_at_k, recall_of_each
from src.objectives.match import mean_regions, mean_words, open_rows
from src.tasks.base import Evaluation, Task

CAPTIONS = 5  # of a picture, for who compares
READ = 64
PAIRS = 256  # read at once


@dataclass
class Retrieval(Task):
    """Recall both ways; what is said of a picture in predictions.jsonl is the caption that it finds first."""

    name = "retrieval"
    needs = Fusion

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        fusion = parts.captioner.fusion
        if isinstance(fusion, Retriever):
            if not fusion.compares:
                raise UserError(
                    "task=retrieval needs a mechanism that learns to compare; fusion.contrastive_weight is 0."
                )
        elif not isinstance(fusion, Reader) or "match" not in parts.captioner.heads:
            raise UserError(
                f"task=retrieval needs a mechanism that compares or has learnt to match (objective=match), and "
                f"{type(fusion).__name__} is none."
            )

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        reads = isinstance(parts.captioner.fusion, Reader)
        similarity_IB, picture_B = (_read_similarity if reads else _similarity)(parts, split)
        references = parts.data.references(split)
        texts = [caption for own in references.values() for caption in own[: len(picture_B) // len(references)]]
        found = [texts[b] for b in similarity_IB.argmax(1).tolist()]
        rows = [
            {"id": id, "caption": caption, "references": own, **of_it}
            for (id, own), caption, of_it in zip(
                references.items(), found, recall_of_each(similarity_IB, picture_B), strict=True
            )
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


@torch.no_grad()
def _read_similarity(parts: Parts, split: str) -> tuple[Tensor, Tensor]:
    """The same of who reads, with one caption a picture; pairs that are not read stand behind all that are."""
    captioner = parts.captioner.eval()
    fusion, lm, head = captioner.fusion, captioner.language, captioner.heads["match"]
    memories, texts, pictures, words = [], [], [], []
    for batch in parts.data.pictures(split):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        text = present(batch.text, "text in the batch")
        with captioner.autocast():
            memory = captioner.memory(batch)
            pictures.append(head.pictures(mean_regions(memory)))
            words.append(head.texts(mean_words(lm, text)))
        memories.append(memory)
        texts += [ids_T[valid_T].tolist() for ids_T, valid_T in zip(text.ids_BT, text.valid_BT, strict=True)]
    memory = memories[0]
    for other in memories[1:]:
        memory = other.behind(memory)
    alike_IB = torch.cat(pictures) @ torch.cat(words).T
    count = min(READ, len(texts))
    chosen_IB = torch.zeros_like(alike_IB, dtype=torch.bool)
    chosen_IB.scatter_(1, alike_IB.topk(count, 1).indices, True).scatter_(0, alike_IB.topk(count, 0).indices, True)
    pairs_X2 = chosen_IB.nonzero()
    logits = []
    for some_Y2 in tqdm(pairs_X2.split(PAIRS), desc=f"pairs of {split}", unit="batch", leave=False):
        text = open_rows([texts[b] for b in some_Y2[:, 1].tolist()])
        text = captioner.transfer_batch_to_device(text, captioner.device, 0)
        with captioner.autocast():
            logits.append(head(fusion.read(lm, memory.select(some_Y2[:, 0]), text).pooled_BD).float())
    logit_X = torch.cat(logits)
    similarity_IB = (alike_IB - alike_IB.max() - 1 + logit_X.min()).index_put(tuple(pairs_X2.T), logit_X)
    return similarity_IB.cpu(), torch.arange(len(texts))
