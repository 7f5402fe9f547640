"""Penn Treebank tokenisation of captions as COCO's evaluation does it, without Java.

COCO's scores are defined on what Stanford's ``PTBTokenizer -preserveLines -lowerCase`` (CoreNLP 3.4.1) makes of a
caption, less a fixed list of punctuation tokens. The rules below were written from that program's observable behaviour,
not from its source. Of the 812,000 captions of COCO 2014, Flickr30k and Flickr8k, 8 come out differently, all of them
by the second of two differences that are there on purpose:

* Whitespace is collapsed first. A carriage return, U+2028, form feed or vertical tab inside a caption makes the
  original see two lines, and every later caption is then scored against the wrong picture.
* A caption's tokens never depend on its neighbours. The original reads all captions as one text and splits the period
  off "letter K." only when the next caption opens with a word such as "A". Most captions do, so here a single letter
  that ends a caption always loses its period.

Kept on purpose: brackets survive as ``-lrb-`` and ``-rrb-``, because the published list of punctuation spells them in
capitals; every published score contains that slip.

Time is linear in the length of a caption: every pattern consumes what it scans, stops at a character that it may not
contain, or is bounded in length.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Abbreviations that keep their period wherever they stand.
_ABBREVIATIONS = """
    al cf co ct dr ft ga jr ky lt md mo mr ms mt ph rd rt sq sr st va vs vt wm adj adm adv ala apr aug ave bhd cie col
    cos cpl dak dec det drs ens esq est etc ext feb fla fri gen gov hon inc ind jan jos jul jun kan ltd maj mar mfg mme
    mon mrs mtg neb nev nov oct pfc plc pte pty pvt rep rev sen sep seq sfc sgt spc ste sys tel thu tue wed wis wyo alex
    ariz assn asst atty bldg blvd brig bros capt cmdr colo conn corp dept elec govs insp intl invt kans mich minn mlle
    mont msgr natl okla penn ppte ppty pres prof ptes ptys reps sens sept supt tenn tues univ wisc
"""
# States whose abbreviation is a word or a name too: only a capital makes them one.
_STATES = """
    Az La Pa Ark Del Ill Ore Tex Mass Miss Wash AZ LA PA ARK DEL ILL ORE TEX MASS MISS WASH
"""
# Abbreviations only in front of a number: "no. 5", but not "he says no."
_BEFORE_NUMBER = "ca no nos op pp art fig figs prop"
# A letter with a period is an initial ("J. Smith"), unless one of these words opens a new sentence after it.
_OPENERS = """
    A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She
    Since So Some Such That The Their Then There These They This We What When While Yet You
"""

# Letters and digits of the scripts that the original joins into words, without the punctuation among them.
_CHARACTERS = (
    r"0-9A-Za-z\xaa\xb5\xba\xc0-\xd6\xd8-\xf6\xf8-\u037d\u037f-\u0386\u0388-\u0587\u0591-\u05bd\u05bf\u05c1\u05c2"
    r"\u05c4\u05c5\u05c7-\u05f2\u0610-\u061a\u0620-\u0669\u066e-\u06d3\u06d5-\u06ff\u0710-\u0963\u0966-\u0e3e"
    r"\u0e40-\u0e4e\u0e50-\u1fff\u2010\u2011\u2071\u207f\u2090-\u209c\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    r"\u2124\u2126\u2128\u212a-\u212d\u212f-\u2139\u213c-\u213f\u2145-\u2149\u2160-\u2184\u2c00-\u2dff\u3005-\u3007"
    r"\u3021-\u3029\u3031-\u3035\u3040-\u30fa\u30fc-\ud7ff\uf900-\ufdff\ufe70-\ufefc\uff10-\uff19\uff21-\uff3a"
    r"\uff41-\uff5a\uff66-\uffdc"
)
# Signs that become a token of their own. What is in neither set, emoji above all, is unknown to the original: it ends
# the word before it and vanishes.
_SIGNS = (
    r"!-~\xa1-\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u0600-\u060f\u061b-\u061f\u066a-\u066d\u06d4\u0964\u0965\u0e3f"
    r"\u2016-\u2023\u2030-\u2044\u2070-\u209f\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012"
    r"\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6"
)


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


_C = f"[{_CHARACTERS}]"
_L = rf"(?:(?!\d){_C})"
_WORD = f"{_C}+(?:_{_C}+)*"
_ASCII = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
_A = r"['\u2019]"  # apostrophes, straight and typographic
_END = "(?![A-Za-z])"

# At each place the first alternative that fits is the token. Where the original takes the longest of several, the
# longer one stands first. Most groups are named for the reader only.
_TOKEN = re.compile(
    rf"""
      (?P<tag> </?[A-Za-z][\w.:-]*(?:\ [A-Za-z][\w.:-]*(?:="[^"<>]*"|='[^'<>]*')?)*\ ?/?> | <[!?][^<>]+> )
    | (?P<web> https?://(?=\S{{1,80}}\.)(?:[.,;:!?'-]{{0,8}}[^\s"<>|(){{}}\[\].,;:!?'-])+
             | [wW]{{3}}(?:\.[A-Za-z0-9-]*[A-Za-z0-9])+
             | [A-Za-z0-9][A-Za-z0-9_.+-]{{0,63}}@{_C}+(?:[@.-]{_C}+)* )
    | (?P<phone> (?:\(\d{{2,3}}\)\ ?|\d{{3}}\ )\d{{3,4}}[\ -]\d{{4}}(?!\d) )
    | (?P<face> [<>]?[:;=][-o*']?[()DPdpO@$\\{{|\[\]](?!{_C}) | [\^>=~<-]_[\^<=~-] )
    | (?P<fraction> \d{{1,4}}[\ -]\d{{1,4}}/\d{{1,4}} )                            # 1 1/2
    | (?P<number> \d+(?:[.,]\d+)+(?:-{_WORD})+                                     # 1,000-piece
                | \d+(?:[.,:]\d+)+                                                 # 4:15
                | [+-]?[.,:]\d+(?:[.,:]\d+)*                                       # .5
                | \+\d+(?:[.,:]\d+)*
                | (?<!\w)-\d+(?:[.,:]\d+)*(?!{_C}*[-/]{_C}) )                      # -5, but not in -5-year
    | (?P<dotted> (?:{_WORD}-)?{_L}(?:\.{_L})+\.(?!{_C})(?:-{_WORD})*              # U.S.  non-U.S.  U.S.-based
                | {_L}{_C}*\.{_C}*(?:-{_C}+)+                                      # corner.4-5
                | {_L}{_C}*(?:[.!?]{_L}{_C}*)+ )                                   # T.V.on  file.txt  sink.The
    | (?P<abbreviation> (?i:{_any(_ABBREVIATIONS)})\. | {_any(_STATES)}\. | (?i:{_any(_BEFORE_NUMBER)})\.(?=\ ?\d) )
    | (?P<initial> {_L}\.(?!$|\ {_any(_OPENERS)}\b) )
    | (?P<name> [A-Z]+(?:[&+][A-Z]+)+ | [A-Z]{{1,3}}\$ | [cC]\+\+ | [cCfF]\# )      # AT&T  US$  C++  F#
    | (?P<halved> (?i: can(?=not{_END}) | (?:gon|wan)(?=na{_END}) | got(?=ta{_END}) | (?:gim|lem)(?=me{_END}) ) )
    | (?P<negated> [A-Za-z]+?(?<![nN])(?=[nN]{_A}[tT]) )                           # do before n't
    | (?P<clitic> [nN]{_A}[tT]{_END} | '(?i:s|m|d|re|ve|ll){_END} | \u2019(?i:s|m|d|re|ve|ll) )
    | (?P<elided> [dlnoA-HJ-XZ]{_A}(?!(?i:ll|re|ve|em){_END}){_L}{{2,}}            # O'Brien
                | (?i:[a-z]+[aeiouy]['\u2018\u2019][aeiou][a-z]*|[eo]{_A}er|c{_A}mon|c{_A}est|nat{_A}l)
                | (?i:dunkin|ol|[dljy]){_A}
                | {_A}(?i:em|till?|cause) | {_A}(?i:t)(?=(?i:is|was))
                | {_A}[nN](?:{_A}|(?=\ |$)) | {_A}\d0s | {_A}\d\d(?=\ |$) )
    | (?P<chain> {_ASCII}(?:/{_ASCII}){{1,2}}(?!{_C})                                 # his/her
                | {_WORD}(?:-{_WORD})*(?:\.(?=[,;:]))? )                           # mother-in-law
    | (?P<run> [!?]{{2,}} | \#{{2,}} | \*{{2,}} | _{{2,}} | @{{2,}} | -{{5,}} | << | >> )
    | (?P<tagged> @[A-Za-z_][A-Za-z0-9_]* | \#{_L}+ )
    | (?P<removed> \.{{3,}} | -{{2,4}} | '' | [.?!,:;"`'-]
                 | [\xab\xbb\u2013-\u2015\u2018-\u201d\u2026\u2039\u203a] )
    | (?P<entity> &[lg]t; )
    | (?P<sign> [{_SIGNS}] )
    """,
    re.VERBOSE,
)
# A chunk between spaces with a digit, a tag or an initial in it cannot be read without what follows it.
_NEEDS_CONTEXT = re.compile(r"[\d<]|\b\w\.")
_ENTITY = re.compile(r"&(?:amp|quot|apos|nbsp|mdash);")
_ENTITIES = {"&amp;": "&", "&quot;": '"', "&apos;": "'", "&nbsp;": " ", "&mdash;": "--", "&lt;": "<", "&gt;": ">"}
_SPELLING = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", " ": "\xa0"}
    | {"€": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents"}
    | {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
)


def tokenize(caption: str) -> str:
    """The tokens of one caption in lower case, joined by single spaces; "" when nothing but punctuation is in it.

    A token may hold a no-break space ("1 1/2" and telephone numbers are one token), as in the original.
    """
    chunks = caption.split()
    tokens = [_tokenize_chunk(chunk) for chunk in chunks]
    if None in tokens:
        return _tokenize_text(" ".join(chunks))
    return " ".join(filter(None, tokens))


@lru_cache(maxsize=1 << 16)
def _tokenize_chunk(chunk: str) -> str | None:
    """The tokens of what stands between two spaces; None where its neighbours must be seen."""
    return None if _NEEDS_CONTEXT.search(chunk) else _tokenize_text(chunk)


def _tokenize_text(text: str) -> str:
    text = text.replace("\xad", "")  # the soft hyphen says where a word may break; it is no part of the word
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], text)
    return " ".join(_spell(match) for match in _TOKEN.finditer(text) if match.lastgroup != "removed")


def _spell(match: re.Match) -> str:
    token = match[0]
    if match.lastgroup == "clitic":
        token = token.replace("\u2019", "'")
    elif match.lastgroup == "entity":
        token = _ENTITIES[token]
    return token.translate(_SPELLING).lower()
