"""What is written about scores: a comparison stands with its seeds n, an interval, a test and a word of the rule.

The words are those of src/comparison/seeds.py: shown, level, hint, open; n = 1 has neither test nor interval. A
sentence is read with its paragraph or list item, a table's row with its header and the paragraph above the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import ROOT

from src.comparison.seeds import ALPHA, LESS, OPEN, WORDS

EXPERIMENTS = ROOT / "experiments"
APART = {"LOG.md", "speed"}  # what was tried, in the words of its day; times, whose unit is rounds
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(path for path in sorted(EXPERIMENTS.rglob("*.md")) if path.relative_to(EXPERIMENTS).parts[0] not in APART),
    *sorted((ROOT / "conf" / "experiment").glob("*.yaml")),
]
# What is compared; `arm` stands for everything in code type
THING = (
    r"truth|coverage|CIDEr\S*|METEOR|BLEU\S*|ROUGE\S*|NLL|loss|nats?|gains?|gaps?|R@\d+|scores?|captions?|answers?|objects"
    r"|blind|cross.attention|prefix|ClipCap|SRAU|VC-GPT|Flamingo|CoCa|arms?|gates?"
)
SCORES = re.compile(rf"\b({THING})\b", re.IGNORECASE)
RANKS = re.compile(  # always of scores
    r"\bahead of\b|\bbehind by\b|\b(is|are|comes?|stays?) (ahead|behind|first|last)\b(?! for)"
    r"|\b(better|worse) than\b|\bas good as\b|\blevel with\b"
    r"|\b(beats?|outperforms?|surpass(es)?)\b|\bloses? (to|against)\b",
    re.IGNORECASE,
)
COMPARES = re.compile(  # of scores where one of SCORES is in the sentence
    r"\b(better|worse|best|worst|loses?|lost|wins?|superior|inferior|higher|lower|highest|lowest|equally|significant\w*"
    r"|improves?|helps?|hurts?|harms?|minus|exceeds?|last place)\b"
    rf"|\b(above|below|beyond) (?=(it|them|all|the|\.\d|{THING})\b)"
    r"|\b(more|less|fewer) than\b(?! (one|two|ten|\d))|\.\d\d+\b[^.;:|]*\b(more|less)\b|\b(more|less)\b[^.;:|]* \.\d\d"
    r"|\.\d\d+ against \S*\.\d\d",
    re.IGNORECASE,
)
# Not of scores: how a checkpoint is chosen, which way a score is read, and what src.compare itself notes
PHRASES = re.compile(r"best checkpoint|less is better|Significant over images.*|differ in more than", re.DOTALL)
COUNTED = re.compile(r"\bn( of)? ?(=|>=|at least) ?\d")
ALONE = re.compile(r"\bn = 1\b|\bone training each\b", re.IGNORECASE)
BOUNDED = re.compile(r"\[[-+]?\d?\.\d+, [-+]?\d?\.\d+\]")
TESTED = re.compile(r"\bp\b[^|;,.=<]*(= )?\\?[=<] ?\d?\.\d+|\bp( over seeds)? = -")  # -: no test
WORD = re.compile(rf"(?<!not )(?<!not been )\b({'|'.join([*(one.word for one in WORDS), LESS.word, OPEN])})s?\b")


def statements(text: str) -> Iterator[tuple[str, str]]:
    """(sentence or table row, what it is read with) of Markdown. Left out: code, questions, and paragraphs that begin
    with "**Question.**", which tell what papers claim."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    above = ""
    for block in re.split(r"\n\s*\n", text.strip()):
        if block.startswith("|"):
            for row in rows(block):
                yield " | ".join(row.values()), "; ".join([above, *(f"{name} = {cell}" for name, cell in row.items())])
        elif not block.startswith("**Question.**"):
            for item in re.split(r"\n(?=[-*] )", block):
                yield from ((one, item) for one in re.split(r"(?<=[.;?!])\s+", item) if not one.endswith("?"))
        above = block


def rows(block: str) -> list[dict[str, str]]:
    """Of one table, cells by the names of their columns."""
    head, _, *lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
    return [dict(zip(head, cells, strict=True)) for cells in lines]


def comments(text: str) -> str:
    """Of a YAML file, without commands: "Found (...):", "Question:" and the like begin a paragraph."""
    lines = re.findall(r"(?<!\S)# ?(?!  )(.*)", text)
    return "\n".join(f"\n{line}" if re.match(r"[A-Z]\w*( \([^)]*\))?:", line) else line for line in lines)


def unworded(text: str) -> list[str]:
    """Statements that compare scores and lack n, an interval, a test or the word."""
    found = []
    for statement, around in statements(text):
        plain = PHRASES.sub("", re.sub(r"`[^`]*`", "arm", statement))
        of_scores = RANKS.search(plain) or (COMPARES.search(plain) and SCORES.search(plain))
        whole = all(part.search(around) for part in (COUNTED, BOUNDED, TESTED, WORD))
        if of_scores and not whole and not ALONE.search(around):
            found.append(statement)
    return found


def misworded(text: str) -> list[str]:
    """Rows with n, p over seeds and a word that does not follow from them."""
    tables = re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE)
    return [" | ".join(row.values()) for table in tables for row in rows(table.strip()) if not _follows(row)]


def _follows(row: dict[str, str]) -> bool:
    n, p = row.get("n", ""), row.get("p over seeds", row.get("p", "-"))
    if "word" not in row or not n.isdigit():
        return True
    least = {one.word: one.seeds for one in WORDS}
    words = row["word"].split(", ")
    if set(words) <= least.keys():
        return all(int(n) >= least[word] for word in words)
    value = 1.0 if p == "-" else float(re.sub(r"[^\d.]", "", p))
    if abs(value - ALPHA) < 0.0005:  # rounded, so on either side
        return words in ([LESS.word], [OPEN])
    return words == [LESS.word if int(n) >= LESS.seeds and value < ALPHA else OPEN]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_comparison_has_its_seeds_interval_test_and_word(path):
    text = path.read_text()
    assert not unworded(comments(text) if path.suffix == ".yaml" else text)
    assert not misworded(text)


@pytest.mark.parametrize(
    "text",
    [
        "SRAU is ahead of cross-attention on every score.",
        "16 latents are as good as 64 (n = 3): a hint.",
        "VC-GPT has .068 more truth than cross-attention (n = 3): a hint.",
        "SRAU minus cross-attention: +.122 truth [+.073, +.170], p = .008: a hint.",
        "SRAU minus cross-attention: +.122 truth, n = 3, p = .008: a hint.",
        "SRAU minus cross-attention: +.122 truth [+.073, +.170], n = 3: a hint.",
        "SRAU minus cross-attention: +.122 truth [+.073, +.170], n = 3, p = .008.",
        "SRAU minus cross-attention: +.022 truth [-.073, +.170], n = 3, p = .2: not shown.",
        "The full one is VC-GPT minus SRAU, +.1 truth [+.05, +.15], n = 5, p = .01: shown.\n\nPooling helps captions.",
        "- CoCa's truth: [.1, .2], n = 3, p = .01, a hint.\n- Its captions are significantly worse.",
        "Truth is .219 against .680 without the loss.",
        "By CIDEr-D `vcgpt` is the best.",
        "| pair | truth |\n|---|---|\n| srau minus cross_attention | +.122 |",
        "| pair | truth | n | word |\n|---|---|---|---|\n| srau minus cross_attention | +.122 [+.1, +.2] | 3 | hint |",
    ],
)
def test_a_bare_comparison_is_found(text):
    assert unworded(text)


@pytest.mark.parametrize(
    "text",
    [
        "SRAU minus cross-attention: +.122 truth [+.073, +.170], n = 3, p = .008 (paired t over seeds): a hint.",
        "VC-GPT gains more than a prefix: +.021 [+.004, +.038], n = 5, Holm p < .001: shown.",
        "SRAU is ahead of cross-attention in CIDEr-D (n = 1).",
        "Which mechanism is ahead of the others, and is its truth higher?",
        "**Question.** The paper has SRAU ahead of cross-attention. Is it better here?",
        "The table above has captions of more than one arm.",
        "```\nsrau is better than vcgpt\n```",
        "| pair | gain | n | over seeds | p | word |\n|---|---|---|---|---|---|\n"
        "| srau minus vcgpt | +.1 | 3 | [+.05, +.15] | \\< .0001 | hint |",
        "Unplanned, n = 3, p by a paired t test:\n\n| pair | gain | p | word |\n|---|---|---|---|\n"
        "| srau minus vcgpt | +.1 [+.05, +.15] | .01 | hint |",
    ],
)
def test_a_whole_comparison_passes(text):
    assert not unworded(text)


def test_comments_of_an_experiment_are_read():
    bare = (
        "# Question: which is better?\n#   python -m src.train\n# Found (n = 3): the MLP has .45 CIDEr-D more, a hint."
    )
    whole = bare.replace("has .45 CIDEr-D more, a", "minus the other: +.45 CIDEr-D\n# [+.05, +.86], p = .041: a")
    assert unworded(comments(bare)) == ["Found (n = 3): the MLP has .45 CIDEr-D more, a hint."]
    assert not unworded(comments(whole))


@pytest.mark.parametrize(
    ("n", "p", "word", "follows"),
    [
        ("3", ".04", "hint", True),
        ("3", ".06", "hint", False),
        ("3", ".04", "open", False),
        ("1", "-", "open", True),
        ("1", "-", "hint", False),
        ("3", r"\< .0001", "hint", True),
        ("5", ".01", "shown", True),
        ("3", ".01", "shown", False),
        ("5", ".6", "level", True),
        ("5", ".01", "shown, level", True),
        ("5", ".01", "better", False),
    ],
)
def test_the_word_of_a_row_follows_from_its_numbers(n, p, word, follows):
    table = f"| arm minus other | n | p | word |\n|---|---|---|---|\n| srau minus vcgpt | {n} | {p} | {word} |"
    assert (not misworded(table)) == follows
