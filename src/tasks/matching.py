"""task=match: does a mechanism that reads tell the right caption of a picture from wrong ones?

match/accuracy        mean of the first and of the mean of the two others, as far as the data have them
match/right           share of the right captions that are called right
match/other           share of the captions of other pictures that are called wrong
match/foil            share of the captions with one word made false (drawn scenes) that are called wrong
match/loss            nats of what is called what, over all of these
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from tqdm import tqdm

from src.build import Parts
from src.contracts import Batch, Contradicting, Line
from src.data.base import stable_number
from src.data.order import circle
from src.errors import UserError
from src.fusion.base import Reader
from src.metrics.answers import shares
from src.tasks.base import Evaluation, Task


@dataclass
class Matching(Task):
    """The first caption of every picture, one of another picture, and one made false."""

    name = "match"
    needs = Reader

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        if "match" not in parts.captioner.heads:
            raise UserError("task=match asks whether picture and caption belong together, so it needs objective=match.")

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        examples = list(parts.data.examples(split))
        order = circle(len(examples), parts.data.seed)
        other = dict(zip(order, order[1:] + order[:1], strict=True))
        rows = [{"id": e.id, "caption": e.captions[0], "references": list(e.captions)} for e in examples]
        texts = {"right": [row["caption"] for row in rows]}
        if len(examples) > 1:
            texts["other"] = [rows[other[i]]["caption"] for i in range(len(rows))]
        source = parts.source
        if isinstance(source, Contradicting):
            chances = [Random(stable_number(parts.data.seed, "foil", e.id)) for e in examples]
            texts["foil"] = [source.foil(e, e.captions[0], c) for e, c in zip(examples, chances, strict=True)]
        called: dict[str, dict[str, tuple[float, float]]] = {kind: {} for kind in texts}
        for kind, captions in texts.items():
            shown = dict(zip([e.id for e in examples], captions, strict=True))
            for batch in tqdm(parts.data.pictures(split), desc=f"{kind} captions", unit="batch", leave=False):
                called[kind] |= _called(parts, batch, [shown[id] for id in batch.ids], kind == "right")
        for row in rows:
            of = {kind: called[kind].get(row["id"]) for kind in texts}
            row |= {f"match/{kind}": None if one is None else one[0] for kind, one in of.items()}
            wrong = [one[0] for kind, one in of.items() if kind != "right" and one is not None]
            right = row["match/right"]
            row["match/accuracy"] = (right + sum(wrong) / len(wrong)) / 2 if wrong else right
            there = [one[1] for one in of.values() if one is not None]
            row["match/loss"] = sum(there) / len(there)
        scored = [{name: value for name, value in row.items() if name.startswith("match/")} for row in rows]
        return Evaluation(split, shares(scored), rows)


@torch.no_grad()
def _called(parts: Parts, batch: Batch, captions: list[str | None], right: bool) -> dict[str, tuple[float, float]]:
    """Whether each caption that there is was called what it is, and the nats of that, by id."""
    captioner = parts.captioner.eval()
    batch.text = parts.data.texts([Line(caption or "") for caption in captions])
    logit_I = captioner.heads["match"](captioner.reading(batch).pooled_BD.float())
    nats_I = F.binary_cross_entropy_with_logits(logit_I, torch.full_like(logit_I, right), reduction="none")
    found = zip(batch.ids, captions, (logit_I > 0).tolist(), nats_I.tolist(), strict=True)
    return {id: (float(yes == right), nats) for id, caption, yes, nats in found if caption is not None}
