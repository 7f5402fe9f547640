"""Coarse classes of English words, for diagnostics that ask where a mechanism looks at the picture.

Closed classes are listed, the rest counts as content: no tagger is needed, and captions use few function words.
"""

from __future__ import annotations

COLOURS = frozenset("red orange yellow green blue purple pink black white brown gray grey tan golden silver".split())
SIZES = frozenset("small little tiny big large huge long short tall young old".split())
NUMBERS = frozenset("one two three four five six seven eight nine ten several many some few both".split())
PLACES = frozenset(
    "in on at of to with by from into over under above below behind beside near next through across along around "
    "between against front left right top down up off out".split()
)
FUNCTION = frozenset(
    "a an the this that these those his her its their it he she they there is are was were be being and or but while "
    "as which who another other (end)".split()
)
CLASSES = {"colour": COLOURS, "size": SIZES, "number": NUMBERS, "place": PLACES, "function": FUNCTION}
NAMES = (*CLASSES, "content")
# Words behind which a description is not over, all but never.
LEAVING_OPEN = frozenset("a an the with of and or to at by from into his her its their is are as while which".split())


def word_class(word: str) -> str:
    """One of ``NAMES``; case and punctuation aside."""
    bare = word.lower().strip(" .,;:!?'\"-")
    return next((name for name, words in CLASSES.items() if bare in words), "content")


def unfinished(tokens: str) -> bool:
    """Whether a caption, as tokens with spaces between them, ends in the middle of a sentence: "a dog with a"."""
    return tokens.rpartition(" ")[2] in LEAVING_OPEN
