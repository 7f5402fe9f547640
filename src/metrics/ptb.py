"""Penn Treebank tokenisation of captions as COCO's evaluation does it, without Java.

COCO's scores are defined on the output of Stanford's ``PTBTokenizer -preserveLines -lowerCase`` (CoreNLP 3.4.1), from
which a fixed list of punctuation tokens is removed. The rules below were written from that program's observable
behaviour (inputs and outputs compared over about 800,000 captions), not from its source. Three things differ on purpose:

* Whitespace is collapsed first. A carriage return, U+2028, form feed or vertical tab inside a caption makes the
  original see two lines, and every later caption is then scored against the wrong picture.
* A caption's tokens never depend on its neighbours. The original reads all captions as one text and splits the period
  off "letter K." only if the next caption starts with a word such as "A". Nearly all captions do, so a single letter
  that ends a caption always loses its period here.
* Half of a surrogate pair is dropped like any other character that the original does not know.

Kept on purpose: brackets survive as ``-lrb-`` and ``-rrb-``, because the published list of punctuation has them in
capitals; every published score contains that slip.

Time is linear in the length of a caption: each pattern either starts with a rare character, or consumes what it
scanned, or is bounded in length.
"""

from __future__ import annotations

import re

# The tokens that COCO's evaluation removes (pycocoevalcap 1.2, tokenizer/ptbtokenizer.py).
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Characters with a fixed spelling in the output. Quotes all end up as removed punctuation, so the plain ones serve.
_CHARACTERS = str.maketrans(
    {
        "“": '"',
        "”": '"',
        "«": '"',
        "»": '"',
        "‘": "`",
        "‹": "`",
        "‛": "`",
        "›": "'",
        "–": "--",
        "—": "--",
        "―": "--",
        "…": "...",
        "\xad": None,  # the soft hyphen is an invitation to break a line, not a character of the word
    }
)
_SYMBOLS = {"€": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents"}
_SYMBOLS |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " ", "&mdash;": "--"}

# Abbreviations that keep their period wherever they stand.
_ABBREVIATIONS = """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd cie col
    cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd maj mar mfg mme
    mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel thu tue wed wis wyo alex
    ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl invt kans mich minn mlle
    mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept supt tenn tues univ wisc
""".split()
# Abbreviated states that are words too, so that only the capital tells them apart.
_STATES = "Az La Pa Ark Del Ill Ore Tex Mass Miss Wash".split()
# Abbreviations only in front of a number: "no. 5", but not "he says no."
_BEFORE_NUMBER = "ca no nos op pp art fig figs prop".split()
# A single letter with a period is an initial ("J. Smith") unless one of these words opens a new sentence after it.
_OPENERS = """
    A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She
    Since So Some Such That The Their Then There These They This We What When While Yet You
""".split()

# Letters and digits of every script of the basic plane that the original joins into words, without the punctuation
# between them. Newer characters and emoji are unknown to it and vanish.
_CHARS = (
    r"0-9A-Za-z\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u037d\u037f-\u0386\u0388-\u0587\u0591-\u05bd\u05bf\u05c1\u05c2"
    r"\u05c4\u05c5\u05c7-\u05f2\u0610-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff\u0710-\u0963\u0966-\u0e3e"
    r"\u0e40-\u0e4e\u0e50-\u1fff\u2010\u2011\u2071\u207f\u2090-\u209c\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124"
    r"\u2126\u2128\u212a-\u212d\u212f-\u2139\u213c-\u213f\u2145-\u2149\u2160-\u2184\u2c00-\u2dff\u3005-\u3007\u3021-\u3029"
    r"\u3031-\u3035\u3040-\u30fa\u30fc-\ud7ff\uf900-\ufdff\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\uff66-\uffdc"
)
_OTHER = r"!-~\xa1-\xbf\xd7\xf7\u2016-\u2023\u2030-\u2044\u2070-\u209f\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
_OTHER += r"\u037e\u0387\u0589\u05be\u0600-\u060f\u061b-\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e3f\u3001\u3002\u3012\u30fb"
_OTHER += r"\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6"

_C = f"[{_CHARS}]"
_L = rf"(?:(?!\d){_C})"
_A = "['’]"
_END = rf"(?!{_C})"
_WORD = rf"{_C}+(?:_{_C}+)*"


def _any(words: list[str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"
