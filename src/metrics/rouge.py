"""ROUGE-L as COCO defines it: F-measure of the longest common subsequence (Lin 2004, ACL workshop, section 3).

F = (1 + b^2) P R / (R + b^2 P) with b = 1.2; P and R are each the best over the references (pycocoevalcap 1.2,
rouge.py).
"""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2


class RougeL:
    """ROUGE-L against references that are split into words once."""

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        """``references``: for each picture its tokenised texts, at least one."""
        # As in COCO's code, which splits at single spaces, an empty text is one empty word.
        self._references = [[text.split(" ") for text in texts] for texts in references]

    def score(self, predictions: Sequence[str]) -> list[float]:
        """ROUGE-L of one tokenised prediction per picture, in the pictures' order; the corpus score is the mean."""
        return [_rouge_l(text.split(" "), own) for text, own in zip(predictions, self._references, strict=True)]


def _rouge_l(words: list[str], references: list[list[str]]) -> float:
    places: dict[str, int] = {}
    for place, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << place
    common = [_common(places, len(words), reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(places: dict[str, int], length: int, reference: list[str]) -> int:
    """Length of the longest common subsequence of ``reference`` and the text of that length with words at ``places``.

    A row of the dynamic programme is one integer, a zero bit per step up in it (Hyyrö 2004), so that one word costs a
    few machine operations instead of one per pair of words.
    """
    row = full = (1 << length) - 1
    for word in reference:
        if word in places:
            hits = row & places[word]
            row = ((row + hits) | (row - hits)) & full
    return length - row.bit_count()
