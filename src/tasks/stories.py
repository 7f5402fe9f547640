"""task=stories: is each sentence of a story finished as the right one of its pictures tells?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from src.build import Parts
from src.contracts import Batch, Chunk, Document
from src.loading.documents import prompts
from src.loading.module import CaptionData
from src.metrics.answers import Asked, answer_scores, judge, shares
from src.tasks.base import Evaluation, SpokenTask, split_loss
from src.tasks.captioning import prompt_batches


@dataclass
class Stories(SpokenTask):
    """Nats per token of documents, and the answers to the questions that stand in them, if there are any."""

    name = "stories"
    documents = True
    prompted = True

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        documents = _questions(parts.data, split)[1]
        if documents:
            prompts(documents, parts.source, parts.captioner.tokenizer, None, parts.data.max_tokens, parts.data.columns)

    def ask(self, data: CaptionData, split: str) -> Iterable[Batch]:
        return prompt_batches(data, _questions(data, split)[1])

    def score(self, data: CaptionData, split: str, said: Mapping[str, str]) -> Evaluation:
        """Shares of right answers; no score for documents that ask nothing."""
        if not said:
            return Evaluation(split, {}, [])
        asked, documents = _questions(data, split)
        verdicts = answer_scores(said, asked)
        leads = {document.id: document.chunks[-1].text for document in documents}
        stories = {one.id: document.id for document in data.examples(split) for one in document.pictures}
        rows = [
            {
                "id": id,
                "story": stories[id],  # answers of one are drawn together where runs are compared
                "caption": f"{leads[id]} {answer}",
                "answer": asked[id].right,
                "verdict": judge(answer, asked[id]),
                **row,
            }
            for (id, answer), row in zip(said.items(), verdicts, strict=True)
        ]
        return Evaluation(split, shares(verdicts), rows)

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        result = super().evaluate(parts, split)
        result.scores = {"loss": split_loss(parts, split), **result.scores}
        return result


def _questions(data: CaptionData, split: str) -> tuple[dict[str, Asked], list[Document]]:
    """What is asked of each picture, by its id, and the documents up to the question."""
    asked, documents = {}, []
    for document in data.examples(split):
        questions = document.extra.get("questions", [])
        answers = [question["answer"] for question in questions]
        for number, question in enumerate(questions):
            chunk = document.chunks[number]
            others = frozenset(answers[:number] + answers[number + 1 :])
            asked[chunk.picture.id] = Asked(question["kind"], question["answer"], others)
            documents.append(_question(document, number, question["lead"]))
    return asked, documents


def _question(document: Document, number: int, lead: str) -> Document:
    """The story up to picture ``number`` and the beginning of its sentence; its id is the picture's."""
    asked = document.chunks[number].picture
    return Document(asked.id, (*document.chunks[:number], Chunk(lead, asked)))
