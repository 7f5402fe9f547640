"""What a forward pass notes down for diagnostics: gates, attention weights, prefixes."""

from __future__ import annotations

from torch import Tensor

Aux = dict[str, list[Tensor]]  # by name, in the order of the layers; None where nobody asks, and nothing is kept


def note(aux: Aux | None, name: str, value: Tensor) -> None:
    """Append ``value`` to the list ``aux[name]``; nothing happens (and nothing is kept) when ``aux`` is None."""
    if aux is not None:
        aux.setdefault(name, []).append(value)


def noted(aux: Aux | None, name: str) -> Tensor | None:
    """What was noted last under ``name``, if anything was."""
    return aux[name][-1] if aux and name in aux else None
