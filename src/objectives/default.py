"""What a mechanism is trained with where the configuration names no objective: its ability decides."""

from __future__ import annotations

from src.errors import UserError
from src.fusion.base import Fusion, Writer
from src.objectives.base import Objective
from src.objectives.next_token import NextToken


def default_objectives(fusion: Fusion) -> dict[str, Objective]:
    """Objectives by name. Raises UserError for an ability that has none yet."""
    if isinstance(fusion, Writer):
        return {"next_token": NextToken()}
    raise UserError(f"fusion={type(fusion).__name__} does not write, so say what it learns by: objective=.")
