"""Features of a frozen vision encoder, computed once and read from disk ever after.

A cache is a folder named by its key, the sha256 of all that its content depends on: the encoder's weights, architecture
and preprocessing, the number of levels, and the pictures. It holds one .npy file per array, opened memory-mapped, and:

    checksums.npy   CRC-32 of every row, all arrays together
    manifest.json   key, number of rows, shapes and file sizes; written last

A cache is built in a folder beside its place and renamed into it whole, so a half-written one never bears the name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from src.contracts import Example, Source, VisionSpec, Visual
from src.errors import UserError
from src.records.files import told_when_full

FORMAT = 1  # part of the key: raise it when the files change their meaning
# Half precision: an eighth of bfloat16's rounding error in the same space, and numpy can read it. Its smaller range,
# up to 65504, is enough for features that leave a norm or a ReLU6; building refuses what does not fit.
DTYPE = np.dtype("float16")
PROBES = 16  # rows that are looked at without being asked for, both for the key and when a cache is opened

ABANDONED = 24 * 3600  # seconds without a write, after which an unfinished build is taken for dead

Shapes = dict[str, tuple[int, ...]]


class Encoder(Protocol):
    """What is asked of a vision encoder here (a torch module of src.vision; rooms do not import their neighbours)."""

    spec: VisionSpec
    training: bool
    mean: Tensor

    def identity(self) -> str: ...

    def __call__(self, pixels: Tensor, levels: int = 0) -> Visual: ...

    def train(self, mode: bool) -> Encoder: ...

    def eval(self) -> Encoder: ...

    def to(self, device: torch.device) -> Encoder: ...


class FeatureCache:
    """Visuals by position in the list of examples, as float16 tensors; the consumer casts.

    Every row is compared with its checksum the first time a process reads it. Without ``tokens`` the visuals have none,
    only the pooled vectors, a fiftieth of the bytes.
    """

    def __init__(self, folder: Path, ids: Sequence[str], tokens: bool = True):
        """Open the cache in ``folder``; raises ValueError or OSError when it is damaged. Use ``open_or_build``."""
        self.folder, self.ids, self.tokens = folder, tuple(ids), tokens
        self._position = {name: row for row, name in enumerate(self.ids)}
        self._open()
        for row in _spread(len(self)):
            if not self._intact(row):
                raise ValueError(f"row {row} differs from its checksum")

    @classmethod
    def open_or_build(
        cls,
        folder: Path,
        vision: Encoder,
        source: Source,
        examples: Sequence[Example],
        levels: int,
        batch_size: int = 16,
        workers: int = 2,
        progress: bool = True,
        tokens: bool = True,
    ) -> FeatureCache:
        """The cache of these examples inside ``folder``, built if there is none or it is damaged.

        Several processes may do this at once: each builds its own, and the first to finish provides it for all.
        ``workers`` decode pictures while building; larger batches than the default are slower on a CPU. Raises
        UserError for pictures that cannot be read, for too little space on the disk, and for features beyond the range
        of float16.
        """
        key, ids = cache_key(vision, source, examples, levels)
        place = folder / key[:20]
        cache = cls._open_intact(place, ids, tokens)
        if cache is not None:
            return cache
        with told_when_full(folder), _scratch(folder) as scratch:
            _build(scratch, key, vision, source, examples, levels, batch_size, workers, progress)
            if cls._open_intact(place, ids, tokens) is None:  # nobody else was faster
                _install(scratch, place)
        return cls(place, ids, tokens)

    @classmethod
    def _open_intact(cls, place: Path, ids: Sequence[str], tokens: bool) -> FeatureCache | None:
        try:
            return cls(place, ids, tokens)
        except Exception:  # a flipped bit can make anything of a header
            return None

    def _open(self) -> None:
        manifest = json.loads((self.folder / "manifest.json").read_text())
        if self.folder.name != manifest["key"][:20] or manifest["count"] != len(self.ids):
            raise ValueError("the manifest belongs to another cache")
        for name, size in manifest["bytes"].items():
            if (self.folder / name).stat().st_size != size:
                raise ValueError(f"{name} is incomplete")
        self._checksums = np.load(self.folder / "checksums.npy")
        if zlib.crc32(self._checksums) != manifest["checksum"]:
            raise ValueError("checksums.npy is damaged")
        self._checked = np.zeros(len(self.ids), bool)
        self._arrays = {name: np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in manifest["shapes"]}
        for name, shape in manifest["shapes"].items():
            if self._arrays[name].shape != (len(self.ids), *shape) or self._arrays[name].dtype != DTYPE:
                raise ValueError(f"{name}.npy has another shape than the manifest says")

    def __len__(self) -> int:
        return len(self.ids)

    def visual(self, rows: Sequence[int | str]) -> Visual:
        """The pictures at these positions, or with these ids, one per context (M = 1).

        Raises UserError when a row has changed on the disk since it was written.
        """
        positions = [self._position[row] if isinstance(row, str) else row for row in rows]
        for row in positions:
            if not self._checked[row] and not self._intact(row):
                raise UserError(
                    f"The cached features of {self.ids[row]} are damaged; delete {self.folder} and start again."
                )
        arrays = {name: self._read(name, positions) for name in self._arrays if name != "tokens" or self.tokens}
        none_IMNC = torch.empty(len(positions), 1, 0, self._arrays["tokens"].shape[-1], dtype=arrays["pooled"].dtype)
        return Visual(arrays.get("tokens", none_IMNC), arrays["pooled"], arrays.get("levels"))

    def _read(self, name: str, positions: list[int]) -> Tensor:
        rows = np.take(self._arrays[name], positions, axis=0)  # copies row by row at the speed of memory
        return torch.from_numpy(rows)[:, None]  # (I, ...) -> (I, M=1, ...)

    def _intact(self, row: int) -> bool:
        self._checked[row] = _checksum([array[row] for array in self._arrays.values()]) == self._checksums[row]
        return bool(self._checked[row])

    def __getstate__(self) -> dict:
        # A pickled memory map would carry the whole file to every spawned loader worker.
        return {name: self.__dict__[name] for name in ("folder", "ids", "tokens", "_position")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


# --------------------------------------------------------------------------------------------------------------------
# key
# --------------------------------------------------------------------------------------------------------------------
def cache_key(vision: Encoder, source: Source, examples: Sequence[Example], levels: int) -> tuple[str, list[str]]:
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
    for row in _spread(len(examples)):
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


def _spread(count: int) -> list[int]:
    """A few positions from the first to the last."""
    return sorted({round(x) for x in np.linspace(0, count - 1, min(count, PROBES))})


def _checksum(arrays: Sequence[np.ndarray]) -> int:
    """CRC-32 of the arrays, one after the other."""
    value = 0
    for array in arrays:
        value = zlib.crc32(array, value)
    return value


# --------------------------------------------------------------------------------------------------------------------
# building
# --------------------------------------------------------------------------------------------------------------------
class _Pictures(Dataset):
    """Pixels by position. A picture that cannot be read is handed on as its error: raised in a loader's worker, it
    would reach the user wrapped in the worker's traceback."""

    def __init__(self, source: Source, examples: Sequence[Example], size: int):
        self.source, self.examples, self.size = source, examples, size

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> Tensor | UserError:
        try:
            return self.source.pixels(self.examples[row], self.size)
        except UserError as error:
            return error


def _stack(pictures: list[Tensor | UserError]) -> Tensor | UserError:
    errors = [picture for picture in pictures if isinstance(picture, UserError)]
    return errors[0] if errors else torch.stack(pictures)[:, None]  # (X, 3, h, w) -> (I, M=1, 3, h, w)


def _build(
    scratch: Path,
    key: str,
    vision: Encoder,
    source: Source,
    examples: Sequence[Example],
    levels: int,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Write all files of a cache into ``scratch``, batch by batch: memory holds a few batches at a time."""
    count, shapes = len(examples), _shapes(vision, levels)
    _require_space(scratch, count, shapes)
    loader = DataLoader(
        _Pictures(source, examples, vision.spec.image_size),
        batch_size,
        num_workers=workers if count > batch_size else 0,  # one batch is decoded before workers have started
        collate_fn=_stack,
        generator=torch.Generator(),  # its own: a run that builds draws the same numbers as one that finds the cache
    )
    checksums = np.zeros(count, np.uint32)
    bar = tqdm(total=count, desc=f"features of {source.name}", unit="picture", disable=not progress)
    with _writers(scratch, count, shapes) as writers, _frozen(vision) as device, bar:
        row = 0
        for pixels_IM3hw in loader:
            if isinstance(pixels_IM3hw, UserError):
                raise pixels_IM3hw
            arrays = _encode(vision, pixels_IM3hw.to(device), levels)
            for name, array in arrays.items():
                writers[name].write(array)
            for parts in zip(*arrays.values(), strict=True):
                checksums[row] = _checksum(parts)
                row += 1
            bar.update(len(pixels_IM3hw))
    np.save(scratch / "checksums.npy", checksums)
    _write_manifest(scratch, key, source.name, type(vision).__name__, shapes, checksums)


def _encode(vision: Encoder, pixels_IM3hw: Tensor, levels: int) -> dict[str, np.ndarray]:
    """Features by name, in the order of ``_shapes``, without the axis of one picture per context."""
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


def _shapes(vision: Encoder, levels: int) -> Shapes:
    """The arrays of a cache by name, without the axis of rows."""
    spec = vision.spec
    shapes: Shapes = {"tokens": (spec.tokens, spec.width), "pooled": (spec.pooled_width,)}
    return shapes | ({"levels": (levels, spec.tokens, spec.width)} if levels else {})


@contextmanager
def _frozen(vision: Encoder) -> Iterator[torch.device]:
    """The encoder in eval mode, on the GPU if there is one; afterwards as it was."""
    training, home = vision.training, vision.mean.device
    device = torch.device("cuda") if torch.cuda.is_available() else home
    try:
        vision.eval().to(device)
        yield device
    finally:
        vision.train(training).to(home)


@contextmanager
def _writers(scratch: Path, count: int, shapes: Shapes) -> Iterator[dict]:
    """Open .npy files, their headers written, to which rows are appended."""
    files = {name: open(scratch / f"{name}.npy", "wb") for name in shapes}
    try:
        for name, file in files.items():
            header = {"descr": DTYPE.str, "fortran_order": False, "shape": (count, *shapes[name])}
            write_array_header_1_0(file, header)
        yield files
    finally:
        for file in files.values():
            file.close()


def _write_manifest(scratch: Path, key: str, source: str, vision: str, shapes: Shapes, checksums: np.ndarray) -> None:
    manifest = {
        "key": key,
        "source": source,
        "vision": vision,
        "count": len(checksums),
        "dtype": DTYPE.name,
        "shapes": shapes,
        "bytes": {file.name: file.stat().st_size for file in sorted(scratch.iterdir())},
        "checksum": zlib.crc32(checksums),
    }
    (scratch / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _require_space(folder: Path, count: int, shapes: Shapes) -> None:
    wanted = count * DTYPE.itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"The cached features of {count} pictures take {wanted / 1e9:.1f} GB and {folder.parent} has "
            f"{free / 1e9:.1f} GB left; set data.cache_dir to a larger disk."
        )


# --------------------------------------------------------------------------------------------------------------------
# places
# --------------------------------------------------------------------------------------------------------------------
@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside the caches (a rename must not cross disks), gone afterwards unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    scratch = _aside(folder)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder / f".building-{uuid.uuid4().hex}"


def _sweep(folder: Path) -> None:
    """Delete what killed builds have left: each is as large as a cache."""
    for path in folder.glob(".building-*"):
        try:
            newest = max(entry.stat().st_mtime for entry in (path, *path.iterdir()))
        except OSError:
            continue  # its builder has just renamed or deleted it
        if time.time() - newest > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _install(scratch: Path, place: Path) -> None:
    """Rename ``scratch`` to ``place``, out of which a damaged cache is moved first."""
    try:
        if place.exists():
            damaged = _aside(place.parent)
            os.replace(place, damaged)
            shutil.rmtree(damaged, ignore_errors=True)
        os.replace(scratch, place)
    except OSError:
        if not place.exists():  # else another process was faster by a moment, and its cache is as good
            raise
