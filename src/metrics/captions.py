"""Scores of a whole set of predicted captions: references once, then any number of sets of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from src.errors import UserError
from src.metrics.bleu import bleu, bleu_statistics
from src.metrics.cider import CiderD
from src.metrics.diversity import diversity
from src.metrics.ngrams import ReferenceNgrams
from src.metrics.rouge import RougeL
from src.metrics.tokens import TOKENS


@dataclass(frozen=True)
class Scores:
    """``corpus``: name -> score as COCO prints it (BLEU-4 0.3, CIDEr-D 1.1) and the diversity of the predictions.

    ``per_image``: id -> BLEU-4, ROUGE-L, CIDEr-D; corpus ROUGE-L and CIDEr-D are the means of these, corpus BLEU is
    not. ``bleu_statistics``: id -> the ten counts from whose sum BLEU of any set of pictures follows (``bleu.bleu``).
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[str, float]]
    bleu_statistics: dict[str, np.ndarray]


class CaptionScorer:
    """BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D and diversity against references, which are tokenised and counted once."""

    def __init__(self, references: Mapping[str, Sequence[str]], tokens: str = "words") -> None:
        """``references``: id -> captions as their authors wrote them; ``tokens``: what is counted, of ``TOKENS``.

        Raises UserError where a picture has no reference.
        """
        if not references:
            raise UserError("There are no references to score against.")
        without = [id for id, captions in references.items() if not captions]
        if without:
            raise UserError(f"{len(without)} pictures have no reference caption, for example {without[0]}.")
        self.ids = list(references)
        self._tokenize = TOKENS[tokens]
        per_picture = _progress(references.values(), "references")
        tokenised = [[self._tokenize(caption) for caption in captions] for captions in per_picture]
        self._ngrams = ReferenceNgrams(tokenised)
        self._cider = CiderD(self._ngrams)
        self._rouge = RougeL(tokenised)

    def score(self, predictions: Mapping[str, str]) -> Scores:
        """Scores of one caption per picture, as the model wrote it.

        Raises UserError unless there is exactly one prediction for every picture of the references: scores over a part
        of them cannot be compared with anything.
        """
        self._check_same_pictures(predictions)
        tokenised = [self._tokenize(predictions[id]) for id in _progress(self.ids, "predictions")]
        ngrams = self._ngrams.look_up(tokenised)
        statistics = bleu_statistics(self._ngrams, ngrams)
        each = {
            "BLEU-4": bleu(statistics)[:, -1].tolist(),
            "ROUGE-L": self._rouge.score(tokenised),
            "CIDEr-D": self._cider.score(ngrams).tolist(),
        }
        corpus = {f"BLEU-{order}": score for order, score in enumerate(bleu(statistics.sum(0)).tolist(), start=1)}
        corpus |= {name: float(np.mean(each[name])) for name in ("ROUGE-L", "CIDEr-D")}
        rows = zip(*each.values(), strict=True)
        return Scores(
            corpus | diversity(tokenised),
            {id: dict(zip(each, row, strict=True)) for id, row in zip(self.ids, rows, strict=True)},
            dict(zip(self.ids, statistics, strict=True)),
        )

    def _check_same_pictures(self, predictions: Mapping[str, str]) -> None:
        known = set(self.ids)
        unknown = [id for id in predictions if id not in known]
        missing = [id for id in self.ids if id not in predictions]
        if len(missing) == len(self.ids):
            seen = f"like {unknown[0]}" if unknown else "none"
            raise UserError(f"No picture has a prediction: references have ids like {missing[0]}, predictions {seen}.")
        if unknown:
            raise UserError(f"{len(unknown)} predictions are for pictures without references, such as {unknown[0]}.")
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.ids)} pictures have no prediction, for example {missing[0]}; "
                "scores over a part of the pictures cannot be compared."
            )


def _progress(captions: Iterable, what: str) -> Iterable:
    """A progress bar on stderr once it has taken two seconds."""
    return tqdm(captions, desc=f"reading {what}", unit=" pictures", delay=2, leave=False)
