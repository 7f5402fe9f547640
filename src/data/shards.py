"""data=shards: millions of pictures with captions in tar files of webdataset's layout, as img2dataset writes them.

A shard holds ``<key>.jpg`` (or another ending that pictures have) with ``<key>.txt``, one caption, or ``<key>.json``,
{"caption": ...} or {"captions": [...]}; where both are there the text counts, unless it is empty. Keys may have dots;
where picture and caption have different ones (7.input.jpg, 7.caption.txt) the key ends at the first, as in webdataset.
Further columns of an example are passed over; a picture or a caption that is left alone is a fault. Nothing is
unpacked, and no list of all examples is in memory: what a shard holds and where is noted once, in an index on the disk,
and a process keeps the indexes of the few shards that it reads from.

Why not the library webdataset (1.0): it reads shards as streams. A stream can only be gone on with by reading all that
came before; which examples are mixed with which depends on the number of loading processes; and where shards do not
divide evenly among the processes of a training, some have fewer batches than others. With an index the order of an
epoch is a function of (seed, epoch) alone, its state is the number of batches done, and every process takes its part of
every step, as with all other sources. The standard library's tarfile finds the entries.

Training goes through the shards in an order drawn anew for each epoch, ``window`` of them at a time, whose examples are
in random order: reads stay within a few files that the operating system's cache has at hand.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.contracts import Example
from src.data.base import PictureFiles, Streamed, stable_number
from src.data.faults import CHECKERS, Faults
from src.data.images import load_picture, shown
from src.data.order import EpochBatchSampler, Pick
from src.data.shard_index import ShardFile, index_of, load_index, read_captions
from src.errors import UserError
from src.kinds import Name, Share, Size

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # {00000..00099}, both ends included
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MOST_NAMED = 1_000_000  # shards that a range may name: beyond it is a typing error


class Shards(PictureFiles):
    """``train``, ``val``, ``test``: shards inside the folder ``root``; null: no such split.

    Each is a folder, a tar file, a pattern (``0000*.tar``, ``{00000..00099}.tar``) or a list of these. The id of an
    example is the shard's name with its key, ``train/00000/000000012``. ``window``: shards that are mixed with each
    other in training. ``cache_dir``: folder for the indexes; that of a shard whose size or time of change is another is
    made anew. ``on_error``, ``max_skipped``: see ``data.faults``; under "skip" every picture is decoded once, for the
    index, and of a shard that is cut off what comes before the cut is used. Raises UserError for a missing folder,
    patterns without shards, and a shard in two splits.
    """

    name = "shards"
    streamed = True

    def __init__(
        self,
        root: str,
        train: Name | Sequence[Name],
        val: Name | Sequence[Name] | None = None,
        test: Name | Sequence[Name] | None = None,
        window: Size = 8,
        cache_dir: str = "data/shard_index",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.faults = Faults(self.name, on_error, max_skipped)
        self.root, self.reader = Path(root), Reader(Path(root), Path(cache_dir), window, check=on_error == "skip")
        if not self.root.is_dir():
            raise UserError(
                f"The folder of shards {self.root} does not exist; say where it is with data.root=<folder>."
            )
        asked = {"train": train, "val": val, "test": test}
        self._names = {split: self._find(split, words) for split, words in asked.items() if words is not None}
        self._refuse_shared()
        self._examples: dict[str, ShardExamples] = {}

    def splits(self) -> tuple[str, ...]:
        return tuple(self._names)

    def examples(self, split: str) -> ShardExamples:
        """The examples of a split in the order of shards and entries. Indexes all shards when called first.

        Raises UserError for damaged shards and entries, or under "skip" for too many of them.
        """
        if not self._examples:
            self._examples = self._indexed()
        return self._examples[split]

    def picture(self, example: Example, preprocessing: Mapping) -> Tensor:
        return load_picture(example.id, preprocessing, self.reader.picture(**example.extra))

    # ---------------------------------------------------------------------------------------------------- shards
    def _find(self, split: str, words: str | Sequence[str]) -> list[str]:
        """Names of the shards of a split: their paths inside root, without .tar."""
        option, paths = f"data.source.{split}", []
        several = isinstance(words, Sequence) and not isinstance(words, str)
        for word in map(str, words if several else [words]):
            if os.path.isabs(word) or ".." in Path(word).parts:
                raise UserError(f"{option}={shown(word)} is no path inside of data.root={self.root}; give one there.")
            for name in expand(word):
                paths += self._named(name)
        if not paths:
            raise UserError(
                f"{option}={shown(str(words))} names no shard in {self.root}; give a folder, a .tar file, a pattern "
                f"such as 0000*.tar, or a [list] of these{'' if split == 'train' else ', or null'}."
            )
        present = []
        for path in dict.fromkeys(paths):
            if (self.root / path).is_file():
                present.append(path.removesuffix(".tar"))
            else:
                self.faults.add(str(self.root / path), f"The shard, which {option} names, is missing.")
        return present

    def _named(self, name: str) -> list[str]:
        if (self.root / name).is_dir():
            name = posixpath.join(glob.escape(name), "*")
        found = sorted(glob.glob(name, root_dir=self.root))
        for path in found:
            if path.endswith(PACKED):
                self.faults.add(str(self.root / path), "The shard is packed; unpack it to a plain .tar.")
        if found or glob.has_magic(name):
            return [posixpath.normpath(path) for path in found if path.endswith(".tar")]
        return [posixpath.normpath(name)] if name.endswith(".tar") else []

    def _refuse_shared(self) -> None:
        first: dict[str, str] = {}
        for split, names in self._names.items():
            for name in names:
                if first.setdefault(name, split) != split:
                    raise UserError(f"The shard {shown(name)}.tar is in two splits, {first[name]} and {split}.")

    def _indexed(self) -> dict[str, ShardExamples]:
        names = [name for group in self._names.values() for name in group]
        counts, total = {}, 0
        pool = ThreadPoolExecutor(min(CHECKERS, os.cpu_count() or 1))  # decoders run side by side
        bar = tqdm(total=len(names), desc=f"indexing {self.name}", unit="shard", delay=2, leave=False)
        try:
            for name, (count, faults) in zip(names, pool.map(self.reader.look_through, names), strict=True):
                for where, reason in faults:
                    self.faults.add(where, reason)
                counts[name] = count
                total += count + len(faults)
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
        self.faults.refuse_many(len(self.faults.skipped), total, f"examples in {self.root}")
        self.faults.report(self.root)
        return {
            split: ShardExamples(self.reader, names, [counts[n] for n in names]) for split, names in self._names.items()
        }


class Reader:
    """Examples by shard and row of its index; ``check``: of those whose pictures can be decoded.

    The files and indexes of two windows are kept open; processes that are forked go on using them.
    """

    def __init__(self, root: Path, cache_dir: Path, window: int, check: bool):
        self.root, self.cache_dir, self.window, self.check = root, cache_dir, window, check
        self.__setstate__({})

    def example(self, shard: str, row: int) -> Example:
        file, rows = self._open(shard)
        _, _, text, length, is_json, key = rows[row].item()
        captions = read_captions(file.read(text, length), is_json)
        return Example(f"{shard}/{key.decode()}", captions, extra={"shard": shard, "row": row})

    def picture(self, shard: str, row: int) -> bytes:
        """Content of the picture file."""
        file, rows = self._open(shard)
        start, length, *_ = rows[row].item()
        return file.read(start, length)

    def look_through(self, shard: str) -> tuple[int, list[tuple[str, str]]]:
        """Index a shard if need be: how many examples can be used, and what is wrong with the others."""
        index = index_of(self._path(shard), self.cache_dir, self.check)
        return len(index.rows), index.faults

    def _path(self, shard: str) -> Path:
        return self.root / f"{shard}.tar"

    def _opened(self, shard: str) -> tuple[ShardFile, np.ndarray]:
        """Raises UserError when the shard is not what was indexed."""
        path = self._path(shard)
        try:
            file = ShardFile(path)
        except OSError as error:
            raise UserError(f"The shard {path} cannot be read ({error.strerror}).") from error
        index = load_index(path, self.cache_dir, self.check, file.state)
        if index is None:
            raise UserError(
                f"The shard {path}, or its index in {self.cache_dir}, has changed while it was in use; start again."
            )
        return file, index.rows

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open = lru_cache(2 * self.window)(self._opened)


class ShardExamples(Streamed):
    """The examples of some shards, read when asked for. ``counts``: how many each shard has.

    ``fraction``: share of each shard's examples that is used, at least one of them; ``seed`` says which.
    """

    def __init__(
        self, reader: Reader, names: Sequence[str], counts: Sequence[int], fraction: float = 1.0, seed: int = 0
    ):
        held = [(name, count) for name, count in zip(names, counts, strict=True) if count]
        self.reader, self.names, self.all = reader, [name for name, _ in held], [count for _, count in held]
        self.fraction, self.seed = fraction, seed
        used = self.all if fraction == 1 else [max(1, round(fraction * count)) for count in self.all]
        self.counts = np.array(used, np.int64)
        self.ends = self.counts.cumsum()
        self.__setstate__({})

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]  # counts from the end and raises IndexError as lists do
        shard = int(np.searchsorted(self.ends, index, "right"))
        row = index - int(self.ends[shard] - self.counts[shard])
        return self.reader.example(self.names[shard], row if self.fraction == 1 else int(self._chosen(shard)[row]))

    def share(self, fraction: float, seed: int) -> ShardExamples:
        return ShardExamples(self.reader, self.names, self.all, fraction, seed)

    def order(self, batch_size: int, seed: int, rank: int, world: int) -> ShardOrder:
        return ShardOrder(self.counts, self.reader.window, batch_size, seed, rank, world)

    def _rows(self, shard: int) -> np.ndarray:
        """Which rows of a shard's index are used."""
        from src.data.order import nested_share

        return np.array(nested_share(self.all[shard], self.fraction, stable_number(self.seed, self.names[shard])))

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_chosen"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._chosen = lru_cache(2 * self.reader.window)(self._rows)


class ShardOrder(EpochBatchSampler):
    """Batches in an order that depends on (seed, epoch) alone, made window by window.

    ``counts``: examples of each shard; those of ``window`` shards are mixed with each other.
    """

    def __init__(self, counts: np.ndarray, window: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        super().__init__(int(counts.sum()), batch_size, seed, rank, world)
        self.counts, self.window = counts, window

    def batches(self, epoch: int) -> list[list[int]]:
        return list(self._batches(epoch, 0))

    def __iter__(self) -> Iterator[Pick]:
        epoch, start = self.epoch, self.start
        yield from ((epoch, batch) for batch in self._batches(epoch, start))

    def identity(self) -> dict[str, int]:
        return {**super().identity(), "shards": len(self.counts), "window": self.window}

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        """This rank's batches from number ``start`` on."""
        step, left = self.batch_size * self.world, np.empty(0, np.int64)
        for positions in self._windows(epoch, start * step):
            left = np.concatenate([left, positions])
            whole = len(left) // step * step
            for first in range(0, whole, step):
                yield left[first : first + step][self.rank :: self.world].tolist()
            left = left[whole:]
        if self.n < step:  # begun again up to a multiple of the ranks
            yield np.resize(left, -(-self.n // self.world) * self.world)[self.rank :: self.world].tolist()

    def _windows(self, epoch: int, skip: int) -> Iterator[np.ndarray]:
        """Positions of all examples in the order of an epoch, without the first ``skip``, a window at a time."""
        ends = self.counts.cumsum()
        shards = self._permutation(len(self.counts), epoch, "shards")
        for number in range(0, len(shards), self.window):
            chosen = shards[number : number + self.window]
            count = int(self.counts[chosen].sum())
            if skip < count:
                positions = np.concatenate([np.arange(ends[s] - self.counts[s], ends[s]) for s in chosen])
                yield positions[self._permutation(count, epoch, number)][skip:]
            skip = max(0, skip - count)

    def _permutation(self, n: int, epoch: int, what: str | int) -> np.ndarray:
        generator = torch.Generator().manual_seed(stable_number(self.seed, "order", epoch, what))
        return torch.randperm(n, generator=generator).numpy()


def expand(pattern: str) -> list[str]:
    """``a/{00..11}.tar`` as a/00.tar to a/11.tar; other patterns as they are."""
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match.groups()
    if not int(first) <= int(last) < int(first) + MOST_NAMED:
        raise UserError(f"{shown(pattern)} is no range of shards; write it as {{00000..00099}}.")
    before, after = pattern[: match.start()], expand(pattern[match.end() :])
    return [f"{before}{i:0{len(first)}d}{rest}" for i in range(int(first), int(last) + 1) for rest in after]
