"""task=zero_shot: what is on a picture, by names that nobody has taught it as classes?

    w_c = mean over prompts of y(prompt with name c), of unit length again
    said = the name c whose w_c is most alike x(picture)         (Radford et al. 2021, arXiv 2103.00020, 3.1.2 to 3.1.4)

zero_shot/<kind>          share of the pictures of which what is said is true; several names may be true of one
zero_shot/<kind>/chance   what guessing would have

The prompts stand in zero_shot.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from src.build import Parts
from src.contracts import Labelled, Line
from src.errors import UserError
from src.fusion.base import Retriever
from src.metrics.answers import shares
from src.tasks.base import Evaluation, Task

PROMPTS = Path(__file__).with_name("zero_shot.yaml")


@dataclass
class ZeroShot(Task):
    """For every kind of names that the data have."""

    name = "zero_shot"
    needs = Retriever

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        if not isinstance(parts.source, Labelled):
            raise UserError(
                f"task=zero_shot asks what is on a picture, which data={parts.source.name} does not tell; use drawn "
                "scenes, or data=class_folders: a folder of pictures for every name."
            )
        empty = [kind for kind, names in parts.source.classes().items() if len(names) < 2]
        if empty:
            raise UserError(f"data={parts.source.name} has fewer than two names of kind {empty[0]} to choose from.")

    @torch.no_grad()
    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        captioner, source = parts.captioner.eval(), parts.source
        pictures = []
        for batch in parts.data.pictures(split):
            batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
            with captioner.autocast():
                pictures.append(captioner.fusion.embed_pictures(captioner.memory(batch)).float())
        x_IE, examples = torch.cat(pictures), list(parts.data.examples(split))
        rows = [{"id": e.id, "caption": "", "references": list(e.captions)} for e in examples]
        for kind, names in source.classes().items():
            best_I = (x_IE @ name_vectors(parts, kind, names).T).argmax(1)
            for row, example, best in zip(rows, examples, best_I.tolist(), strict=True):
                true = source.labels(example)[kind]
                row["caption"] = f"{row['caption']} {names[best]}".strip()
                row[f"zero_shot/{kind}"] = float(names[best] in true)
                row[f"zero_shot/{kind}/chance"] = len(true) / len(names)
        scored = [{name: value for name, value in row.items() if name.startswith("zero_shot/")} for row in rows]
        return Evaluation(split, shares(scored), rows)


@torch.no_grad()
def name_vectors(parts: Parts, kind: str, names: Sequence[str]) -> Tensor:
    """A unit vector for every name, (names, E): of the mean over the prompts of its kind."""
    captioner, templates = parts.captioner, prompts(kind)
    found = []
    for name in names:
        text = parts.data.texts([Line(template.format(name)) for template in templates])
        text = captioner.transfer_batch_to_device(text, captioner.device, 0)
        with captioner.autocast():
            found.append(captioner.fusion.embed_texts(captioner.language, text).float().mean(0))
    return F.normalize(torch.stack(found), dim=-1)


def prompts(kind: str) -> list[str]:
    """The sentences around a name of this kind, {} its place."""
    written = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    return written.get(kind, written["class"])
