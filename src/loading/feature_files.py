"""The files of a feature cache: the key that names them, and how they are written."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from torch import Tensor
from tqdm import tqdm

from src.contracts import Example, Source
from src.data.order import InOrder
from src.errors import UserError
from src.loading.batches import Batches, Loader
from src.vision.base import Vision

FORMAT = 1  # part of the key: raise it when the files change their meaning
# Half precision: an eighth of bfloat16's rounding error in the same space, and numpy can read it. Its smaller range,
# up to 65504, is enough for features that leave a norm or a ReLU6; building refuses what does not fit.
DTYPE = np.dtype("float16")
PROBES = 16  # rows that are looked at without being asked for, both for the key and when a cache is opened

Shapes = dict[str, tuple[int, ...]]


# --------------------------------------------------------------------------------------------------------------------
# key
# --------------------------------------------------------------------------------------------------------------------
def cache_key(vision: Vision, source: Source, examples: Sequence[Example], levels: int) -> tuple[str, list[str]]:
    """The key, and the ids of the examples. Raises UserError for missing files and for ids that are not unique.

    A picture file enters with its size and time of change, a drawn picture with what is known of it. A few pictures
    enter with their pixels: that covers how the source resizes files, and what it draws.
    """
    digest = hashlib.sha256()
    ids: list[str] = []

    def add(*parts) -> None:
        digest.update(json.dumps(parts, default=str).encode() + b"\n")

    add(FORMAT, str(DTYPE), vision.identity(), levels, source.name, len(examples))
    for position in range(len(examples)):
        example = examples[position]
        ids.append(example.id)
        add(example.id, _file_state(example) if example.image is not None else str(example.extra))
    for row in spread(len(examples)):
        digest.update(source.pixels(examples[row], vision.spec.image_size).numpy().tobytes())
    if len(set(ids)) != len(ids):
        raise UserError(f"{source.name} has several pictures with the same id.")
    return digest.hexdigest(), ids


def _file_state(example: Example) -> tuple[int, int]:
    try:
        state = os.stat(example.image)
    except OSError as error:
        raise UserError(f"The picture {example.image} does not exist or cannot be read.") from error
    return state.st_size, state.st_mtime_ns


def spread(count: int) -> list[int]:
    """A few positions from the first to the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, PROBES))})


def checksum(arrays: Iterable[np.ndarray]) -> int:
    """CRC-32 of the arrays, one after the other."""
    return functools.reduce(lambda value, array: zlib.crc32(array, value), arrays, 0)


# --------------------------------------------------------------------------------------------------------------------
# building
# --------------------------------------------------------------------------------------------------------------------
class _Pictures(Batches):
    """Pixels of whole batches, (I, M=1, 3, h, w)."""

    def __init__(self, source: Source, examples: Sequence[Example], size: int):
        self.source, self.examples, self.size = source, examples, size

    def _batch(self, epoch: int | None, indices: list[int]) -> Tensor:
        return torch.stack([self.source.pixels(self.examples[row], self.size) for row in indices])[:, None]


def build(
    folder: Path,
    key: str,
    vision: Vision,
    source: Source,
    examples: Sequence[Example],
    levels: int,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Write a cache as the new ``folder``, batch by batch: memory holds a few batches at a time."""
    count, shapes, order = len(examples), shapes_of(vision, levels), InOrder(len(examples), batch_size)
    # One batch is decoded before workers have started.
    loader = Loader(_Pictures(source, examples, vision.spec.image_size), order, workers if len(order) > 1 else 0)
    folder.mkdir()
    checksums: list[int] = []
    bar = tqdm(total=count, desc=f"features of {source.name}", unit="picture", disable=not progress)
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in shapes}
        for name, shape in shapes.items():
            header = {"descr": DTYPE.str, "fortran_order": False, "shape": (count, *shape)}
            write_array_header_1_0(files[name], header)
        device = stack.enter_context(_frozen(vision))
        stack.enter_context(bar)
        for pixels_IM3hw in loader:
            arrays = _encode(vision, pixels_IM3hw.to(device), levels)
            for name, array in arrays.items():
                files[name].write(array)
            checksums += map(checksum, zip(*arrays.values(), strict=True))
            bar.update(len(pixels_IM3hw))
    np.save(folder / "checksums.npy", np.array(checksums, np.uint32))
    manifest = {
        "key": key,
        "source": source.name,
        "vision": type(vision).__name__,
        "count": count,
        "dtype": DTYPE.name,
        "shapes": shapes,
        "bytes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "checksum": zlib.crc32(np.array(checksums, np.uint32)),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def shapes_of(vision: Vision, levels: int) -> Shapes:
    """The arrays of a cache by name, without the axis of rows."""
    spec = vision.spec
    shapes: Shapes = {"tokens": (spec.tokens, spec.width), "pooled": (spec.pooled_width,)}
    return shapes | ({"levels": (levels, spec.tokens, spec.width)} if levels else {})


def _encode(vision: Vision, pixels_IM3hw: Tensor, levels: int) -> dict[str, np.ndarray]:
    """Features by name, in the order of ``shapes_of``, without the axis of one picture per context."""
    # float32 and no_grad: what an encoder may keep of an inference_mode pass could not be used in training later.
    with torch.no_grad(), torch.autocast(pixels_IM3hw.device.type, enabled=False):
        visual = vision(pixels_IM3hw, levels)
    found = {"tokens": visual.tokens_IMNC, "pooled": visual.pooled_IMC, "levels": visual.levels_IMKNC}
    with np.errstate(over="ignore"):  # told below, in words
        arrays = {name: x[:, 0].cpu().numpy().astype(DTYPE, order="C") for name, x in found.items() if x is not None}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"The {name} of {type(vision).__name__} exceed the range of float16 and cannot be cached.")
    return arrays


@contextmanager
def _frozen(vision: Vision) -> Iterator[torch.device]:
    """The encoder in eval mode, on the GPU if there is one; afterwards as it was."""
    training, home = vision.training, vision.mean.device
    device = torch.device("cuda") if torch.cuda.is_available() else home
    try:
        vision.eval().to(device)
        yield device
    finally:
        vision.train(training).to(home)


def require_space(folder: Path, count: int, shapes: Shapes) -> None:
    wanted = count * DTYPE.itemsize * sum(map(math.prod, shapes.values()))
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"The cached features of {count} pictures take {wanted / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB left; set data.cache_dir to a larger disk."
        )
