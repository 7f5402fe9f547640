"""What the READMEs say works: their commands are composed, their links and pictures lead somewhere."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from src.config import command_line
from src.errors import UserError

GOLDEN = ROOT / "tests" / "golden"  # of earlier versions
PAGES = [
    path
    for folder in (ROOT, *(ROOT / name for name in ("conf", "src", "tests", "experiments")))
    for path in sorted(folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if GOLDEN not in path.parents and path != ROOT / "src" / "reporting" / "card.md"  # a template
]
STUDIES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
# What the reader puts in, and a run that is not there.
STAND_INS = {one: "fusion=cross_attention" for one in ("fusion=mine", "fusion=X")} | {"resume=runs/...": "resume=auto"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell(text: str) -> Iterator[str]:
    """The lines of a page that are for a shell, with their continuations, variables filled in.

    Of Markdown: blocks of bash and code inside a sentence. Of YAML: comments that begin with a command.
    """
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`((?:python -m|make) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    comments = re.findall(r"^#   (python -m .*(?:(?<=\\)\n#.*)*)", text, re.MULTILINE)
    remarks = [re.sub(r"\s{2,}\(.*$", "", one.replace("\n#", "\n"), flags=re.MULTILINE) for one in comments]
    variables: dict[str, str] = {}
    for piece in (*blocks, *(span.replace("\n", " ") for span in spans), *remarks):
        for line in re.sub(r"\\\n\s*", " ", piece).splitlines():
            line = re.sub(r"\$(\w+)", lambda found: variables.get(found[1], ""), line)
            if not re.search(r"\b(python -m|make) ", line):
                words = (word.partition("=") for word in shlex.split(line, comments=True))
                variables.update({key: value for key, is_set, value in words if is_set})
            else:
                yield line


def commands(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(program, words) of every command of ours on a page: ("src.train", ("fusion=srau",))."""
    for line in shell(text):
        words = shlex.split(re.sub(r"<[^<>]*>", "placeholder", line), comments=True)
        words = [STAND_INS.get(word, word) for word in words if word != "..."]
        if "make" in words:
            yield "make", tuple(words[words.index("make") + 1 :])
        elif "-m" in words and "python" in words:
            first = words.index("-m") + 1
            yield words[first], tuple(words[first + 1 :])


@functools.cache  # pages share commands
def fault(program: str, words: tuple[str, ...]) -> str:
    """The sentence that answers a command line before anything runs; empty where nothing is wrong with it."""
    if program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        paths = re.findall(r"tests/\w+\.py", " ".join(words))
        missing = [one for one in (*paths,) if not (ROOT / one).is_file()]
        return "" if words[0] in targets and not missing else f"make {' '.join(words)}: no such target or file"
    room, _, verb = program.partition(".")
    if room != "src":
        return "" if find_spec(program) else f"{program} is no module"
    if not (ROOT / "conf" / f"{verb}.yaml").is_file() or not (ROOT / "src" / f"{verb}.py").is_file():
        return f"{program} is no command"
    try:
        command_line.check_words(verb, words)
    except UserError as error:
        return str(error)
    return ""


def faults(text: str) -> list[str]:
    """What is wrong with the commands of a page."""
    found = ((program, words, fault(program, words)) for program, words in commands(text))
    return [f"{program} {shlex.join(words)}: {why}" for program, words, why in found if why]


@pytest.mark.parametrize("path", [*PAGES, *STUDIES], ids=name)
def test_every_command_is_composed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no run and no data is there
    assert not faults(path.read_text())


def test_commands_are_found_where_they_stand():
    assert ("src.train", ("fusion=cross_attention",)) in commands((ROOT / "README.md").read_text())
    assert sum(1 for path in PAGES for _ in commands(path.read_text())) > 80
    assert all(any(commands(path.read_text())) for path in STUDIES)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```bash\npython -m src.train fusion=srau fusion.tua=0.1\n```\n", "did you mean fusion.tau?"),
        ("```bash\npython -m src.train -m fusion=srau,vcgtp   # a sweep\n```\n", "did you mean fusion=vcgpt?"),
        ("```bash\nFEW=baselin=blind\nX=1 python -m src.compare runs=... $FEW\n```\n", "did you mean baseline?"),
        ("```bash\npython -m src.train fusion=srau \\\n    sede=1\n```\n", "did you mean seed?"),
        ("Say `python -m src.evaluate run=<a run>\nsplitt=val` then.", "did you mean split?"),
        (
            "#   python -m src.train experiment=flickr8k language.weights=lm \\\n#       optim.warmupp=0   (once)\n",
            "did you mean optim.warmup?",
        ),
        ("`python -m src.trian fusion=srau`", "is no command"),
        ("`make tset`", "no such target"),
        ("`make test ARGS=tests/test_nothing.py`", "no such target or file"),
        ("`python -m experiments.nothing runs/x`", "is no module"),
    ],
)
def test_a_planted_mistake_is_found(page, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (found,) = faults(page)
    assert says in found


def lost(path: Path, text: str) -> list[str]:
    """Relative links and pictures of a page that lead nowhere; of the experiments' YAML, results that are not there."""
    if path.suffix == ".yaml":
        return [one for one in re.findall(r"\bexperiments/[\w/]+", text) if not (ROOT / one).exists()]
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            page = target / "README.md" if target.is_dir() else target
            if not target.exists() or (anchor and anchor not in anchors(page.read_text())):
                found.append(link)
    return found


@pytest.mark.parametrize("path", [*PAGES, *STUDIES], ids=name)
def test_every_link_leads_somewhere(path):
    assert not lost(path, path.read_text())


def test_a_lost_link_is_found():
    page, study = ROOT / "README.md", ROOT / "conf" / "experiment" / "flickr8k.yaml"
    assert lost(page, "[a](README.md) [b](experiments/nothing) ![c](nothing.png) [d](README.md#nothing)") == [
        "experiments/nothing",
        "nothing.png",
        "README.md#nothing",
    ]
    assert lost(study, "# words: experiments/archive/heads, experiments/heads.") == ["experiments/heads"]


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_what_the_readme_points_at_is_there():
    """ "`Target.next` in [src/contracts.py](src/contracts.py)": that file has such a class with such a method."""
    found = re.findall(r"`(\w+)\.(\w+)` in \[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert found
    for owner, method, file in found:
        assert re.search(
            rf"^class {owner}\b.*?^    def {method}\(", (ROOT / file).read_text(), re.DOTALL | re.MULTILINE
        )


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_tables_have_as_many_cells_in_every_row(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [len(re.split(r"(?<!\\)\|", line.strip())) for line in table.splitlines()]
        assert len(set(rows)) == 1 and re.match(r"\|[-:| ]+\|$", table.splitlines()[1]), table


def test_the_readme_takes_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1200
    first_screen = text.splitlines()[:30]
    assert {"make train", "make test"} <= {line.partition("  #")[0].strip() for line in first_screen}
