"""Features of a frozen vision encoder, computed once and read from disk ever after.

A cache is a folder named by its key, the sha256 of all that its content depends on: the encoder's weights, architecture
and preprocessing, the number of levels, and the pictures. It holds one .npy file per array, opened memory-mapped, and:

    checksums.npy   CRC-32 of every row, all arrays together
    manifest.json   key, number of rows, shapes and file sizes; written last

A cache is built in a folder beside its place and renamed into it whole, so a half-written one never has its name.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.contracts import Example, Source, Visual
from src.errors import UserError
from src.loading.feature_files import DTYPE, build, cache_key, checksum, require_space, shapes_of, spread
from src.records.built_once import alone, install, scratch
from src.records.files import explaining_full_disk
from src.vision.base import Vision


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
        for row in spread(len(self)):
            if not self._intact(row):
                raise ValueError(f"row {row} differs from its checksum")

    @classmethod
    def open_or_build(
        cls,
        folder: Path,
        vision: Vision,
        source: Source,
        examples: Sequence[Example],
        levels: int,
        batch_size: int = 16,
        workers: int = 2,
        progress: bool = True,
        tokens: bool = True,
    ) -> FeatureCache:
        """The cache of these examples inside ``folder``, built if there is none or it is damaged.

        Of several processes of a machine that want it at once, one builds it and the others wait; on several machines
        with one disk each builds its own, and the first to finish provides it for all.
        ``workers`` decode pictures while building; larger batches than the default are slower on a CPU. Raises
        UserError for pictures that cannot be read, for too little space on the disk, and for features beyond the range
        of float16.
        """
        key, ids = cache_key(vision, source, examples, levels)
        place = folder / key[:20]
        cache = cls._open_intact(place, ids, tokens)
        if cache is not None:
            return cache
        with explaining_full_disk(folder), alone(place), scratch(folder) as beside:
            if (cache := cls._open_intact(place, ids, tokens)) is not None:  # somebody else has built it meanwhile
                return cache
            require_space(folder, len(ids), shapes_of(vision, levels))
            new = beside / "new"
            build(new, key, vision, source, examples, levels, batch_size, workers, progress)
            if cls._open_intact(place, ids, tokens) is None:
                install(new, place)
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
        self._checked[row] = checksum([array[row] for array in self._arrays.values()]) == self._checksums[row]
        return bool(self._checked[row])

    def __getstate__(self) -> dict:
        # A pickled memory map would carry the whole file to every spawned loader worker.
        return {name: self.__dict__[name] for name in ("folder", "ids", "tokens", "_position")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()


class Shared:
    """The features of examples of which several show the same picture."""

    def __init__(self, cache: FeatureCache, places: Sequence[int]):
        self.cache, self.places = cache, places

    def __len__(self) -> int:
        return len(self.places)

    def visual(self, rows: Sequence[int]) -> Visual:
        """The pictures of the examples at these positions."""
        return self.cache.visual([self.places[row] for row in rows])


def of_pictures(
    examples: Sequence[Example], cache: Callable[[Sequence[Example]], FeatureCache]
) -> FeatureCache | Shared:
    """What ``cache`` makes of the examples; of those that share picture files each picture is kept once."""
    files = [example.image for example in examples] if isinstance(examples, list) else []
    if None in files or len(set(files)) == len(files):
        return cache(examples)
    distinct = dict.fromkeys(files)
    first = {example.image: example for example in reversed(examples)}
    place = {file: i for i, file in enumerate(distinct)}
    return Shared(cache([first[file] for file in distinct]), [place[file] for file in files])
