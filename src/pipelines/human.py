"""pipeline=human: one of a picture's captions, held against its others: what people reach by these scores.

    round k of K    y(x) = the k-th caption of x, against the captions of x without it;   K = the fewest of any picture

Scores are means over the K rounds: which person is the first to write differs from one picture to the next, but not by
chance alone (on Flickr8k's test split CIDEr-D is .789, .839, .866, .821 and .788 by round; the mean, .820, is what
people reach). With ``wrong`` every picture gets the caption of another one: what is reached without looking.

There is one reference fewer than for other systems. CIDEr-D is a mean over references and hardly minds; BLEU and
ROUGE-L take the best of them and fall.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from src.contracts import Batch
from src.data.order import exchange
from src.errors import UserError
from src.loading.module import CaptionData
from src.pipelines.base import Pipeline
from src.vision.base import Vision


class Human(Pipeline):
    """See above."""

    sees = False
    notes: ClassVar[Mapping[str, str]] = {
        "references": "one caption of each picture is the answer, and it is held against the others, one fewer than "
        "other systems have; src.compare puts it beside them with allow=[references]"
    }

    def __init__(self, vision: Vision | None, data: CaptionData, wrong: bool):
        super().__init__(vision, data)
        self.wrong = wrong

    def rounds(self, split: str) -> Iterator[tuple[Said, CaptionData]]:
        """Raises UserError for a picture with a single caption."""
        examples = list(self.data.examples(split))
        fewest = min(examples, key=lambda example: len(example.captions))
        if len(fewest.captions) < 2:
            raise UserError(
                f"pipeline=human holds a caption against the others of its picture, and {fewest.id} has only one; "
                "choose data with several captions of each picture."
            )
        for k in range(len(fewest.captions)):
            said = {example.id: example.captions[k] for example in examples}
            left = [replace(one, captions=one.captions[:k] + one.captions[k + 1 :]) for one in examples]
            answers = exchange(said, self.data.seed) if self.wrong else said
            yield Said(answers), self.data.with_examples(split, left)


@dataclass(frozen=True)
class Said:
    """Answers that are known."""

    captions: Mapping[str, str]

    def caption(self, batches: Iterable[Batch], decoder=None, prompted: bool = False) -> dict[str, str]:
        """Captions by id, as people wrote them."""
        return {id: self.captions[id] for batch in batches for id in batch.ids}
