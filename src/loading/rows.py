"""How texts become the rows that a model is trained on: one text a row, or all captions of a picture in one.

    <bos> a dog runs   <bos> the brown dog   <bos> dog on grass  ...        segment 1 1 1 1  2 2 2 2  3 3 3 3

Rows are padded to the longest of a batch, and the sums of several captions differ less than captions do; what stands
before a text, such as the visual tokens of a prefix, stands there once for all captions of its picture. No text sees
another, positions begin anew in each (``Text.segment_BT``), and nothing is asked for across a border, so that losses
and gradients are those of one text a row.

A text's last column is asked for nothing. It is left out, but where the text is open there, or where training's walk
reads it (``Writer.reads_ends``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.contracts import Batch, Text, View, present
from src.objectives.base import Chance, Objective

LONGEST = 512  # columns of a row of several texts: what attention costs grows with their square


@dataclass(frozen=True)
class Rows:
    """``pack``: texts of one context come into one row, as many as ``LONGEST`` columns hold; ``ends``: their last
    columns are kept."""

    pack: bool
    ends: bool

    def lay(self, view: View, contexts: int) -> View:
        """The view with its texts, whose columns its target counts, as rows; those of a context stay neighbours.

        Whole-row labels, or no target at all, and prompts with padding on the left leave everything as it is. A text
        with open columns stays alone in its row: visual tokens before it may see them, and could not be shared with
        other texts.
        """
        if view.label_B is not None or view.target is None or view.text.ragged:
            return view
        read_BT = self._read(view.text)
        per_row = _texts_per_row(read_BT.sum(1), contexts) if self.pack and view.text.open_BT is None else 1
        return _laid(view, read_BT, contexts, per_row) if per_row > 1 else _cut(view, read_BT)

    def _read(self, text: Text) -> Tensor:
        """Which columns are read at all, (B, T)."""
        if self.ends:
            return text.valid_BT
        last_BT = text.valid_BT & (text.valid_BT.flip(1).cumsum(1).flip(1) == 1)
        return text.valid_BT & ~(last_BT if text.open_BT is None else last_BT & ~text.open_BT)


APART = Rows(pack=False, ends=True)  # as texts come


def with_views(batch: Batch, objectives: Mapping[str, Objective], chance: Chance, rows: Rows) -> Batch:
    """``batch`` as every objective sees it, in ``rows``. Texts that nobody tells apart may share any row."""
    views = {name: objective.view(batch, chance) for name, objective in objectives.items()}
    seen = (batch.pixels_IM3hw, batch.visual, batch.image_valid_IM)
    contexts = 1 if all(one is None for one in seen) else len(batch.ids)
    return replace(batch, views={name: rows.lay(view, contexts) for name, view in views.items()})


def _texts_per_row(length_B: Tensor, contexts: int) -> int:
    """The most neighbours of a context that ``LONGEST`` columns hold in every row; at least 1."""
    length_IG = length_B.view(contexts, -1)
    G = length_IG.shape[1]
    for per_row in range(G, 1, -1):
        filled_IG = torch.nn.functional.pad(length_IG, (0, -G % per_row))
        if filled_IG.view(contexts, -1, per_row).sum(-1).max() <= LONGEST:
            return per_row
    return 1


def _cut(view: View, read_BT: Tensor) -> View:
    """One text a row, without the last column where no text reads it."""
    text, T = view.text, read_BT.shape[1]
    if T == 1 or read_BT[:, -1].any():
        return view
    target = present(view.target, "target in the view")
    at_X = target.at_X // T * (T - 1) + target.at_X % T
    return replace(view, text=text.columns(None, -1), target=replace(target, at_X=at_X))


def _laid(view: View, read_BT: Tensor, contexts: int, per_row: int) -> View:
    """``per_row`` texts of a context one after the other in each row (its last row may have fewer)."""
    text, target, (B, T) = view.text, present(view.target, "target in the view"), read_BT.shape
    G = B // contexts  # texts of a context
    rows = -(-G // per_row)  # of a context
    b_B = torch.arange(B)
    g_B = b_B % G
    row_B, segment_B = b_B // G * rows + g_B // per_row, g_B % per_row + 1
    length_B = read_BT.sum(1)
    before_B = length_B.cumsum(0) - length_B
    first_B = before_B - before_B[b_B - (segment_B - 1)]  # the column where a text begins
    S = int((first_B + length_B).max())
    column_BT = first_B[:, None] + read_BT.cumsum(1) - 1
    place_BT = row_B[:, None] * S + column_BT
    from_X = read_BT.flatten().nonzero().flatten()  # X: columns that are read
    to_X = place_BT.flatten()[from_X]

    def moved(x_BT: Tensor | None) -> Tensor | None:
        if x_BT is None:
            return None
        laid = x_BT.new_zeros(contexts * rows * S)
        return laid.index_copy(0, to_X, x_BT.flatten()[from_X]).view(-1, S)

    return replace(
        view,
        text=Text(
            ids_BT=present(moved(text.ids_BT), "ids"),
            valid_BT=present(moved(text.valid_BT), "validity"),
            phi_BT=present(moved(text.phi_BT), "pictures"),
            target_BT=moved(text.target_BT),
            segment_BT=moved(segment_B[:, None].expand(B, T)),
        ),
        target=replace(target, at_X=place_BT.flatten()[target.at_X]),
    )
