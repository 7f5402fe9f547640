"""A list of modules of one class. At run time this is torch's ModuleList; a type checker is told what lies in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

if TYPE_CHECKING:
    Part = TypeVar("Part", bound=nn.Module)

    class ModuleList(nn.Module, Generic[Part]):
        def __init__(self, modules: Iterable[Part] = ()) -> None: ...

        def __getitem__(self, index: int) -> Part: ...

        def __iter__(self) -> Iterator[Part]: ...

        def __len__(self) -> int: ...

else:
    ModuleList = nn.ModuleList
