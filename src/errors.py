"""The one exception that users see as a sentence. Import-light, so that start-up errors come at once."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class UserError(Exception):
    """Something the user can put right: shown as one sentence, without a traceback."""


def present(value: Value | None, what: str) -> Value:
    """``value``, where it has to be there; else ValueError, for whoever wrote the program."""
    if value is None:
        raise ValueError(f"There is no {what} here.")
    return value
