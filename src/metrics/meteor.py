"""METEOR 1.5 (Denkowski & Lavie 2014), by the Java program inside the package pycocoevalcap.

The program is spoken to here and not through the package's own wrapper, which can hang for ever after an error, shifts
all scores by one after a caption with a line break, and fails where numbers are written with a comma.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from threading import Thread, Timer

from src.metrics.ptb import tokenize

# Decimal points, not commas, and UTF-8, whatever the machine's language.
ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")


class Unavailable(Exception):
    """A metric that is a Java program cannot be had here, and why: one sentence."""


def find_java(metric: str) -> str:
    """The command java. Raises Unavailable."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable(f"{metric} needs Java, and there is no command java; install a Java runtime (8 or newer).")
    return java


def find_package(metric: str) -> Path:
    """The folder of the package pycocoevalcap, which is not imported. Raises Unavailable."""
    package = find_spec("pycocoevalcap")
    if package is None:
        raise Unavailable(f"{metric} comes with a package that is missing: pip install pycocoevalcap.")
    return Path(package.submodule_search_locations[0])


def java_environment() -> dict[str, str]:
    """This process's environment; ``_JAVA_OPTIONS``, which Java puts above its command line, cannot undo ENGLISH."""
    own = os.environ.get("_JAVA_OPTIONS")
    return dict(os.environ) if own is None else {**os.environ, "_JAVA_OPTIONS": " ".join([own, *ENGLISH])}


def start_java(command: list[str], **pipes) -> subprocess.Popen:
    """Start a metric's program, in a process group of its own. Raises Unavailable."""
    try:
        return subprocess.Popen(
            command, env=java_environment(), start_new_session=True, **{"stderr": subprocess.DEVNULL, **pipes}
        )
    except OSError as error:
        raise Unavailable(f"The command {command[0]} cannot be started ({error}).") from error


def end_java(process: subprocess.Popen) -> None:
    """Kill it and whatever it started: a child that lives on would keep our pipes open."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        pass  # it has ended by itself


def meteor_command() -> list[str]:
    """How the program is started. Raises Unavailable."""
    java, jar = find_java("METEOR"), find_package("METEOR") / "meteor" / "meteor-1.5.jar"
    return [java, *ENGLISH, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 900) -> list[float]:
    """Score of every prediction against its references, and as the last entry that of the whole corpus.

    Captions as their authors wrote them. Takes 6 to 10 seconds to start and 1.1 GB of memory. Ends within ``timeout``
    seconds whatever happens. Raises Unavailable.
    """
    with _Program(timeout) as program:
        for prediction, own in zip(predictions, references, strict=True):
            program.say(" ||| ".join(["SCORE", *map(_line, own), _line(prediction)]))
        program.say(" ||| ".join(["EVAL", *(program.hear() for _ in predictions)]))
        return [_number(program.hear()) for _ in range(len(predictions) + 1)]


def _number(answer: str) -> float:
    try:
        return float(answer)
    except ValueError:
        raise Unavailable(f"METEOR's Java program answered {answer[:80]!r} where a score was due.") from None


def _line(caption: str) -> str:
    """Tokens on one line; the tokenizer leaves no line break, and a separator inside a caption would split it."""
    return tokenize(caption).replace("|||", "")


class _Program:
    """The Java process; it is ended at the deadline, so that neither reading from it nor writing to it can block."""

    def __init__(self, timeout: float):
        self.deadline = time.monotonic() + timeout
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
        self.process = start_java(meteor_command(), **pipes)
        self.answers: Queue[str | None] = Queue()
        Thread(target=self._listen, daemon=True).start()  # so that neither side waits for the other with full pipes
        self.watchdog = Timer(timeout, end_java, [self.process])
        self.watchdog.daemon = True
        self.watchdog.start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line.strip())
        self.answers.put(None)

    def say(self, line: str) -> None:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise self._gone(str(error)) from error

    def hear(self) -> str:
        try:
            answer = self.answers.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except Empty:
            raise self._gone("no answer") from None
        if answer is None:
            raise self._gone("it needs 2 GB of memory")
        return answer

    def _gone(self, why: str) -> Unavailable:
        if time.monotonic() >= self.deadline:
            return Unavailable("METEOR's Java program took too long.")
        return Unavailable(f"METEOR's Java program ended too early ({why}).")

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_) -> None:
        self.watchdog.cancel()
        end_java(self.process)
        self.process.wait()
        try:
            self.process.stdin.close()
        except OSError:
            pass  # what was still unwritten has no reader any more
