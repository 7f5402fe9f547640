"""Does a captioner say different things about different pictures?

distinct-1, distinct-2: different words (pairs of neighbouring words) per word (pair) said, over all captions together
(Li et al. 2016, NAACL, arXiv 1510.03055, section 5). unique: different captions per caption. vocabulary: different
words. length: mean words per caption.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def diversity(captions: Sequence[str]) -> dict[str, float]:
    """The numbers above for tokenised captions; 0 where there is nothing to count."""
    split = [caption.split() for caption in captions]
    words = [word for caption in split for word in caption]
    pairs = [pair for caption in split for pair in itertools.pairwise(caption)]
    return {
        "distinct-1": _share(len(set(words)), len(words)),
        "distinct-2": _share(len(set(pairs)), len(pairs)),
        "unique": _share(len(set(captions)), len(captions)),
        "vocabulary": len(set(words)),
        "length": _share(len(words), len(captions)),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
