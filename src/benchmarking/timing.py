"""Time: of calls, of the parts of a step, and the machine's own rate of matrix products meanwhile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from src.build import precision

# Sides of the square matrices whose product is timed: the fastest counts as what the machine can do.
SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
LOOK = 0.05  # seconds that one look at the machine's rate of products takes


def matrix_rates(settings: dict) -> dict[str, float]:
    """FLOP per second by side."""
    rates, sides = {}, SIDES[device().type]
    for side in sides:
        multiply, flops = product(side, settings)
        calls, seconds = repeated(multiply, settings["seconds"] / len(sides))
        rates[str(side)] = flops * calls / seconds
    return rates


def product(side: int, settings: dict) -> tuple[Callable[[], Tensor], int]:
    """A product of two square matrices in the precision of training, and how many operations that is."""
    dtype = torch.bfloat16 if precision(settings["precision"]) == "bf16-mixed" else torch.float32
    a, b, c = (torch.randn(side, side, device=device()).to(dtype) for _ in range(3))
    return partial(torch.mm, a, b, out=c), 2 * side**3


class Limit:
    """The machine's rate of matrix products while something else is timed.

    Machines that are shared drift within seconds, by a factor of two on some virtual ones, so the product is timed
    again and again between the steps; the rate of the time between two looks is the mean of both.
    """

    def __init__(self, settings: dict):
        rates = matrix_rates(settings)
        self._product, self._flops = product(int(max(rates, key=rates.get)), settings)
        self._looks: list[tuple[float, float]] = []  # when, FLOP per second
        self.look(always=True)

    def look(self, always: bool = False) -> None:
        """Where the last look was more than a second ago."""
        if always or time.perf_counter() - self._looks[-1][0] > 1.0:
            calls, seconds = repeated(self._product, LOOK, warm=True)
            self._looks.append((time.perf_counter(), self._flops * calls / seconds))

    def mean(self) -> float:
        """FLOP per second over the time from the first look to the last."""
        spans = [(then - now, (one + other) / 2) for (now, one), (then, other) in pairwise(self._looks)]
        return sum(span * rate for span, rate in spans) / sum(span for span, _ in spans)


class Stopwatch:
    """Seconds of every part, without gaps: a part lasts from the end of the one before it to its own.

    ``wait``: called at the end of each part, so that a GPU's work is counted where it belongs. ``limit``: looked at
    between steps, in time that belongs to none.
    """

    def __init__(self, wait: Callable[[], None], limit: Limit | None = None):
        self.seconds: dict[str, float] = defaultdict(float)
        self.paused = 0.0
        self._wait, self._limit, self._last = wait, limit, time.perf_counter()

    def lap(self, part: str) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def rest(self) -> None:
        """Between two steps."""
        if self._limit is not None:
            self._limit.look()
            now = time.perf_counter()
            self.paused += now - self._last
            self._last = now


def timed_passes(one_pass: Callable, seconds: float, watch: Stopwatch) -> tuple[int, float]:
    """Passes until ``seconds`` have gone by: how many there were, and how long they took together, without pauses."""
    synchronise()
    passes, started = 0, time.perf_counter()
    while passes == 0 or time.perf_counter() - started < seconds:
        one_pass(watch)
        passes += 1
    watch.lap("data")  # the loader's end
    synchronise()
    return passes, time.perf_counter() - started - watch.paused


def repeated(call: Callable, seconds: float, warm: bool = False) -> tuple[int, float]:
    """Call for at least ``seconds``: how often, and how long it took. One call before is not counted."""
    if not warm:
        call()
    synchronise()
    calls, started = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - started < seconds:
        call()
        synchronise()
        calls += 1
    return calls, time.perf_counter() - started


def device() -> torch.device:
    """The GPU that this process sees; who asks for the CPU is shown none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
