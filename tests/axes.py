"""Axis letters, held against the tensors: ``h_BTD`` has three axes, and its T is that of the names beside it.

The legend stands in src/contracts.py. Within one call of one function, equal letters are equal sizes, and a digit is a
size itself (``reads_BT1``). Some letters mean the same everywhere, but for the bricks of src/layers: ``Axes(D=32)``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import torch

SOURCE = Path(__file__).resolve().parents[1] / "src"
SUFFIX = re.compile(r"_(?=[a-z]*[A-Z0-9])([A-Za-z0-9]+)$")  # with a capital or a digit, or it is a word: image_valid


class Axes:
    """What was found wrong, and in which functions names were looked at. ``everywhere``: sizes by letter."""

    def __init__(self, **everywhere: int):
        self.everywhere = everywhere
        self.wrong: list[str] = []
        self.functions: set[CodeType] = set()

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Within, every function of the project is looked at when it returns."""
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, _) -> None:
        code = frame.f_code
        if event == "return" and Path(code.co_filename).is_relative_to(SOURCE):
            brick = Path(code.co_filename).is_relative_to(SOURCE / "layers")
            for fault in self._faults(code, frame.f_locals, {} if brick else self.everywhere):
                if (line := f"{Path(code.co_filename).relative_to(SOURCE)}, {code.co_name}: {fault}") not in self.wrong:
                    self.wrong.append(line)

    def _faults(self, code: CodeType, names: dict[str, object], everywhere: dict[str, int]) -> Iterator[str]:
        sizes = {letter: (size, "the model") for letter, size in everywhere.items()}
        for name, value in names.items():
            found, shape = SUFFIX.search(name), _shape(value)
            if found is None or shape is None:
                continue
            self.functions.add(code)
            if len(shape) != len(found[1]):
                yield f"{name} has {len(shape)} axes"
                continue
            for letter, size in zip(found[1], shape, strict=True):
                known = (int(letter), "its name") if letter.isdigit() else sizes.setdefault(letter, (size, name))
                if size != known[0]:
                    yield f"{letter} of {name} is {size}, of {known[1]} {known[0]}"


def _shape(value: object) -> tuple[int, ...] | None:
    """Of a tensor, or of a row of alike ones, which is one axis more."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, list | tuple) and value and all(isinstance(x, torch.Tensor) for x in value):
        shapes = {tuple(x.shape) for x in value}
        return (len(value), *shapes.pop()) if len(shapes) == 1 else None
    return None
