"""Keys and values of the text seen so far, in buffers allocated once as long as no rows are reordered.

A cache belongs to one batch of text rows. A walk through the language model first claims its columns (``claim``), then
every attention of that walk appends to those columns under its own slot name. Beams reorder rows with ``select``: the
rows move when the next columns are appended, into buffers that these just fill. One pass over the memory then does for
both, and a matrix product reads a full buffer where it lies, but copies a part of one first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Slot:
    """Keys and values (B, H, C, d) of one attention, in the first ``filled`` of C columns."""

    buffers: tuple[Tensor, Tensor]
    filled: int = 0
    rows_B: Tensor | None = None  # the order that ``select`` asked for and that is still to be made

    def select(self, rows_B: Tensor) -> None:
        self.rows_B = rows_B if self.rows_B is None else self.rows_B.index_select(0, rows_B)

    def move(self, columns: int) -> None:
        """Into buffers of ``columns`` columns, rows in their order."""
        k_BHCd, v_BHCd = self.buffers
        self.buffers = self._moved(k_BHCd, columns), self._moved(v_BHCd, columns)
        self.rows_B = None

    def _moved(self, x_BHCd: Tensor, columns: int) -> Tensor:
        """(R, H, W, d): the rows of the new order, and W columns."""
        B, H, _, d = x_BHCd.shape
        moved_RHWd = x_BHCd.new_empty(B if self.rows_B is None else len(self.rows_B), H, columns, d)
        old_BHSd, new_RHSd = x_BHCd.narrow(2, 0, self.filled), moved_RHWd.narrow(2, 0, self.filled)
        if self.rows_B is None:
            new_RHSd.copy_(old_BHSd)
        else:
            torch.index_select(old_BHSd, 0, self.rows_B, out=new_RHSd)
        return moved_RHWd


class Cache:
    """Room for ``capacity`` positions of ``rows`` text rows; buffers appear when a slot is first used."""

    def __init__(self, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.length = 0
        self.ragged = False
        self._valid_BS: Tensor | None = None
        self._start = 0
        self._slots: dict[str, _Slot] = {}
        self._kept: dict[str, tuple[Tensor, ...]] = {}

    def claim(self, valid_BT: Tensor, ragged: bool) -> Tensor:
        """Reserve the next T columns for one walk; returns the validity of all columns so far, (B, S).

        Raises ValueError when the buffers are full.
        """
        T = valid_BT.shape[1]
        if self.length + T > self.capacity:
            raise ValueError(f"The cache holds {self.capacity} positions; {self.length + T} are asked for.")
        if self._valid_BS is None:
            self._valid_BS = valid_BT.new_zeros(self.rows, self.capacity)
        self._start, self.length = self.length, self.length + T
        self.ragged = self.ragged or ragged
        self._valid_BS[:, self._start : self.length] = valid_BT
        return self._valid_BS[:, : self.length]

    def append(self, name: str, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values into the claimed columns; returns everything up to them, (B, H, S, d) each."""
        if name not in self._slots:
            self._slots[name] = _Slot((k_BHTd.narrow(2, 0, 0), v_BHTd.narrow(2, 0, 0)))
        slot = self._slots[name]
        if slot.rows_B is not None:
            slot.move(self.length)
        elif slot.buffers[0].shape[2] < self.length:  # new, or reordered at the last step but not at this one
            slot.move(self.capacity)
        for x_BHCd, new_BHTd in zip(slot.buffers, (k_BHTd, v_BHTd), strict=True):
            # narrow: a slice in Python costs three times as much, and steps are short
            x_BHCd.narrow(2, self._start, self.length - self._start).copy_(new_BHTd)
        slot.filled = self.length
        k_BHCd, v_BHCd = slot.buffers
        return k_BHCd.narrow(2, 0, self.length), v_BHCd.narrow(2, 0, self.length)

    def keep(self, name: str, *states: Tensor) -> None:
        """What belongs to rows as a whole (a recurrent state, what a decoder remembers), first axis B: it follows them.

        It takes the place of what was kept under the name.
        """
        self._kept[name] = states

    def kept(self, name: str) -> tuple[Tensor, ...]:
        """What was kept under the name, of the rows as they are now. Raises KeyError where there is nothing."""
        return self._kept[name]

    def select(self, rows_B: Tensor) -> None:
        """Keep (or reorder, or repeat) the rows ``rows_B``; works without gradients only."""
        self.rows = len(rows_B)
        if self._valid_BS is not None:
            self._valid_BS = self._valid_BS.index_select(0, rows_B)
        for slot in self._slots.values():
            slot.select(rows_B)
        for name, states in self._kept.items():
            self._kept[name] = tuple(state.index_select(0, rows_B) for state in states)

    def repeat(self, times: int) -> None:
        """Every row ``times`` times, neighbours first (row b becomes rows b*times .. b*times + times - 1)."""
        device = self._valid_BS.device if self._valid_BS is not None else None
        self.select(torch.arange(self.rows, device=device).repeat_interleave(times))
