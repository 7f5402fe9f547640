"""What a frozen language model makes of the training captions, computed once for each and read from disk from then on.

A mechanism that stands behind the finished language model (VC-GPT) needs its final hidden states only, and where the
model is frozen these depend on a text's tokens alone: not on the picture, the row, the step, or anything that learns.
From the second epoch on such a training does without the language model.

Every text is read alone, whatever row it stands in: how its numbers are rounded must not depend on the batch that it
first came in, or a training that was stopped would not go on to the same end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from src.contracts import Text

SHARE = 0.25  # of the disk's free room at the start that may be taken; texts beyond it are computed every time


class States:
    """Final hidden states by text, in a file without a name inside ``folder`` that ends with this object.

    They are kept in the type in which they were computed.
    """

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self._room = int(SHARE * shutil.disk_usage(folder).free)
        self._places: dict[bytes, tuple[int, int]] = {}  # token ids -> first byte and how many
        self._end, self._dtype = 0, torch.float32

    def __len__(self) -> int:
        return len(self._places)

    def of(self, text: Text, compute: Callable[[Text], Tensor]) -> Tensor:
        """The states (B, T, D) of ``text``, whose columns see only what stands before them; zeros at padding, which
        nobody looks at. ``compute`` makes those of a row."""
        found = [self._one(ids_T, compute) for ids_T in _texts(text)]
        h_BTD = found[0].new_zeros(*text.ids_BT.shape, found[0].shape[1])
        h_BTD[text.valid_BT] = torch.cat(found)
        return h_BTD

    def close(self) -> None:
        self._file.close()

    def _one(self, ids_T: Tensor, compute: Callable[[Text], Tensor]) -> Tensor:
        """The states (T, D) of one text."""
        key = ids_T.numpy().tobytes()
        if key not in self._places:
            every_1T = torch.ones(1, len(ids_T), dtype=torch.bool)
            h_TD = compute(Text(ids_T[None], every_1T, every_1T.long()))[0].detach()
            self._keep(key, h_TD)
            return h_TD
        first, size = self._places[key]
        raw = bytearray(os.pread(self._file.fileno(), size, first))
        return torch.frombuffer(raw, dtype=self._dtype).view(len(ids_T), -1)

    def _keep(self, key: bytes, h_TD: Tensor) -> None:
        raw, self._dtype = h_TD.contiguous().view(torch.uint8).numpy(), h_TD.dtype
        if self._end + raw.nbytes > self._room:
            return
        try:
            written = os.pwrite(self._file.fileno(), raw.data, self._end)
        except OSError:  # somebody else has filled the disk
            written = 0
        if written < raw.nbytes:
            self._room = 0
            return
        self._places[key] = (self._end, raw.nbytes)
        self._end += raw.nbytes


def _texts(text: Text) -> Sequence[Tensor]:
    """The token ids of each text, row after row; several may stand in one row."""
    ids_X, start_X = text.ids_BT[text.valid_BT], text.starts()[text.valid_BT]
    return ids_X.tensor_split(start_X.nonzero().flatten()[1:])
