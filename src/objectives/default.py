"""What a mechanism is trained with where the configuration names no objective: its ability decides."""

from __future__ import annotations

from src.errors import UserError
from src.fusion.base import Fusion, Reader, Retriever, Writer
from src.objectives.answer import Answer
from src.objectives.base import Objective
from src.objectives.contrastive import Contrastive
from src.objectives.masked import Masked
from src.objectives.match import Match
from src.objectives.next_token import NextToken


def default_objectives(fusion: Fusion, task: str) -> dict[str, Objective]:
    """Objectives by name; ``task``: what the data are for. Raises UserError for an ability that has none yet."""
    if isinstance(fusion, Writer):
        return {"next_token": NextToken()}
    if isinstance(fusion, Reader):
        return {"answer": Answer()} if task == "vqa" else {"masked": Masked(), "match": Match()}
    if isinstance(fusion, Retriever):
        return {"contrastive": Contrastive()}
    raise UserError(f"fusion={type(fusion).__name__} does not write, so say what it learns by: objective=.")
