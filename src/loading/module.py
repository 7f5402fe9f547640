"""Batches for training, validation and captioning from any source."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import lightning
import torch

from src.contracts import Batch, Document, Example, Line, Source, Text, Tokenizer, present
from src.data.base import Streamed
from src.data.order import EpochBatchSampler, InOrder, nested_share
from src.errors import UserError
from src.layers.processes import processes
from src.loading.batches import CaptionBatches, Loader, QuestionBatches, TrainLoader, text_rows
from src.loading.documents import DocumentBatches, prompts
from src.loading.rows import APART, Rows
from src.objectives.base import Objective
from src.text.normalise import normalise_caption


class CaptionData(lightning.LightningDataModule):
    """Splits of ``source`` as loaders of contracts.Batch.

    ``image_size``: side of the pixels in a batch; None for none. ``batch_size``: pictures per batch and process.
    ``captions_per_image``: G, rows per picture. ``train_fraction``: share of the training pictures that is used; a
    smaller share lies inside a larger one of the same ``seed``. ``held_out``: share of these that is validation, in
    place of the split of that name. ``test_fraction``: share of the test pictures that is scored, the same ones with
    every seed. ``max_tokens``: longest row, start and end token
    included (a longer caption is cut and has no end token). ``workers``: loading processes per loader. ``features``:
    split -> table whose ``visual(rows)`` gives the encoded pictures at positions of ``examples(split)``; pixels are
    then not loaded. It may be set later, before the loaders are asked for. ``image_tag``: captions begin with the tag
    that stands for a picture in documents. ``columns``: how many visual tokens stand there instead, if a mechanism puts
    them among the words. ``by_length``: pictures whose longest captions have about as many words come
    together in training, so that less is padding; not for streamed sources. ``objectives``: what makes views of a batch
    (None: nothing does, and it can be captioned only), and ``rows`` how they are laid. ``tokenizer``: None for batches
    of pictures without any text.

    Batches, their order and their captions depend on (source, seed, epoch) alone. Raises UserError for options out of
    range, missing splits, repeated ids, and pictures without any caption.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        image_size: int | None,
        batch_size: int,
        captions_per_image: int,
        train_fraction: float = 1.0,
        seed: int = 0,
        max_tokens: int = 40,
        workers: int = 0,
        features: Mapping | None = None,
        image_tag: bool = False,
        by_length: bool = False,
        objectives: Mapping[str, Objective] | None = None,
        rows: Rows = APART,
        held_out: float | None = None,
        test_fraction: float = 1.0,
        columns: int = 0,
    ):
        super().__init__()
        _require("batch_size", batch_size, batch_size >= 1, "at least 1")
        _require("captions_per_image", captions_per_image, captions_per_image >= 1, "at least 1")
        _require("train_fraction", train_fraction, 0 < train_fraction <= 1, "above 0 and at most 1")
        _require("held_out", held_out, held_out is None or 0 < held_out < 1, "above 0 and below 1")
        _require("test_fraction", test_fraction, 0 < test_fraction <= 1, "above 0 and at most 1")
        _require("max_tokens", max_tokens, max_tokens >= 3, "at least 3: start, one token, end")
        _require("workers", workers, workers >= 0, "0 or more")
        self.source, self.tokenizer, self.image_size = source, tokenizer, image_size
        self.batch_size, self.captions_per_image, self.max_tokens = batch_size, captions_per_image, max_tokens
        self.train_fraction, self.seed, self.workers = train_fraction, seed, workers
        self.held_out, self.test_fraction = held_out, test_fraction
        self.features, self.image_tag, self.by_length = features or {}, image_tag, by_length
        self.objectives, self.rows, self.columns = objectives or {}, rows, columns
        self._examples: dict[str, Sequence[Example]] = {}

    @property
    def batches_per_update(self) -> int:
        """How many batches the trainer has to accumulate for one update."""
        return 1

    def prompts(self, documents: Sequence[Document]) -> Batch:
        """Documents whose last chunk is to be continued; they may be longer than training's captions."""
        longest = (self.columns + self.max_tokens) * max(len(document.chunks) for document in documents)
        return prompts(documents, self.source, self.tokenizer, self.image_size, longest, self.columns)

    # ------------------------------------------------------------------------------------------------- examples
    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split that are used, in a fixed order."""
        if split not in self._examples:
            if split in ("train", "val") and self.held_out is not None:
                self._examples |= self._parted(self._checked("train"), self.held_out)
            else:
                self._examples[split] = self._checked(split)
        return self._examples[split]

    def _parted(self, examples: Sequence[Example], held_out: float) -> dict[str, Sequence[Example]]:
        """Some training examples as validation, the rest as training. Raises UserError where that leaves nothing."""
        if isinstance(examples, Streamed) or len(examples) < 2:
            raise UserError("data.held_out shares out a list of at least two training examples; leave it out here.")
        places = set(nested_share(len(examples), min(held_out, 1 - 1 / len(examples)), self.seed))
        parted: dict[str, list[Example]] = {"train": [], "val": []}
        for place, example in enumerate(examples):
            parted["val" if place in places else "train"].append(example)
        return dict(parted)

    def with_examples(self, split: str, examples: Sequence[Example]) -> CaptionData:
        """The same with other examples of a split, for which it has no features."""
        other = copy.copy(self)
        other._examples = {**self._examples, split: examples}
        other.features = {name: table for name, table in self.features.items() if name != split}
        return other

    def _checked(self, split: str) -> Sequence[Example]:
        if split not in self.source.splits():
            known = ", ".join(self.source.splits())
            raise UserError(f"data={self.source.name} has no examples in a split {split!r}; it has {known}.")
        examples = self.source.examples(split)
        # Sources that make examples on demand make them right; looking at each would make them all.
        if isinstance(examples, list):
            examples = self._usable(examples, f"{self.source.name}/{split}")
            _require_distinct(examples, f"{self.source.name}/{split}")
            self._require_room(examples, f"{self.source.name}/{split}")
        if split == "train" and self.train_fraction < 1 and isinstance(examples, Streamed):
            examples = examples.share(self.train_fraction, self.seed)
        elif split == "train" and self.train_fraction < 1:
            examples = [examples[i] for i in nested_share(len(examples), self.train_fraction, self.seed)]
        elif split == "test" and self.test_fraction < 1:
            examples = [examples[i] for i in nested_share(len(examples), self.test_fraction, seed=0)]
        if len(examples) == 0:
            raise UserError(f"data={self.source.name} has no examples in its split {split!r}.")
        return examples

    def _usable(self, examples: list[Example], where: str) -> list[Example]:
        return without_empty_captions(examples, where)

    def _require_room(self, examples: list[Example], where: str) -> None:
        """Raises UserError for questions behind which ``max_tokens`` leaves no room for a word."""
        asked = [normalise_caption(example.question) for example in examples if isinstance(example, Example)]
        if self.tokenizer is None or not any(asked):
            return
        lengths = [len(ids) + 3 for ids in self.tokenizer.encode(asked)]  # start, a token, end
        long = sum(length > self.max_tokens for length in lengths)
        if long:
            raise UserError(
                f"{long} of the {len(asked)} questions of {where} leave no room for an answer within "
                f"data.max_tokens={self.max_tokens}; the longest needs {max(lengths)}."
            )

    def references(self, split: str) -> dict[str, list[str]]:
        """The captions of each picture as their authors wrote them, by id."""
        examples = self.examples(split)
        references = {example.id: list(example.captions) for example in examples}
        if len(references) != len(examples):
            raise UserError(f"{self.source.name}/{split} has several pictures with the same id.")
        return references

    def lines(self, split: str) -> dict[str, list[Line]]:
        """What may be said of each picture, by id."""
        return {example.id: example.lines for example in self.examples(split)}

    def fingerprint(self, split: str) -> str:
        """sha256 over ids and texts: scores are comparable only where it is equal."""
        digest = hashlib.sha256()
        for example in self.examples(split):
            digest.update(json.dumps([example.id, *example.texts]).encode() + b"\n")
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------------- loaders
    def train_dataloader(self) -> Loader:
        """Shuffled anew in every epoch; under Trainer(overfit_batches=...) always the same batches."""
        if self.trainer is not None and self.trainer.overfit_batches > 0:
            return self._in_order("train", self.captions_per_image)
        examples, options = self.examples("train"), (self.batch_size, self.seed, *_rank_and_world())
        streamed = isinstance(examples, Streamed)
        lengths = list(map(most_words, examples)) if self.by_length else None
        order = examples.order(*options) if streamed else EpochBatchSampler(len(examples), *options, lengths)
        return TrainLoader(self._batches("train", self.captions_per_image), order, self.workers)

    def val_dataloader(self) -> Loader:
        """All pictures of the split "val" in order, each with its first captions."""
        return self._in_order("val", self.captions_per_image)

    def pictures(self, split: str, limit: int | None = None, captions: int = 1, shared: bool = False) -> Loader:
        """Each picture of a split once, in order, with its first captions; only the first ``limit`` ones if given.

        All of them in this process, or its share of them where the work is ``shared``.
        """
        n = len(self.examples(split))
        order = InOrder(n if limit is None else min(n, limit), self.batch_size, *(_rank_and_world() if shared else ()))
        return Loader(self._batches(split, captions), order, self.workers)

    def pictures_at(self, split: str, places: Sequence[int]) -> Loader:
        """The pictures at these positions of ``examples(split)``, in this order, each with its first caption."""
        picks = [(None, list(places[i : i + self.batch_size])) for i in range(0, len(places), self.batch_size)]
        return Loader(self._batches(split, 1), picks, self.workers)

    def texts(self, lines: Sequence[Line]) -> Text:
        """Lines as the rows that training makes of them, one a row."""
        picture = int(self.source.has_images)
        return text_rows(lines, present(self.tokenizer, "tokenizer"), self.max_tokens, picture, self.image_tag)

    def questions(self, split: str, shown: Sequence[int] | None = None) -> Loader:
        """The questions of a split, each a prompt beside its picture, or beside that of example ``shown[i]``."""
        asked = QuestionBatches(self._batches(split, 1), shown)
        return Loader(asked, InOrder(len(self.examples(split)), self.batch_size), self.workers)

    def _in_order(self, split: str, captions_per_image: int) -> Loader:
        order = InOrder(len(self.examples(split)), self.batch_size, *_rank_and_world())
        return Loader(self._batches(split, captions_per_image), order, self.workers)

    def _batches(self, split: str, captions_per_image: int) -> CaptionBatches:
        return CaptionBatches(
            self.examples(split),
            self.source,
            self.tokenizer,
            captions_per_image,
            self.max_tokens,
            self.seed,
            self.image_size,
            self.features.get(split),
            self.image_tag,
            self.objectives,
            self.rows,
        )


class DocumentData(CaptionData):
    """Documents instead of captioned pictures: one row per document, with up to ``max_images`` pictures.

    ``p_next``: share of the training documents whose text looks at the next picture, see ``data.documents``.
    """

    def __init__(self, source: Source, tokenizer: Tokenizer, max_images: int, p_next: float, **options):
        super().__init__(source, tokenizer, captions_per_image=1, **options)
        _require("max_images", max_images, max_images >= 1, "at least 1")
        _require("p_next", p_next, 0 <= p_next <= 1, "between 0 and 1")
        self.max_images, self.p_next = max_images, p_next

    def prompts(self, documents: Sequence[Document]) -> Batch:
        """Documents whose last chunk is to be continued."""
        return prompts(documents, self.source, self.tokenizer, self.image_size, self.max_tokens, self.columns)

    def _usable(self, examples: list[Document], where: str) -> list[Document]:
        return examples  # text of a document may be empty between two pictures

    def _batches(self, split: str, captions_per_image: int) -> DocumentBatches:
        return DocumentBatches(
            self.examples(split),
            self.source,
            self.tokenizer,
            self.max_tokens,
            self.max_images,
            self.p_next,
            self.seed,
            self.image_size,
            self.objectives,
            self.rows,
            self.columns,
        )


def most_words(example: Example) -> int:
    """Words of the example's longest caption."""
    return max(len(caption.split()) for caption in example.captions)


def without_empty_captions(examples: list[Example], where: str) -> list[Example]:
    """Captions that say nothing are left out with a warning; raises UserError for a picture that has no other."""
    kept, dropped = [], 0
    for example in examples:
        captions = tuple(c for c in example.captions if normalise_caption(c))
        if not captions:
            raise UserError(f"The picture {example.id} in {where} has no caption, or only empty ones.")
        if len(captions) < len(example.captions):
            dropped += len(example.captions) - len(captions)
            example = replace(example, captions=captions)
        kept.append(example)
    if dropped:
        warnings.warn(f"{where}: {dropped} empty captions are left out.", stacklevel=2)
    return kept


def _require_distinct(examples: list[Example], where: str) -> None:
    seen = set()
    for example in examples:
        if example.id in seen:
            raise UserError(f"{where} has several pictures with the id {example.id}.")
        seen.add(example.id)


def _rank_and_world() -> tuple[int, int]:
    """Place among the processes of distributed training; (0, 1) without."""
    return (torch.distributed.get_rank(), processes()) if processes() > 1 else (0, 1)


def _require(name: str, value, right: bool, range: str) -> None:
    if not right:
        raise UserError(f"data.{name} must be {range}; got {value}.")
