"""data=vqa: questions about photographs with the answers of people, in the files of their makers.

VQA and VQAv2 (Goyal et al. 2017, arXiv 1612.00837), OK-VQA (Marino et al. 2019, arXiv 1906.00067): a list of questions
and a list of annotations with ten answers each, over COCO's pictures of 2014. GQA (Hudson & Manning 2019, arXiv
1902.09506): one file of questions with one answer each, over pictures of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from src.contracts import Example
from src.data.base import ListedPictures, picture_path, read_json, stable_share
from src.data.faults import Faults, identity, items, text
from src.data.images import shown
from src.errors import UserError
from src.kinds import Share

QUESTION = '{"question_id": ..., "image_id": ..., "question": ...}'
ANNOTATION = '{"question_id": ..., "answer_type": ..., "answers": [{"answer": ...}, ...]}'
OF_GQA = '{"imageId": ..., "question": ..., "answer": ...}'
LONGEST = 1_000  # characters of a question or an answer
PARTS = ("train", "val")


class Layout(NamedTuple):
    """File names of one part, with {part} in them; ``annotations``: None where answers stand beside the questions."""

    questions: str
    annotations: str | None
    picture: str  # with {id}


COCO = "{part}2014/COCO_{part}2014_{id:>012}.jpg"
LAYOUTS = (
    Layout("v2_OpenEnded_mscoco_{part}2014_questions.json", "v2_mscoco_{part}2014_annotations.json", COCO),
    Layout("OpenEnded_mscoco_{part}2014_questions.json", "mscoco_{part}2014_annotations.json", COCO),
    Layout("{part}_balanced_questions.json", None, "images/{id}.jpg"),
)


class Questions(ListedPictures):
    """``root``: the folder with the lists; ``images``: the folder inside it with that of the pictures.

    Of the questions whose answers are known those for validation are shared out, half to val and half to test, by the
    picture's number. An example is a question: its id, its picture, all answers; ``extra["kind"]`` is the type of its
    answer, where the list tells. Raises UserError when a list is missing, and for a question without answers, an
    annotation without a question, an empty question, and a picture that is missing; ``on_error``, ``max_skipped``: see
    ``data.faults``.
    """

    task = "vqa"

    def __init__(
        self,
        name: str,
        root: str,
        images: str = ".",
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: Share = 0.01,
    ):
        self.name, self.faults = name, Faults(name, on_error, max_skipped)
        self.root, self.pictures = Path(root), Path(root) / images
        self.layout = self._find_layout()
        listed: dict[str, tuple[str, Example]] = {}
        for part in PARTS:
            for example in self._read(part):
                if example.id in listed:
                    raise UserError(f"{self.root} lists the question {shown(example.id)} twice.")
                listed[example.id] = self._split(part, example), example
        self._take(list(listed.values()), self._list("train"))
        if not self._groups:
            raise UserError(f"{self._list('train')} lists no question.")

    def _find_layout(self) -> Layout:
        for layout in LAYOUTS:
            names = [name.format(part=part) for part in PARTS for name in layout[:2] if name]
            there = [name for name in names if (self.root / name).is_file()]
            if there and len(there) < len(names):
                lacking = next(name for name in names if name not in there)
                raise UserError(f"{self.root} holds {there[0]} and no {lacking}; both belong together.")
            if there:
                return layout
        raise UserError(
            f"{self.root} holds no list of questions; download questions, annotations and pictures of VQAv2 "
            "(https://visualqa.org/download.html), OK-VQA (https://okvqa.allenai.org) or GQA "
            "(https://cs.stanford.edu/people/dorarad/gqa), or say where they are with data.root=<folder>."
        )

    def _list(self, part: str) -> Path:
        return self.root / self.layout.questions.format(part=part)

    @staticmethod
    def _split(part: str, example: Example) -> str:
        return "train" if part == "train" else "val" if stable_share("vqa", example.extra["picture"]) < 0.5 else "test"

    def _read(self, part: str) -> Iterator[Example]:
        path, content = self._list(part), read_json(self._list(part))
        if self.layout.annotations is None:
            yield from self._with_answers(part, path, content)
            return
        other = self.root / self.layout.annotations.format(part=part)
        try:
            questions, annotations = items(content, "questions"), items(read_json(other), "annotations")
        except ValueError as error:
            raise UserError(f"{path} and {other.name} are not in VQA's layout: {error}.") from error
        answered: dict[str, Any] = {}
        for number, annotation in enumerate(annotations, 1):
            with self.faults.entry(f"{other}, annotation {number}", ANNOTATION):
                answered[identity(annotation, "question_id")] = annotation
        for number, question in enumerate(questions, 1):
            with self.faults.entry(f"{path}, question {number}", QUESTION):
                id, picture = identity(question, "question_id"), identity(question, "image_id")
                if id not in answered:
                    raise UserError(f"There is no annotation of the question {shown(id)}.")
                annotation = answered.pop(id)
                answers = [text(one, "answer", longest=LONGEST) for one in items(annotation, "answers")]
                kind = text(annotation, "answer_type", default="")
                yield self._example(part, id, picture, text(question, "question", longest=LONGEST), answers, kind)
        for id in answered:
            self.faults.add(f"{other}, annotation of {shown(id)}", "There is no question of this number.")

    def _with_answers(self, part: str, path: Path, content: Any) -> Iterator[Example]:
        if not isinstance(content, Mapping):
            raise UserError(f"{path} is not in GQA's layout: questions by their numbers.")
        for id, question in content.items():
            with self.faults.entry(f"{path}, question {shown(id)}", OF_GQA):
                said, answer = (text(question, key, longest=LONGEST) for key in ("question", "answer"))
                types = question.get("types")
                kind = text(types, "structural", default="") if isinstance(types, Mapping) else ""
                yield self._example(part, id, identity(question, "imageId"), said, [answer], kind)

    def _example(self, part: str, id: str, picture: str, said: str, answers: list[str], kind: str) -> Example:
        """Raises ValueError for a question that asks nothing, or that nobody answers."""
        known = tuple(answer for answer in answers if answer.strip())
        if not said.strip():
            raise ValueError("the question is empty")
        if not known:
            raise ValueError("there is no answer, or only empty ones")
        path = picture_path(self.pictures, self.layout.picture.format(part=part, id=picture))
        return Example(id, known, path, {"picture": picture, "kind": kind.replace("/", "_")}, said)
