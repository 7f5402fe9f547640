"""SPICE around its Java program: what is asked for, how the answer is read, and every way in which Java can fail.

The program's parser (385 MB) is not part of any package, so that a stand-in for the command java takes its place here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from src.metrics import spice as room
from src.metrics.meteor import Unavailable
from src.metrics.spice import LONGEST, PARSER, java_major, java_version, spice

# Understands the real program's arguments; a caption's score is that of its first word among the references' words.
JAVA = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
if arguments == ["-version"]:
    sys.exit(print('openjdk version "{version}" 2025-04-15', file=sys.stderr))
json.dump({{"arguments": arguments, "cwd": os.getcwd()}}, open({log!r}, "w"))
main = arguments.index("edu.anu.spice.SpiceScorer")
asked, options = arguments[main + 1], dict(zip(arguments[main + 2 :: 2], arguments[main + 3 :: 2]))
answers = []
for entry in json.load(open(asked, encoding="ascii")):
    known = set(" ".join(entry["refs"]).split())
    words = entry["test"].split()
    f = sum(word in known for word in words) / max(1, len(words))
    answers.append({{"image_id": entry["image_id"], "scores": {{"All": {{"f": f, "pr": f, "re": f}}}}}})
answers.reverse()
json.dump(answers, open(options["-out"], "w"))
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A package folder with all jars, and a folder for stand-ins that comes first on the path."""
    lib = tmp_path / "package" / "spice" / "lib"
    lib.mkdir(parents=True)
    for name in (*PARSER, "rhino-1.7.jar"):
        (lib / name).touch()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(room, "find_package", lambda metric: tmp_path / "package")
    monkeypatch.setattr(room, "DEBIAN_ENGINE", tmp_path / "nowhere.jar")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def stand_in(home: Path, script: str = JAVA, version: str = "17.0.15") -> None:
    java = home / "bin" / "java"
    java.write_text(script.format(python=sys.executable, version=version, log=str(home / "log.json")))
    java.chmod(0o755)


def failing(home: Path, script: str) -> None:
    """A java that tells its version and then fails as the shell script says."""
    script = script.replace("{", "{{").replace("}", "}}")
    stand_in(home, f'#!/bin/sh\n[ "$1" = -version ] && echo \'version "1.8.0_362"\' && exit\n{script}\n')


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_scores_belong_to_their_captions(home):
    stand_in(home)
    before = files(home / "package")
    scores = spice(
        ["A dog runs.", "", "no\u2028such \U0001f642 cat"], [["the dog runs"], ["a", "b"], ["A cat", "cats"]]
    )
    assert scores == pytest.approx([2 / 3, 0, 1 / 3])
    assert files(home / "package") == before


def test_how_the_program_is_started(home):
    stand_in(home)
    spice(["a"], [["a"]])
    log = json.loads((home / "log.json").read_text())
    arguments, lib = log["arguments"], home / "package" / "spice" / "lib"
    assert {"-Duser.language=en", "-Dfile.encoding=UTF-8", "-Xmx8G", "-silent"} <= set(arguments)
    assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in arguments
    path = arguments[arguments.index("-cp") + 1].split(os.pathsep)
    assert path[:2] == [str(lib.parent / "spice-1.0.jar"), str(lib / "*")]
    assert Path(arguments[arguments.index("-cache") + 1]) == home / "cache" / "vision-language-fusion" / "spice"
    work = Path(arguments[arguments.index("-out") + 1]).parent
    assert not work.exists() and home / "package" not in work.parents


def test_without_a_writable_cache_it_lies_in_the_work_folder(home):
    stand_in(home)
    (home / "cache").write_text("a file where the folder should be")
    assert spice(["a"], [["a"]]) == [1]
    arguments = json.loads((home / "log.json").read_text())["arguments"]
    assert arguments[arguments.index("-cache") + 1] == str(Path(arguments[arguments.index("-out") + 1]).parent)


def test_no_caption_is_too_long_for_the_cache(home):
    stand_in(home, JAVA.replace("answers = []", "answers = []\nassert len(open(asked).read()) < 2200"))
    assert len(spice(["dog " * 2500, "\u00e9" * 2500], [["a"], ["b"]])) == 2
    assert len(room._cut("\u00e9" * 2500).encode()) == LONGEST


@pytest.mark.parametrize(("version", "opens"), [("1.8.0_362", False), ("11.0.2", False), ("16", True), ("25", True)])
def test_closed_packages_are_opened_where_java_has_them(home, version, opens):
    stand_in(home, version=version)
    spice(["a"], [["a"]])
    arguments = json.loads((home / "log.json").read_text())["arguments"]
    assert any(argument.startswith("--add-opens") for argument in arguments) == opens


def test_versions(home):
    assert [java_major(v) for v in ("1.8.0_362", "9", "17.0.15", "21-ea", "25")] == [8, 9, 17, 21, 25]
    stand_in(home, version="17.0.15")
    assert java_version() == "17.0.15"


def test_missing_jars_are_named_with_home_and_folder(home):
    stand_in(home)
    lib = home / "package" / "spice" / "lib"
    (lib / PARSER[1]).unlink()
    with pytest.raises(Unavailable) as caught:
        spice(["a"], [["a"]])
    assert PARSER[1] in str(caught.value) and f" {PARSER[0]}" not in str(caught.value) and str(lib) in str(caught.value)
    assert "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip" in str(caught.value)


def test_new_java_needs_an_engine(home):
    (home / "package" / "spice" / "lib" / "rhino-1.7.jar").unlink()
    stand_in(home, version="11.0.2")
    assert spice(["a"], [["a"]]) == [1]
    stand_in(home, version="17.0.15")
    with pytest.raises(Unavailable, match=r"^SPICE needs a JavaScript engine, which Java 17 lacks .*librhino-java"):
        spice(["a"], [["a"]])


def test_everything_that_is_missing_is_named_at_once(home):
    for name in (*PARSER, "rhino-1.7.jar"):
        (home / "package" / "spice" / "lib" / name).unlink()
    stand_in(home)
    with pytest.raises(Unavailable, match=f"{PARSER[0]} and {PARSER[1]} in .*; and a JavaScript engine"):
        spice(["a"], [["a"]])


def test_without_java(home, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match="SPICE needs Java"):
        spice(["a"], [["a"]])


OVERFLOW = "echo 'Parsing reference captions' >&2; echo 'java.lang.OutOfMemoryError: Java heap space' >&2; "


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 1", r"exit status 1 \(it said nothing"),
        (OVERFLOW + "echo '  at x' >&2; exit 1", r"exit status 1 \(java.lang.OutOfMemoryError: Java heap space\)"),
        ("kill -9 $$", "exit status -9"),
        ("exit 0", "no readable scores"),
        ("while [ $1 != -out ]; do shift; done; echo '[{\"image_id\": 0}]' > $2", "no readable scores"),
        ("while [ $1 != -out ]; do shift; done; echo '[' > $2", "no readable scores"),
    ],
)
def test_a_java_that_fails_is_one_sentence(home, script, message):
    failing(home, script)
    with pytest.raises(Unavailable, match=message) as caught:
        spice(["a dog"], [["a dog"]])
    assert "\n" not in str(caught.value)


def test_a_java_that_hangs_is_ended_with_its_children(home):
    failing(home, f"sleep 300 & echo $! > {home}/child; wait")
    started = time.monotonic()
    with pytest.raises(Unavailable, match="longer than 1 seconds"):
        spice(["a dog"], [["a dog"]], timeout=1)
    assert time.monotonic() - started < 20
    child = Path("/proc") / (home / "child").read_text().strip() / "status"
    if Path("/proc").is_dir():
        time.sleep(0.5)
        assert not child.exists() or "State:\tZ" in child.read_text()


def test_a_java_that_does_not_work_at_all(home):
    stand_in(home, "#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    with pytest.raises(Unavailable, match="java -version names no version"):
        spice(["a"], [["a"]])
