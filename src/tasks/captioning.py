"""task=caption: what a picture shows, scored against what people wrote; on scenes also whether it is true."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from src.build import Parts
from src.contracts import Batch, Document, Example
from src.data.base import stable_number
from src.data.order import exchange
from src.errors import UserError
from src.fusion.base import Fusion, Retriever, Writer
from src.loading.documents import few_shot
from src.loading.module import CaptionData
from src.metrics.captions import CaptionScorer
from src.metrics.extra import extra_scores
from src.metrics.tokens import note_on_tokens
from src.metrics.truth import truth_scores
from src.scenes.world import Scene
from src.tasks.base import Evaluation, SpokenTask
from src.tasks.reading import Read, gap_per_token, nats_per_token, read_references
from src.tasks.retrieval import retrieval_scores

LOOKING = ("truth", "CIDEr-D")  # scores that fall to the level of a blind model when pictures are shuffled

# Scores of a corpus that are the means of those of its pictures.
MEANS = ("CIDEr-D", "ROUGE-L", "SPICE", "CLIPScore", "RefCLIPScore", "truth", "coverage")


@dataclass
class Captioning(SpokenTask):
    """``metrics``: beside BLEU, ROUGE-L and CIDEr-D, of ``metrics.extra``; ``tokens``: what those count.

    ``shots``: that many training pictures and their captions stand before each picture; which ones depends on the run's
    seed and the picture's id alone. None: plain captioning, with the loss, and for a mechanism that compares pictures
    with texts how well it finds them.
    """

    metrics: Sequence[str] = ()
    tokens: str = "words"
    shots: int | None = None

    name = "caption"
    needs = Fusion

    @property
    def prompted(self) -> bool:
        return self.shots is not None

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        if not parts.captioner.speaks:
            raise UserError("task=caption needs a mechanism that writes or learns hidden words (objective=masked).")
        if self.shots is not None and (not parts.captioner.fusion.multi_image or self.shots < 0):
            raise no_examples(self.shots)

    def ask(self, data: CaptionData, split: str) -> Iterable[Batch]:
        if self.shots is None:
            return data.pictures(split)
        return prompt_batches(data, self._with_examples(data, split, self.shots))

    def _with_examples(self, data: CaptionData, split: str, shots: int) -> list[Document]:
        pool = data.examples("train")

        def prompt(example: Example) -> Document:
            chance = Random(stable_number(data.seed, "shots", example.id))
            return few_shot(example, [pool[int(chance.random() * len(pool))] for _ in range(shots)])

        return [prompt(example) for example in data.examples(split)]

    def score(self, data: CaptionData, split: str, said: Mapping[str, str]) -> Evaluation:
        """Standard scores against the references; on scenes also whether captions are true.

        "gap/" scores: minus the same score with shuffled pictures; 0 for a captioner that does not look.
        """
        references = data.references(split)
        examples = {example.id: example for example in data.examples(split)}
        scorer = CaptionScorer(references, self.tokens)
        scenes = {id: Scene.from_dict(e.extra["scene"]) for id, e in examples.items() if "scene" in e.extra}
        corpus, per_image = _scores(scorer, scenes, said)
        shuffled, _ = _scores(scorer, scenes, exchange(said, data.seed))
        corpus |= {f"gap/{name}": corpus[name] - shuffled[name] for name in LOOKING if name in corpus}
        extra = extra_scores(self.metrics, said, references, lambda id, how: _pixels(data, examples[id], how))
        rows = [
            {"id": id, "caption": caption, "references": list(references[id]), **per_image[id], **extra.per_image[id]}
            for id, caption in said.items()
        ]
        notes = note_on_tokens(self.tokens, said.values(), itertools.chain.from_iterable(references.values()))
        remarks = {"missing": extra.reasons, "notes": {**notes, **extra.notes}}
        return Evaluation(split, {**corpus, **extra.corpus}, rows, remarks=remarks, tokens=self.tokens)

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        result = super().evaluate(parts, split)
        if self.shots is not None:
            return result
        if isinstance(parts.captioner.fusion, Writer):
            self._add_reading(result, read_references(parts, split, shuffled=True))
        if isinstance(parts.captioner.fusion, Retriever) and parts.captioner.fusion.compares:
            result.scores |= retrieval_scores(parts, split)
        return result

    @staticmethod
    def _add_reading(result: Evaluation, found: Mapping[str, Read]) -> None:
        """The loss of all references, and what it would be with other pictures; by picture, too."""
        loss, gap = nats_per_token(list(found.values())), gap_per_token(list(found.values()))
        result.scores = {"loss": loss, "perplexity": math.exp(loss), "gap/loss": gap, **result.scores}
        result.rows = [{**row, **vars(found[row["id"]])} for row in result.rows]
        if gap is None:
            result.remarks["missing"]["gap/loss"] = "There is no other picture in the split."


def mean_over(rounds: Sequence[Evaluation]) -> Evaluation:
    """Means of several evaluations of the same pictures, with the captions and references of the first.

    A picture keeps the scores whose mean over pictures is that of the corpus: no other can be had back from means.
    """
    first = rounds[0]
    if len(rounds) == 1:
        return first
    scores = {name: _mean([one.scores[name] for one in rounds]) for name in first.scores}
    rows = []
    for own in zip(*(one.rows for one in rounds), strict=True):
        kept = [name for name in own[0] if name in MEANS]
        said = {name: own[0][name] for name in ("id", "caption", "references")}
        rows.append({**said, **{name: _mean([row[name] for row in own]) for name in kept}})
    note = f"means over {len(rounds)} captions of each picture, of which predictions.jsonl shows the first"
    remarks = {**first.remarks, "notes": {**first.remarks.get("notes", {}), "scores": note}}
    return replace(first, scores=scores, rows=rows, remarks=remarks)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) else None


def no_examples(shots: int) -> UserError:
    """Where examples cannot stand in the context."""
    return UserError(
        f"shots={shots} needs captioned pictures, a mechanism that reads several pictures (fusion=flamingo, "
        "fusion=prefix), and 0 or more examples."
    )


def prompt_batches(data: CaptionData, documents: Sequence[Document]) -> Iterator[Batch]:
    """Documents whose last chunk is to be continued, a batch at a time."""
    for first in range(0, len(documents), data.batch_size):
        yield data.prompts(documents[first : first + data.batch_size])


def _pixels(data: CaptionData, example: Example, preprocessing: Mapping) -> torch.Tensor:
    """A picture as another encoder than the captioner's wants it."""
    if hasattr(data.source, "picture"):
        return data.source.picture(example, preprocessing)
    return data.source.pixels(example, preprocessing["size"])


def _scores(scorer: CaptionScorer, scenes: Mapping[str, Scene], said: Mapping[str, str]) -> tuple[dict, dict]:
    """Scores of the corpus, and of each picture by id."""
    scores = scorer.score(said)
    if not scenes:
        return dict(scores.corpus), scores.per_image
    truth = truth_scores(said, scenes)
    per_image = {id: {**truth.per_image[id], **own} for id, own in scores.per_image.items()}
    return {**truth.corpus, **scores.corpus}, per_image
