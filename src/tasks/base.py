"""What a task promises: which ability it needs, what it asks about a split, and what the answers are worth."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from tqdm import tqdm

from src.build import Parts
from src.contracts import Batch, Speaker
from src.errors import UserError
from src.fusion.base import Fusion, Writer
from src.loading.module import CaptionData
from src.tasks.reading import nats_per_token, read_references

HEADLINES = ("CIDEr-D", "accuracy", "match/accuracy", "loss")  # the first there is


@dataclass
class Evaluation:
    """``rows``: one dict per picture, for predictions.jsonl.

    ``remarks``: "missing" says why a score is None, "notes" what one has to know of one that is there; by score.
    ``tokens``: what BLEU, ROUGE-L and CIDEr-D counted, of ``metrics.tokens.TOKENS``. ``decoding``: the decoder's method
    and options; None where nothing was decoded.
    """

    split: str
    scores: dict[str, float | None]
    rows: list[dict]
    captions_per_second: float | None = None
    remarks: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: str = "words"
    decoding: dict | None = None

    @property
    def headline(self) -> tuple[str, float | None]:
        """The score that sweeps compare, and its value."""
        name = next((name for name in HEADLINES if name in self.scores), next(iter(self.scores)))
        return name, self.scores[name]


class Task(ABC):
    """``needs``: what a mechanism has to be able to do; ``documents``: whether it is about texts with pictures."""

    name: ClassVar[str]  # behind task=
    needs: ClassVar[type[Fusion]] = Writer
    documents: ClassVar[bool] = False

    def check(self, parts: Parts, split: str) -> None:
        """To be called before training: raises UserError where ``evaluate`` could not do its work after it."""
        source, fusion = parts.source, parts.captioner.fusion
        if source.interleaved != self.documents:
            what = "documents with several pictures" if self.documents else "captioned pictures"
            raise UserError(f"task={self.name} needs {what}, and data={source.name} has others; leave task= out.")
        if not isinstance(fusion, self.needs):
            raise UserError(
                f"task={self.name} needs a mechanism that is a {self.needs.__name__}, and {type(fusion).__name__} is "
                "none; choose another fusion=."
            )

    @abstractmethod
    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        """Everything that the task tells about a captioner on a split."""


class SpokenTask(Task):
    """A task that is answered in words; whoever speaks can do it, a captioner or a pipeline that trains nothing.

    ``prompted``: whether the answer goes on with the text of the batches.
    """

    prompted: bool = False

    @abstractmethod
    def ask(self, data: CaptionData, split: str) -> Iterable[Batch]:
        """What is asked, a batch at a time; the ids are those of the answers."""

    @abstractmethod
    def score(self, data: CaptionData, split: str, said: Mapping[str, str]) -> Evaluation:
        """What the answers, by id, are worth."""

    def answered(self, speaker: Speaker, data: CaptionData, split: str) -> Evaluation:
        """Ask ``speaker`` and score what it says; with the captions per second, if there was anything to say."""
        started = time.perf_counter()
        asked = tqdm(self.ask(data, split), desc=f"captions of {split}", unit="batch", leave=False)
        said = speaker.caption(asked, prompted=self.prompted)
        speed = len(said) / (time.perf_counter() - started) if said else None
        return replace(self.score(data, split, said), captions_per_second=speed)

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        decoder = parts.captioner.decoder
        options = {name: value for name, value in vars(decoder).items() if not name.startswith("_")}
        decoding = {"method": type(decoder).__name__, **options}
        return replace(self.answered(parts.captioner, parts.data, split), decoding=decoding)


@torch.no_grad()
def split_loss(parts: Parts, split: str) -> float:
    """Nats per token: of all references of pictures, of all targets of documents."""
    if not parts.source.interleaved:
        return nats_per_token(list(read_references(parts, split).values()))
    captioner = parts.captioner
    captioner.eval()
    total, count = 0.0, 0
    for batch in parts.data.pictures(split):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            loss, targets = captioner.text_loss(batch)
        total, count = total + loss.item() * int(targets), count + int(targets)
    return total / max(1, count)


@torch.no_grad()
def validation_loss(parts: Parts) -> float:
    """What is left to compare where no split is scored: ``split_loss`` of who writes, the val/loss of who reads."""
    captioner, data = parts.captioner, parts.data
    if isinstance(captioner.fusion, Writer):
        return split_loss(parts, "val")
    captioner.eval()
    sums = {name: (0.0, 0) for name in captioner.objectives}
    for batch in data.pictures("val", captions=data.captions_per_image):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            losses = captioner.losses(batch)
        for name, (mean, count, *_) in losses.items():
            sums[name] = sums[name][0] + float(mean) * int(count), sums[name][1] + int(count)
    return sum(captioner.objectives[name].weight * total / max(1, count) for name, (total, count) in sums.items())
