"""What a frozen language model makes of the training captions, computed once for each and read from disk from then on.

A mechanism that stands behind the finished language model (VC-GPT) needs its final hidden states only, and where the
model is frozen these depend on a text's tokens alone: not on the picture, the row, the step, or anything that learns.
From the second epoch on such a training does without the language model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.contracts import Text

SHARE = 0.25  # of the disk's free room at the start that may be taken; texts beyond it are computed every time


class States:
    """Final hidden states by text, in a file without a name inside ``folder`` that ends with this object.

    They are kept in the type in which they were computed, so that those read are those computed, bit for bit.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self._room = int(SHARE * shutil.disk_usage(folder).free)
        self._places: dict[bytes, tuple[int, int]] = {}  # token ids -> first byte and how many
        self._end, self._width, self._dtype = 0, 0, torch.float32

    def __len__(self) -> int:
        return len(self._places)

    def of(self, text: Text, compute: Callable[[], Tensor]) -> Tensor:
        """The states (B, T, D) of ``text``, whose columns see only what stands before them; ``compute`` makes them.

        Where a text of the rows is new, all are computed and the new ones are kept. Padding has zeros in rows that were
        read, and nobody looks at it.
        """
        texts = _texts(text)
        if all(ids in self._places for ids in texts):
            return self._read(text, texts)
        h_BTD = compute()
        self._width, self._dtype = h_BTD.shape[-1], h_BTD.dtype
        self._keep(texts, h_BTD[text.valid_BT])
        return h_BTD

    def close(self) -> None:
        self._file.close()

    def _keep(self, texts: Sequence[bytes], h_XD: Tensor) -> None:
        lengths = [len(ids) // ID for ids in texts]
        for ids, h_TD in zip(texts, h_XD.detach().split(lengths), strict=True):
            raw = h_TD.contiguous().view(torch.uint8).numpy()
            if ids in self._places or self._end + raw.nbytes > self._room:
                continue
            try:
                written = os.pwrite(self._file.fileno(), raw.data, self._end)
            except OSError:  # somebody else has filled the disk
                written = 0
            if written < raw.nbytes:
                self._room = 0
                return
            self._places[ids] = (self._end, raw.nbytes)
            self._end += raw.nbytes

    def _read(self, text: Text, texts: Sequence[bytes]) -> Tensor:
        places = [self._places[ids] for ids in texts]
        raw = bytearray().join(os.pread(self._file.fileno(), size, first) for first, size in places)
        h_BTD = torch.zeros(*text.ids_BT.shape, self._width, dtype=self._dtype)
        h_BTD[text.valid_BT] = torch.frombuffer(raw, dtype=self._dtype).view(-1, self._width)
        return h_BTD


ID = np.dtype(np.int64).itemsize


def _texts(text: Text) -> list[bytes]:
    """The token ids of each text, row after row; several may stand in one row."""
    ids_X, start_X = text.ids_BT[text.valid_BT], text.starts()[text.valid_BT]
    first = start_X.nonzero().flatten().tolist()
    return [ids.tobytes() for ids in np.split(ids_X.numpy(), first[1:])]
