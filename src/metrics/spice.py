"""SPICE (Anderson et al. 2016, ECCV, arXiv 1607.08822), by the authors' Java program inside the package pycocoevalcap.

A caption's score is the F1 of its scene graph's tuples (objects, attributes, relations) against those of all references
together, synonyms counting as equal; the corpus score is the mean over the pictures.

The program is started here and not through the package's own wrapper, which downloads 385 MB without asking, writes
into the package's folder and never ends when Java hangs. What the program needs beside itself was found by running it,
its parser replaced by a stand-in, on Java 17 and 25: a JavaScript engine (it writes its results through one, and Java
15 dropped Java's own), and on Java 16 and newer access to six packages of the Java library (for its cache).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from src.metrics.meteor import ENGLISH, Unavailable, end_java, find_java, find_package, java_environment, start_java
from src.metrics.ptb import tokenize

PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
PARSER_HOME = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
ENGINES = ("rhino*.jar", "nashorn*.jar", "js*.jar")  # JavaScript engines, by the names of their files
DEBIAN_ENGINE = Path("/usr/share/java/js.jar")  # of Debian's package librhino-java
OPENED = ("java.lang", "java.math", "java.net", "java.text", "java.util", "java.util.concurrent")
# The cache's longest key is 511 bytes, and the program fails on a longer caption. COCO's longest has 250.
LONGEST = 480
CACHE_MACHINES = ("x86_64", "AMD64")  # the cache's native code is there for these only


def spice(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 7200) -> list[float]:
    """Score of every prediction against its references, 0 to 1; the corpus score is their mean.

    Captions as their authors wrote them; longer ones than ``LONGEST`` bytes are cut there. Takes up to 8 GB of memory,
    and minutes for a test split: every caption is parsed. Parses are kept in the user's cache folder for the next time.
    Ends within ``timeout`` seconds whatever happens. Raises Unavailable.
    """
    command = spice_command()
    with tempfile.TemporaryDirectory(prefix="spice-") as folder:
        asked, answered, said = (Path(folder) / name for name in ("in.json", "out.json", "stderr"))
        asked.write_text(json.dumps(_entries(predictions, references)))  # ASCII: Java may read any other wrongly
        command += [str(asked), "-out", str(answered), "-silent"]
        if platform.machine() in CACHE_MACHINES:
            command += ["-cache", str(_usable(_user_cache()) or folder)]
        _run(command, said, timeout)
        return _scores(answered, len(predictions))


def _entries(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict]:
    """The program's input. Pictures are numbered: ids of any other kind might not come back as they were."""
    pairs = zip(predictions, references, strict=True)
    return [{"image_id": n, "test": _cut(one), "refs": [_cut(r) for r in own]} for n, (one, own) in enumerate(pairs)]


def _cut(caption: str) -> str:
    return tokenize(caption).encode(errors="replace")[:LONGEST].decode(errors="ignore")


def _run(command: list[str], said: Path, timeout: float) -> None:
    with open(said, "wb") as stderr:  # a file and no pipe: nobody has to read it meanwhile
        process = start_java(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        status = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"SPICE's Java program took longer than {timeout:.0f} seconds.") from None
    finally:
        end_java(process)
        process.wait()
    if status:
        raise Unavailable(f"SPICE's Java program failed with exit status {status} ({_complaint(said)}).")


def _complaint(said: Path) -> str:
    """What tells most of an error output: the line of the exception, else the last one."""
    lines = [line.strip() for line in said.read_text("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\w(Exception|Error)\b", line)]
    return (telling or lines[-1:] or ["it said nothing; it needs 8 GB of memory"])[0][:200]


def _scores(path: Path, pictures: int) -> list[float]:
    try:
        by_number = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in json.loads(path.read_bytes())}
        return [by_number[number] for number in range(pictures)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"SPICE's Java program wrote no readable scores ({type(error).__name__}).") from error


def _user_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "vision-language-fusion" / "spice"


def _usable(folder: Path) -> Path | None:
    """The folder, made if need be; None where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


# --------------------------------------------------------------------------------------------------------------------
# what has to be there
# --------------------------------------------------------------------------------------------------------------------
def spice_command() -> list[str]:
    """How the program is started, without its arguments. Raises Unavailable, saying what to install and where."""
    java, home = find_java("SPICE"), find_package("SPICE") / "spice"
    lib = home / "lib"
    version = java_major(java_version())
    needs = []
    if missing := [name for name in PARSER if not (lib / name).is_file()]:
        needs.append(f"{' and '.join(missing)} in {lib}, to be found in {PARSER_HOME} (385 MB)")
    if version >= 15 and not _engine(lib):
        needs.append(
            f"a JavaScript engine, which Java {version} lacks (install Debian's librhino-java, put the jars of "
            f"Rhino or Nashorn into {lib}, or use Java 8 to 14)"
        )
    if needs:
        raise Unavailable(f"SPICE needs {'; and '.join(needs)}.")
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED] if version >= 16 else []
    path = os.pathsep.join([str(home / "spice-1.0.jar"), str(lib / "*"), str(DEBIAN_ENGINE)])
    return [java, *ENGLISH, *opened, "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer"]


def _engine(lib: Path) -> bool:
    return DEBIAN_ENGINE.is_file() or any(next(lib.glob(pattern), None) for pattern in ENGINES)


def java_version() -> str:
    """Such as "17.0.15" or "1.8.0_362". Raises Unavailable where there is no Java, or none that works."""
    command = [find_java("This metric"), "-version"]
    try:
        answer = subprocess.run(command, env=java_environment(), capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"The command java does not work ({type(error).__name__}).") from error
    found = re.search(r'version "([^"]+)"', answer.stderr + answer.stdout)
    if answer.returncode or not found:
        raise Unavailable("The command java does not work: java -version names no version.")
    return found[1]


def java_major(version: str) -> int:
    """8 of "1.8.0_362", 17 of "17.0.15"."""
    first, second = [*map(int, re.findall(r"\d+", version)), 0][:2]
    return second if first == 1 else first
