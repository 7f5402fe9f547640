"""The commonest answers of a data set: what is chosen from, and what is ranked."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from src.contracts import Source

ENOUGH = 5_000  # questions that are made on demand, to know their commonest answers


def commonest_answers(source: Source, most: int) -> list[str]:
    """The answers that most questions of the training split have, each counted once a question, commonest first.

    None where nothing is asked.
    """
    if source.task != "vqa":
        return []
    examples = source.examples("train")
    some = examples if isinstance(examples, list) else islice(examples, ENOUGH)
    counts = Counter(answer for example in some for answer in set(example.captions))
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]
