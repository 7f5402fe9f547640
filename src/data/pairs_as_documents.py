"""Documents made of pictures with captions: what several pictures in one text teach, with nothing else changed.

Lin et al. 2024 (VILA, arXiv 2312.07533, section 3.2) train on pages of several pictures, on the same pages broken into
pairs, and on pages with all pictures first. Here pages are made of any captioned pictures, so that all ``form``s have
the very same pictures and texts:

    interleaved   <image> text_1 <eos>  <image> text_2 <eos>  <image> text_3 <eos>        one document
    reordered     <image> <image> <image>  text_1 <eos>  text_2 <eos>  text_3 <eos>       one document
    broken        <image> text_1 <eos>                                                    a document each

Their mixtures are data=mixture of several.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Literal

from torch import Tensor

from src.contracts import Chunk, Document, Example, Prepared, Source, UserError
from src.data.base import stable_number
from src.kinds import Checked, Seed, Size
from src.text.normalise import normalise_caption
from src.text.word_classes import word_class

Form = Literal["interleaved", "reordered", "broken"]


class PairsAsDocuments(Checked, group="data.source"):
    """``items`` pictures of ``pairs`` a document, each with one of its captions, which ``seed`` draws.

    ``related``: pictures of a document share the word that most of their captions name; what is left of such a group
    comes together with what is left of others (and is counted). Otherwise they are any pictures. Raises UserError
    where ``pairs`` are documents, or have no pictures.
    """

    interleaved = True
    task = "stories"
    has_images = True

    def __init__(self, pairs: Source, seed: Seed, items: Size, form: Form, related: bool):
        if pairs.interleaved or not pairs.has_images:
            raise UserError(f"data.source.pairs={pairs.name} are no pictures with captions; give a source of these.")
        self.name, self.pairs = f"{pairs.name}_documents", pairs
        self.seed, self.items, self.form, self.related = seed, items, form, related
        if hasattr(pairs, "faults"):
            self.faults = pairs.faults
        self._documents: dict[str, list[Document]] = {}

    def splits(self) -> tuple[str, ...]:
        return self.pairs.splits()

    def examples(self, split: str) -> Sequence[Document]:
        """Raises UserError as ``pairs`` does."""
        if split not in self._documents:
            groups = self._groups(split)
            self._documents[split] = [document for group in groups for document in self._written(group)]
        return self._documents[split]

    def prepare(self, preprocessing: Mapping) -> None:
        """Pictures as an encoder wants them, where ``pairs`` can do that."""
        if isinstance(self.pairs, Prepared):
            self.pairs.prepare(preprocessing)

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size)."""
        return self.pairs.pixels(example, size)

    def _groups(self, split: str) -> list[list[Example]]:
        """The pictures of a split, each once, ``items`` to a group."""
        chance = Random(f"{self.seed}/documents/{split}")
        examples = list(self.pairs.examples(split))
        chance.shuffle(examples)
        if not self.related:
            return _cut(examples, self.items)
        by_word = defaultdict(list)
        for example in examples:
            by_word[most_named(example.captions)].append(example)
        whole = [group for named in by_word.values() for group in _cut(named, self.items)]
        groups = [group for group in whole if len(group) == self.items]
        left = [example for group in whole if len(group) < self.items for example in group]
        if left:
            logging.getLogger(__name__).info(
                "%s/%s: %d of %d pictures share their word with too few others and stand together with any.",
                *(self.name, split, len(left), len(examples)),
            )
        return groups + _cut(left, self.items)

    def _written(self, group: Sequence[Example]) -> list[Document]:
        chunks = [Chunk(self._caption(example), example) for example in group]
        if self.form == "broken":
            return [Document(chunk.picture.id, (chunk,)) for chunk in chunks if chunk.picture]
        if self.form == "reordered":
            chunks = [*(Chunk("", chunk.picture) for chunk in chunks), *(Chunk(chunk.text) for chunk in chunks)]
        return [Document("+".join(example.id for example in group), tuple(chunks))]

    def _caption(self, example: Example) -> str:
        place = stable_number(self.seed, "caption", example.id) % len(example.captions)
        return normalise_caption(example.captions[place])


def most_named(captions: Sequence[str]) -> str:
    """The content word in most of the captions, the first of several; "" where there is none."""
    counts: Counter[str] = Counter()
    for caption in captions:
        words = dict.fromkeys(normalise_caption(caption).lower().split())
        counts.update(word for word in words if word_class(word) == "content")
    return max(counts, key=counts.__getitem__, default="")


def _cut(examples: Sequence[Example], items: int) -> list[list[Example]]:
    """Groups of ``items``; the last may have fewer."""
    return [list(examples[at : at + items]) for at in range(0, len(examples), items)]
