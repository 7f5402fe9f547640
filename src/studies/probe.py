"""What one training of an arm will take, from a few steps of it, before anything is started.

Every arm is built as src.train builds it, in a process of its own beside as many others as there will be later. The
start is measured, three steps, a batch of validation, and a batch of what is done at the end (captions, and nats with
the right and with another picture); the rest is multiplication. Memory is the highest of that process; on the disk lie
the checkpoints of the runs that are under way.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

STEPS = 4  # the first of them is not counted: allocation, first use of kernels
COPIES = 4  # checkpoints of a run: last, previous, best, trunk
ADAM = 3  # numbers a weight in a checkpoint: itself and two moments


@dataclass(frozen=True)
class Measured:
    """Seconds, and bytes on the disk. ``start``: of a process until its first step; ``end``: of scoring a split."""

    start: float
    step: float
    validation: float
    end: float
    memory_mb: float
    disk: float
    every: int  # steps between validations

    def seconds(self, steps: int, scored: bool, before: int = 0) -> float:
        """Of a training of ``steps``, of which ``before`` were made already; ``scored``: on the test split."""
        validations = max(1, round((steps - before) / self.every))
        ends = self.end if scored else self.validation
        return self.start + (steps - before) * self.step + validations * self.validation + ends


def measure(arms: Mapping[str, Sequence[str]], leases: Sequence[dict[str, str]]) -> dict[str, Measured]:
    """Of every arm by its name; ``arms``: options. Raises what src.train would raise for them."""
    found: dict[str, Measured] = {}
    with ProcessPoolExecutor(
        len(leases), get_context("spawn"), _begin, (leases[0],), max_tasks_per_child=1
    ) as processes:
        for name, one in zip(arms, processes.map(_measured, map(list, arms.values())), strict=True):
            found[name] = one
    return found


def _begin(lease: dict[str, str]) -> None:
    os.environ.update(lease)


def _measured(options: list[str]) -> Measured:
    started = time.perf_counter()
    import torch

    from src.build import build, parameter_counts, place
    from src.config.command_line import check_words, compose
    from src.config.earlier import use_earlier
    from src.config.make import check
    from src.training.cost import peak_memory_mb

    check_words("train", options)
    cfg = use_earlier(compose("train", options, []))
    sources = check(cfg)
    imported = time.perf_counter() - started
    build(cfg, sources)  # features that are not there yet are made once, by no training that is measured
    started = time.perf_counter()
    parts = build(cfg, sources)
    captioner = parts.captioner
    place(captioner, cfg)
    start = imported + time.perf_counter() - started
    step = _step(parts, cfg, torch)
    with torch.no_grad():
        loader = parts.data.val_dataloader()
        validation, _ = _timed(lambda: _forward(captioner, next(iter(loader))))
        validation *= len(loader)
        end = _end(parts, cfg, validation)
    disk = parameter_counts(captioner)["trainable"] * 4 * ADAM * COPIES
    every = cfg.trainer.val_check_interval if isinstance(cfg.trainer.val_check_interval, int) else cfg.trainer.max_steps
    return Measured(start, step, validation, end, peak_memory_mb(), disk, every)


def _step(parts, cfg, torch) -> float:
    """Median seconds of a step; 0 where nothing trains."""
    captioner = parts.captioner.train()
    groups = captioner.parameter_groups()
    if not groups:
        return 0.0
    optimizer = torch.optim.AdamW(groups, fused=True)
    batches = itertools.cycle(parts.data.train_dataloader())
    times = []
    for _ in range(STEPS):
        started = time.perf_counter()
        for _ in range(cfg.trainer.accumulate_grad_batches):
            _forward(captioner, next(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _forward(captioner, batch):
    batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
    with captioner.autocast():
        return captioner.total(batch, captioner.losses(captioner.live(batch)))


def _end(parts, cfg, validation: float) -> float:
    """Captions of the test split, and its references with the right and another picture."""
    source, data = parts.source, parts.data
    if not source.has_images or source.interleaved:
        return 2 * validation
    loader = data.pictures(cfg.test_split)
    batch = next(iter(loader))
    captioning, _ = _timed(lambda: parts.captioner.caption([batch]))
    example = data.examples(cfg.test_split)[0]
    size = len(data.examples(cfg.test_split)) / max(1, len(data.examples("val")))
    references = len(example.captions) / data.captions_per_image
    readings = 2 if parts.captioner.fusion.sees else 1
    return captioning * len(loader) + validation * size * references * readings


def _timed(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
