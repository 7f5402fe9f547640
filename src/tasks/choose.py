"""Which task: the one that task= names, or what the data are for."""

from __future__ import annotations

from collections.abc import Sequence

from src.build import Parts
from src.contracts import Source
from src.fusion.base import Fusion, Reader, Writer
from src.tasks.base import Task
from src.tasks.captioning import Captioning, no_examples
from src.tasks.matching import Matching
from src.tasks.questions import Answering
from src.tasks.retrieval import Retrieval
from src.tasks.stories import Stories
from src.tasks.zero_shot import ZeroShot

ALL = (Captioning, Stories, Retrieval, Answering, Matching, ZeroShot)
TASKS: dict[str, type[Task]] = {task.name: task for task in ALL}


def choose(
    word: str | None,
    source: Source,
    fusion: Fusion,
    metrics: Sequence[str] = (),
    tokens: str = "words",
    shots: int | None = None,
) -> Task:
    """The task called ``word``; None: what is asked on these data of what can do what ``fusion`` can.

    ``metrics``, ``tokens``, ``shots``: of captions. Raises UserError for ``shots`` of another task.
    """
    name = word or source.task
    if word is None and name == Captioning.name and not isinstance(fusion, Writer):
        name = Matching.name if isinstance(fusion, Reader) else Retrieval.name
    if name == Captioning.name:
        return Captioning(metrics, tokens, shots)
    if shots is not None:
        raise no_examples(shots)
    return TASKS[name]()


def tasks_of(parts: Parts, word: str | None, metrics: Sequence[str] = ()) -> dict[str, Task]:
    """The task of each data set by name; ``word`` speaks of the first one, the others are asked what they are for."""
    sources = {name: one.source for name, one in parts.data_sets().items()}
    main = next(iter(sources))
    fusion = parts.captioner.fusion
    return {name: choose(word if name == main else None, source, fusion, metrics) for name, source in sources.items()}
