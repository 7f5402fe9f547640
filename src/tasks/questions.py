"""task=vqa: questions about pictures, answered in words by who writes, by a class by who learnt to choose one.

accuracy          of the answer that is written or chosen; by kind of question as accuracy/<kind>
gap/accuracy      minus the same of the same questions beside the picture of another one
ranked/accuracy   of who writes: of the likeliest of the commonest answers, to be written behind the question
loss, gap/loss    of who writes: nats per token of the true answers, behind their questions
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from src.build import Parts
from src.captioner import Captioner
from src.contracts import Batch, Example, Text
from src.data.answers import commonest_answers
from src.data.order import circle
from src.decoding.greedy import Greedy
from src.errors import UserError
from src.fusion.base import Fusion, Writer
from src.layers.cache import Cache
from src.layers.chunked_loss import each_cross_entropy
from src.metrics.answers import shares
from src.metrics.vqa import accuracy, answer_rows
from src.tasks.base import Evaluation, Task
from src.tasks.reading import gap_per_token, nats_per_token, read_references

LONGEST = 10  # tokens of an answer; hardly one of VQA's has more than three words
CANDIDATES = 64  # of the commonest answers

Answer = Callable[[Iterable[Batch]], dict[str, str]]


@dataclass
class Answering(Task):
    """Every question of a split, greedily."""

    name = "vqa"
    needs = Fusion

    def check(self, parts: Parts, split: str) -> None:
        super().check(parts, split)
        if parts.source.task != self.name:
            raise UserError(f"task=vqa needs questions with answers, and data={parts.source.name} has none.")
        if not isinstance(parts.captioner.fusion, Writer) and "answer" not in parts.captioner.heads:
            raise UserError("task=vqa asks a mechanism that reads to choose an answer, so it needs objective=answer.")

    def evaluate(self, parts: Parts, split: str) -> Evaluation:
        captioner, data = parts.captioner, parts.data
        examples = list(data.examples(split))
        writes = isinstance(captioner.fusion, Writer)
        answer, started = (writing if writes else choosing)(captioner), time.perf_counter()
        said = answer(tqdm(data.questions(split), desc=f"answers of {split}", unit="batch", leave=False))
        speed = len(said) / (time.perf_counter() - started)
        rows = answer_rows(said, data.references(split), {e.id: e.extra.get("kind", "") for e in examples})
        scores = shares(rows)
        scores |= {"gap/accuracy": self._gap(parts, split, answer, scores["accuracy"])}
        rows = [{**_about(e, said[e.id]), **row} for e, row in zip(examples, rows, strict=True)]
        if not writes:
            return Evaluation(split, scores, rows, speed)
        result = Evaluation(split, scores, rows, speed, decoding={"method": "Greedy", "max_tokens": LONGEST})
        self._rank(parts, split, result)
        self._read(parts, split, result)
        return result

    @staticmethod
    def _gap(parts: Parts, split: str, answer: Answer, right: float | None) -> float | None:
        """What the own picture is worth against another one's."""
        count = len(parts.data.examples(split))
        if right is None or count < 2:
            return None
        if not parts.captioner.fusion.sees:
            return 0.0
        order = circle(count, parts.data.seed)
        shown = dict(zip(order, order[-1:] + order[:-1], strict=True))
        batches = parts.data.questions(split, [shown[i] for i in range(count)])
        said = answer(tqdm(batches, desc="with other pictures", unit="batch", leave=False))
        references = parts.data.references(split)
        return right - sum(accuracy(one, references[id]) for id, one in said.items()) / len(said)

    @staticmethod
    def _rank(parts: Parts, split: str, result: Evaluation) -> None:
        known = commonest_answers(parts.source, CANDIDATES)
        references = parts.data.references(split)
        batches = tqdm(parts.data.questions(split), desc="ranked answers", unit="batch", leave=False)
        values = {id: accuracy(one, references[id]) for id, one in ranked(parts.captioner, batches, known).items()}
        result.rows = [{**row, "ranked/accuracy": values[row["id"]]} for row in result.rows]
        result.scores["ranked/accuracy"] = sum(values.values()) / len(values)
        result.remarks["notes"] = {"ranked/accuracy": f"among the {len(known)} commonest answers of train"}

    @staticmethod
    def _read(parts: Parts, split: str, result: Evaluation) -> None:
        found = read_references(parts, split, shuffled=True)
        loss = nats_per_token(list(found.values()))
        reading = {"loss": loss, "perplexity": math.exp(loss), "gap/loss": gap_per_token(list(found.values()))}
        result.scores = {**result.scores, **reading}
        result.rows = [{**row, **vars(found[row["id"]])} for row in result.rows]


def _about(example: Example, said: str) -> dict:
    """What a row tells beside its scores; ``story``: questions of one picture are drawn together by src.compare."""
    row = {"id": example.id, "caption": f"{example.question} {said}", "references": list(example.captions)}
    return {**row, "story": example.extra["picture"]} if "picture" in example.extra else row


def writing(captioner: Captioner) -> Answer:
    """Answers that go on with the questions."""

    def answer(batches: Iterable[Batch]) -> dict[str, str]:
        said = captioner.caption(batches, Greedy(LONGEST), prompted=True)
        return {id: one.strip() for id, one in said.items()}

    return answer


def choosing(captioner: Captioner) -> Answer:
    """Answers that a head chooses of those that it knows."""

    @torch.no_grad()
    def answer(batches: Iterable[Batch]) -> dict[str, str]:
        captioner.eval()
        head, found = captioner.heads["answer"], {}
        for batch in batches:
            chosen = head(captioner.reading(batch).pooled_BD.float()).argmax(1).tolist()
            found |= {id: head.answers[a] for id, a in zip(batch.ids, chosen, strict=True)}
        return found

    return answer


@torch.no_grad()
def ranked(captioner: Captioner, batches: Iterable[Batch], answers: Sequence[str]) -> dict[str, str]:
    """By id, the one of ``answers`` that is the likeliest to be written behind the question, its end included."""
    captioner.eval()
    lead = "?"  # behind which an answer is encoded as behind a question
    given = len(captioner.tokenizer.encode([lead])[0])
    ids = [row[given:] for row in captioner.tokenizer.encode([f"{lead} {answer}" for answer in answers])]
    found = {}
    for batch in batches:
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            nats_IA = _nats(captioner, batch, ids)
        found |= {id: answers[a] for id, a in zip(batch.ids, nats_IA.argmin(1).tolist(), strict=True)}
    return found


def _nats(captioner: Captioner, batch: Batch, answers: Sequence[list[int]]) -> Tensor:
    """-log p of each of A answers and the end behind it, (I, A): questions are read once."""
    memory, prompt, A, device = captioner.memory(batch), batch.text, len(answers), captioner.device
    longest, rows = max(map(len, answers)), len(batch.ids) * A
    cache = Cache(len(batch.ids), prompt.ids_BT.shape[1] + captioner.fusion.extra_positions + longest)
    first_IV = captioner.step(memory, prompt, cache).logits_BV.float().log_softmax(-1)
    first_A = torch.tensor([ids[0] for ids in answers], device=device)
    cache.repeat(A)
    end = captioner.tokenizer.eos
    ids_AT = torch.tensor([ids + [end] * (longest - len(ids)) for ids in answers], device=device)  # T: longest
    next_AT = torch.tensor([ids[1:] + [end] * (longest + 1 - len(ids)) for ids in answers], device=device)
    length_A1 = torch.tensor([[len(ids)] for ids in answers], device=device)
    valid_AT = torch.arange(longest, device=device) < length_A1
    phi_BT = prompt.phi_BT[:, -1:].repeat_interleave(A, 0).expand(rows, longest)
    text = Text(*(x_AT.repeat(len(batch.ids), 1) for x_AT in (ids_AT, valid_AT)), phi_BT)
    hidden_BTE = captioner.step(memory, text, cache).hidden_BTE
    lm, chosen_B = captioner.language, text.valid_BT.flatten()
    nats_X = each_cross_entropy(
        lambda h: captioner.fusion.readout(lm, h),
        hidden_BTE.flatten(0, 1)[chosen_B],
        next_AT.repeat(len(batch.ids), 1).flatten()[chosen_B],
        lm.spec.vocabulary,
    )
    rest_B = nats_X.new_zeros(rows).index_add_(0, chosen_B.nonzero().flatten() // longest, nats_X)
    return rest_B.view(-1, A) - first_IV.index_select(1, first_A)
