"""What BLEU, ROUGE-L, CIDEr-D and diversity count: words as COCO reads them, or single characters.

COCO's tokeniser parts words at spaces. Chinese, Japanese, Thai, Lao, Burmese and Khmer write none, so that a caption
becomes one word, or one between two punctuation marks, and next to nothing ever matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from src.metrics.ptb import tokenize


def characters(caption: str) -> str:
    """The characters of one caption in lower case, joined by single spaces, less COCO's punctuation and all spaces."""
    return tokenize(" ".join("".join(caption.split())))


# What the configuration calls them -> tokens of a caption, joined by single spaces.
TOKENS = {"words": tokenize, "characters": characters}

_LETTERS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
LONG = 6.0  # letters between two spaces; words of these languages have 1.5 (Chinese) to 4.5 (Thai)


def unspaced(captions: Iterable[str]) -> bool:
    """Whether most of the text is of scripts that write no spaces between words, and has none."""
    letters = chunks = everything = 0
    for caption in captions:
        for chunk in caption.split():
            found = len(_LETTERS.findall(chunk))
            letters, chunks, everything = letters + found, chunks + (found > 0), everything + len(chunk)
    return letters > everything / 2 and letters > LONG * chunks


def note_on_tokens(tokens: str, *sets: Iterable[str]) -> dict[str, str]:
    """{"tokens": what one has to know of scores by words} where one of the sets of captions has none; else {}."""
    if tokens != "words" or not any(map(unspaced, sets)):
        return {}
    return {
        "tokens": "these captions have no spaces between words, so that BLEU, ROUGE-L and CIDEr-D take a whole caption "
        "for a word and mean nothing; tokens=characters of src.score and src.evaluate counts characters"
    }
