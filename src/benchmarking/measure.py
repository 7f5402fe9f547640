"""The measurements. Each function runs in a process of its own (src.benchmarking.jobs) and returns plain data."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from src.benchmarking.jobs import Job, Unsupported
from src.benchmarking.peers import PEERS
from src.benchmarking.timing import Limit, Stopwatch, device, matrix_rates, repeated, synchronise, timed_passes
from src.benchmarking.workloads import (
    EXAMPLES,
    WINDOW,
    Contestant,
    Own,
    Workload,
    make_tokenizer,
    sample_examples,
    to_device,
)
from src.build import precision
from src.config.classes import HOME
from src.config.make import make
from src.data.images import load_picture
from src.errors import UserError
from src.records.files import write_json
from src.training.cost import peak_memory_mb
from src.training.freed_memory import keep_freed_memory

PARTS = ("data", "forward", "backward", "optimiser")
CLIP = 1.0  # global norm of the gradient, as in conf/trainer/default.yaml
PHOTOGRAPHS, WIDTH, HEIGHT = 16, 500, 375  # drawn files, of a size that is common in Flickr8k


def take(job: Job, settings: dict) -> dict:
    """Do the job. ``settings``: conf/benchmark.yaml, the "folder" of prepared files, and whether to "count" FLOPs."""
    torch.manual_seed(settings["seed"])
    return FUNCTIONS[job.kind](job, settings)


# --------------------------------------------------------------------------------------------------------------------
# once
# --------------------------------------------------------------------------------------------------------------------
def prepare(job: Job, settings: dict) -> dict:
    """Captions, vocabularies, feature caches and picture files in ``folder``; says on what it is measured."""
    folder, kind = Path(settings["folder"]), device().type
    if settings["device"] == "cuda" != kind:
        raise UserError("device=cuda, but torch sees no GPU here; say device=cpu.")
    examples, every = sample_examples(settings)
    write_json(folder / EXAMPLES, [[one.id, one.captions, one.question] for one in examples])
    for size in settings["sizes"]:
        make_tokenizer(settings["size"][size]["vocabulary"], every).save(folder / size)
        Workload(settings, size)  # which builds the cache
    chance = np.random.default_rng(settings["seed"])
    for number in range(PHOTOGRAPHS):
        photograph(chance).save(folder / f"{number}.jpg", quality=90)
    return {
        "device": torch.cuda.get_device_name() if kind == "cuda" else kind,
        "precision": precision(settings["precision"]),
        "threads": torch.get_num_threads(),
        "captions": {"file": settings["lengths"] or "COCO train2014, from pycocoevalcap", "available": len(every)},
    }


def photograph(chance: np.random.Generator) -> Image.Image:
    """Noise of eight octaves: as a JPEG of quality 90 it has 130 kB, about what a photograph of that size has."""
    pixels = np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(8):
        cell = 2 ** (7 - octave)  # side in pixels
        grid = chance.normal(size=(HEIGHT // cell + 1, WIDTH // cell + 1, 3)) * 50 * 0.95**octave
        pixels += np.stack([_stretched(channel) for channel in np.moveaxis(grid, -1, 0)], -1)
    return Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8))


def _stretched(channel: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


# --------------------------------------------------------------------------------------------------------------------
# the machine
# --------------------------------------------------------------------------------------------------------------------
def matrix(job: Job, settings: dict) -> dict:
    """Floating-point operations per second of a matrix product in the precision of training; the fastest shape's."""
    rates = matrix_rates(settings)
    return {"flops_per_second": max(rates.values()), "by_side": rates}


def pictures(job: Job, settings: dict) -> dict:
    """Pictures per second from JPEG files to pixels in one process, and from pixels to features in batches."""
    cfg = OmegaConf.load(HOME / "conf" / "vision" / f"{settings['encoder']}.yaml")
    for key in {"weights", "pretrained"} & set(cfg):
        cfg[key] = None  # random weights are as fast, and need no download
    vision, files = make(cfg).eval(), sorted(Path(settings["folder"]).glob("*.jpg"))
    decoded, decoding = repeated(
        lambda: [load_picture(file, vision.preprocessing) for file in files], settings["seconds"]
    )
    pixels_I13hw = torch.stack([load_picture(file, vision.preprocessing) for file in files])[:, None].to(device())
    vision.to(device())
    with torch.no_grad():  # single precision, as when features are cached
        encoded, encoding = repeated(lambda: vision(pixels_I13hw), settings["seconds"])
    return {
        "decoded_per_second": decoded * len(files) / decoding,
        "encoded_per_second": encoded * len(files) / encoding,
        "kilobytes_per_file": sum(file.stat().st_size for file in files) / len(files) / 1e3,
    }


def features(job: Job, settings: dict) -> dict:
    """Pictures per second from a feature cache whose file the operating system holds in memory."""
    cache = Workload(settings, job.size).features
    rows = list(range(len(cache)))
    calls, seconds = repeated(lambda: cache.visual(rows), settings["seconds"])
    one = cache.visual([0])
    size = one.tokens_IMNC.nbytes + one.pooled_IMC.nbytes
    return {"read_per_second": calls * len(rows) / seconds, "bytes_per_second": calls * len(rows) * size / seconds}


# --------------------------------------------------------------------------------------------------------------------
# training
# --------------------------------------------------------------------------------------------------------------------
def train(job: Job, settings: dict) -> dict:
    """Rates, seconds of the parts of a step, memory; means over whole passes through the window.

    On a GPU the parts are timed in passes of their own, with a wait after each, so they add up to more than the step.
    The loop is bare: what Lightning's adds (logging, callbacks) is not in it.
    """
    where, before = device(), 0.0 if torch.cuda.is_available() else peak_memory_mb()
    if where.type == "cpu":
        keep_freed_memory()  # as src.train does it; peers get it, too
    contestant, workload = enter(job, settings)
    contestant.module.to(where)
    contestant.train()
    loss = contestant.compiled_loss() if settings["compile"] else contestant.loss
    one_pass = partial(passage, contestant, workload, make_optimizer(contestant), loss)
    with contestant.fitting():
        one_pass(Stopwatch(synchronise))  # allocation, first use of kernels, compilation
        limit = Limit(settings)
        watch = Stopwatch(synchronise, limit)
        passes, elapsed = timed_passes(one_pass, settings["seconds"], watch)
        whole = elapsed / passes
        if where.type == "cuda":
            passes_unbroken, elapsed = timed_passes(one_pass, settings["seconds"], Stopwatch(lambda: None))
            whole = elapsed / passes_unbroken
    peak = peak_memory_mb()
    limit.look(always=True)
    batches = [to_device(batch, where) for batch in workload.window()]
    rows = [row for batch in batches for row in contestant.rows(batch)]
    targets = sum(len(row) - 1 for row in rows)
    return {
        "samples_per_second": len(rows) / whole,
        "tokens_per_second": targets / whole,
        "seconds": {
            "step": whole / WINDOW,
            **{part: watch.seconds[part] / passes / WINDOW for part in PARTS},
        },
        "matrix_flops_per_second": limit.mean(),
        "peak_memory_mb": peak,
        "own_memory_mb": peak - before,
        "tokens_per_step": targets / WINDOW,
        "tokens_sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        "parameters": sum(p.numel() for p in contestant.module.parameters()),
        "trainable": sum(p.numel() for p in contestant.module.parameters() if p.requires_grad),
        # Last, since counting runs steps of its own, which could need more memory than training does.
        "flops_per_step": sum(map(contestant.flops, batches)) / WINDOW if settings["count"] else None,
        "note": contestant.note,
    }


def passage(
    contestant: Contestant,
    workload: Workload,
    optimizer: torch.optim.Optimizer | None,
    loss: Callable,
    watch: Stopwatch,
) -> None:
    """A training step on every batch of the window."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []
    for batch in workload.window():
        batch = to_device(batch, device())
        watch.lap("data")
        with autocast(workload.settings):
            value = loss(batch)
        watch.lap("forward")
        value.backward()
        watch.lap("backward")
        if optimizer:
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        watch.lap("optimiser")
        watch.rest()


def make_optimizer(contestant: Contestant) -> torch.optim.Optimizer | None:
    """AdamW as src.train has it, for all; None where nothing trains. The learning rate is too low to diverge."""
    groups = [{**group, "lr": 1e-6} for group in contestant.groups()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True) if groups else None


# --------------------------------------------------------------------------------------------------------------------
# decoding
# --------------------------------------------------------------------------------------------------------------------
def decode(job: Job, settings: dict) -> dict:
    """Milliseconds to the first word of one picture; captions per second by method and batch size, twice: with cached
    keys and values, and without.

    ``equal``: share of the captions that are the same both ways (rounding may part a few in half precision).
    """
    contestant, workload = enter(job, settings)
    contestant.module.to(device()).eval()
    try:
        with autocast(settings), contestant.ready():
            one = to_device(workload.pictures(1), device())
            calls, seconds = repeated(partial(contestant.generate, one, 1, 1, cached=True), settings["seconds"])
            rates = [
                {"method": method, "batch": count, **captions_per_second(contestant, workload, beams, count)}
                for method, beams in methods(settings).items()
                for count in settings["decode"]["batches"]
            ]
    except Unsupported as reason:
        return {"first_token_ms": None, "rates": [], "note": str(reason)}
    return {"first_token_ms": 1000 * seconds / calls, "rates": rates, "note": contestant.note}


def methods(settings: dict) -> dict[str, int]:
    """Names of the ways of decoding, and their numbers of beams."""
    return {"greedy": 1, f"beam {settings['decode']['beams']}": settings["decode"]["beams"]}


def captions_per_second(contestant: Contestant, workload: Workload, beams: int, count: int) -> dict:
    """The rates of one method and batch size."""
    batch = to_device(workload.pictures(count), device())
    found, rates = {}, {}
    for name, cached in (("cached", True), ("uncached", False)):
        call = partial(contestant.generate, batch, beams, workload.settings["decode"]["tokens"], cached)
        found[name] = call()
        calls, seconds = repeated(call, workload.settings["seconds"], warm=True)
        rates[name] = calls * count / seconds
    same = [one == other for one, other in zip(found["cached"], found["uncached"], strict=True)]
    return {**rates, "equal": sum(same) / count, "tokens": statistics.mean(map(len, found["cached"]))}


# --------------------------------------------------------------------------------------------------------------------
# shared
# --------------------------------------------------------------------------------------------------------------------
def enter(job: Job, settings: dict) -> tuple[Contestant, Workload]:
    """The model of a job and what it is fed with."""
    workload = Workload(settings, job.size)
    if job.peer:
        return PEERS[job.model](job, workload), workload
    return Own(job, workload, precision(settings["precision"])), workload


def autocast(settings: dict) -> AbstractContextManager:
    return torch.autocast(device().type, torch.bfloat16, enabled=precision(settings["precision"]) == "bf16-mixed")


FUNCTIONS = {
    "prepare": prepare,
    "matrix": matrix,
    "pictures": pictures,
    "features": features,
    "train": train,
    "decode": decode,
}
