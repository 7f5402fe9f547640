"""METEOR 1.5 (Denkowski & Lavie 2014), by the Java program inside the package pycocoevalcap.

METEOR = F (1 - gamma (chunks / matches)^beta), with F the harmonic mean of precision and recall weighted by alpha, over
words matched exactly, by stem, by synonym and by paraphrase, function words counting (1 - delta) to delta. The program
aligns a caption with the reference that it fits best and answers with counts; the score follows from them here, equal
to the program's own to the last bits. That of a corpus is the score of the summed counts, no mean of its captions'.

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

import numpy as np

from src.metrics.ptb import tokenize

# Decimal points, not commas, and UTF-8, whatever the machine's language.
ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")

# The program's parameters for English: METEOR 1.5's "rank" task; weights of exact, stem, synonym, paraphrase matches.
ALPHA, BETA, GAMMA, DELTA, KINDS = 0.85, 0.2, 0.6, 0.75, (1.0, 0.6, 0.8, 0.6)
COUNTS, CHUNKS, MATCHED = 23, 20, slice(21, 23)


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


def meteor_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 900
) -> np.ndarray:
    """The counts of every prediction against its references: (pictures, 23), whole numbers, in ``meteor``'s order.

    Captions as their authors wrote them. Takes 6 to 10 seconds to start and 1.1 GB of memory. Ends within ``timeout``
    seconds whatever happens. Raises Unavailable.
    """
    with _Program(timeout) as program:
        for prediction, own in zip(predictions, references, strict=True):
            program.say(" ||| ".join(["SCORE", *map(_line, own), _line(prediction)]))
        return np.array([_counts(program.hear()) for _ in predictions], dtype=np.int64).reshape(-1, COUNTS)


def meteor(statistics: np.ndarray) -> np.ndarray:
    """METEOR from the counts of a picture, or from the sum of any pictures' counts: (..., 23) -> (...)."""
    pairs = np.asarray(statistics, dtype=float)
    # of caption and reference each, (..., 2): length, function words, and matched words of each kind (..., 4, 2, 2)
    length, function, matched = pairs[..., 0:2], pairs[..., 2:4], pairs[..., MATCHED]
    kinds = pairs[..., 4:20].reshape(*pairs.shape[:-1], len(KINDS), 2, 2)
    hits = np.einsum("...kft,k,f->...t", kinds, KINDS, (DELTA, 1 - DELTA))
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing said, or nothing matched: 0
        precision, recall = np.moveaxis(hits / (DELTA * (length - function) + (1 - DELTA) * function), -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return np.nan_to_num(mean * (1 - GAMMA * (pairs[..., CHUNKS] / matched.mean(-1)) ** BETA))


def _counts(answer: str) -> list[int]:
    try:
        counts = [int(float(number)) for number in answer.split()]
    except (ValueError, OverflowError):
        counts = []
    if len(counts) != COUNTS:
        raise Unavailable(f"METEOR's Java program answered {answer[:80]!r} where {COUNTS} counts were due.")
    if counts[:2] == counts[MATCHED] and counts[CHUNKS] == 1:
        counts[CHUNKS] = 0  # the program's rule for a caption that is a reference: no penalty, nor in a corpus's sum
    return counts


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
