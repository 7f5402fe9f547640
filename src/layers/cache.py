"""Keys and values of the text seen so far, in buffers allocated once.

A cache belongs to one batch of text rows. A walk through the language model first claims its columns (``claim``), then
every attention of that walk appends to those columns under its own slot name. Beams reorder rows with ``select``.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Room for ``capacity`` positions of ``rows`` text rows; buffers appear when a slot is first used."""

    def __init__(self, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.length = 0
        self.ragged = False
        self._valid_BS: Tensor | None = None
        self._start = 0
        self._slots: dict[str, tuple[Tensor, Tensor]] = {}

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

    def append(self, slot: str, k_BHTd: Tensor, v_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values into the claimed columns; returns everything up to them, (B, H, S, d) each."""
        if slot not in self._slots:
            B, H, _, d = k_BHTd.shape
            self._slots[slot] = (
                k_BHTd.new_empty(B, H, self.capacity, d),
                v_BHTd.new_empty(B, H, self.capacity, v_BHTd.shape[-1]),
            )
        k_BHSd, v_BHSd = self._slots[slot]
        T = self.length - self._start  # narrow: a slice in Python costs three times as much, and steps are short
        k_BHSd.narrow(2, self._start, T).copy_(k_BHTd)
        v_BHSd.narrow(2, self._start, T).copy_(v_BHTd)
        return k_BHSd.narrow(2, 0, self.length), v_BHSd.narrow(2, 0, self.length)

    def select(self, rows_B: Tensor) -> None:
        """Keep (or reorder, or repeat) the rows ``rows_B``, in place."""
        self.rows = len(rows_B)
        if self._valid_BS is not None:
            self._valid_BS = self._valid_BS.index_select(0, rows_B)
        for slot, buffers in self._slots.items():
            self._slots[slot] = tuple(self._pick(x, rows_B) for x in buffers)

    def repeat(self, times: int) -> None:
        """Every row ``times`` times, neighbours first (row b becomes rows b*times .. b*times + times - 1)."""
        device = self._valid_BS.device if self._valid_BS is not None else None
        self.select(torch.arange(self.rows, device=device).repeat_interleave(times))

    def _pick(self, x_BHSd: Tensor, rows_B: Tensor) -> Tensor:
        # Only the columns in use are copied: the rest of the buffer holds nothing yet.
        picked = x_BHSd.new_empty(len(rows_B), *x_BHSd.shape[1:])
        picked[:, :, : self.length] = x_BHSd[:, :, : self.length].index_select(0, rows_B)
        return picked
