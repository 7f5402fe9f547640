"""CIDEr-D of captions that a model makes up while it learns, one batch of training pictures after the other.

Document frequencies are those of all training references, collected once. A caption's end counts as a word, of
references and of what is said, as in Luo's self-critical.pytorch: n-grams such as "grass END" are what tells "a dog on
the grass" from "a dog on the grass with a". Where they are not counted, captions learn to end on "with a", for up to
.04 of CIDEr-D (Hu, Cavicchioli, Capotondi 2023, arXiv 2305.12254). A caption that was cut has none. Words are those of
``metrics.tokens``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from src.metrics.cider import CiderD
from src.metrics.ngrams import Frequencies, ReferenceNgrams
from src.metrics.tokens import TOKENS

END = "END"  # no token of a caption: those are in lower case


class CiderRewards:
    """CIDEr-D, ends included, by the document frequencies of ``captions``: for each training picture, all of them.

    Raises ValueError for no picture, or one without any.
    """

    def __init__(self, captions: Iterable[Sequence[str]]):
        tokenised = [[ended(TOKENS["words"](caption)) for caption in own] for own in captions]
        self.frequencies: Frequencies = ReferenceNgrams(tokenised).frequencies

    def __call__(self, references: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> np.ndarray:
        """(pictures, n), 0 to 10. ``references``: captions of each picture as their authors wrote them; ``said``: n
        captions of each, as tokens, with ``END`` where they have ended."""
        ngrams = ReferenceNgrams([[_reference(text) for text in own] for own in references], self.frequencies)
        cider = CiderD(ngrams)
        return np.stack([cider.score(ngrams.look_up(column)) for column in zip(*said, strict=True)], 1)


def ended(tokens: str) -> str:
    """The tokens of a caption and its end."""
    return f"{tokens} {END}".lstrip()


@lru_cache(maxsize=1 << 17)
def _reference(caption: str) -> str:
    return ended(TOKENS["words"](caption))
