"""METEOR 1.5 (Denkowski & Lavie 2014), by the Java program inside the package pycocoevalcap.

The program is spoken to here and not through the package's own wrapper, which can hang for ever after an error, shifts
all scores by one after a caption with a line break, and fails where numbers are written with a comma.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from src.metrics.ptb import tokenize


class Unavailable(Exception):
    """METEOR cannot be had here, and why: one sentence."""


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 900) -> list[float]:
    """Score of every prediction against its references, and as the last entry that of the whole corpus.

    Captions as their authors wrote them. Takes 6 to 10 seconds to start and 1.1 GB of memory. Ends within ``timeout``
    seconds whatever happens. Raises Unavailable.
    """
    with _Program(timeout) as program:
        for prediction, own in zip(predictions, references, strict=True):
            program.say(" ||| ".join(["SCORE", *map(_line, own), _line(prediction)]))
        program.say(" ||| ".join(["EVAL", *(program.hear() for _ in predictions)]))
        return [float(program.hear()) for _ in range(len(predictions) + 1)]


def _line(caption: str) -> str:
    """Tokens on one line; the tokenizer leaves no line break, and a separator inside a caption would split it."""
    return tokenize(caption).replace("|||", "")


class _Program:
    """The Java process; every answer is waited for no longer than the deadline."""

    def __init__(self, timeout: float):
        java, package = shutil.which("java"), find_spec("pycocoevalcap")
        if java is None:
            raise Unavailable("METEOR needs Java, and there is no command java; install a Java runtime (8 or newer).")
        if package is None:
            raise Unavailable("METEOR comes with a package that is missing: pip install pycocoevalcap.")
        jar = Path(package.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
        english = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]  # decimal points, not commas
        command = [java, *english, "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        self.deadline = time.monotonic() + timeout
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        except OSError as error:
            raise Unavailable(f"METEOR's Java program cannot be started ({error}).") from error
        self.answers: Queue[str | None] = Queue()
        Thread(target=self._listen, daemon=True).start()  # so that neither side waits for the other with full pipes

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line.strip())
        self.answers.put(None)

    def say(self, line: str) -> None:
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Unavailable(f"METEOR's Java program ended too early ({error}).") from error

    def hear(self) -> str:
        try:
            answer = self.answers.get(timeout=max(0.0, self.deadline - time.monotonic()))
        except Empty:
            raise Unavailable("METEOR's Java program took too long.") from None
        if answer is None:
            raise Unavailable("METEOR's Java program ended too early; it needs 2 GB of memory.")
        return answer

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        try:
            self.process.stdin.close()
        except OSError:
            pass  # what was still unwritten has no reader any more
