"""Score a captioner on a split: captions (or answers in stories), their scores, and how long they took."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from PIL import Image
from tqdm import tqdm

from src.build import Parts
from src.contracts import Batch, Chunk, Document, Example
from src.data.base import stable_number
from src.errors import UserError
from src.fusion.base import Retriever
from src.loading.documents import few_shot, prompts
from src.metrics.answers import Asked, answer_scores, judge, shares
from src.metrics.captions import CaptionScorer
from src.metrics.extra import extra_scores
from src.metrics.retrieval import recall_at_k
from src.metrics.tokens import note_on_tokens
from src.metrics.truth import truth_scores
from src.records.files import seal, write_json, write_jsonl
from src.records.sheet import write_sheet
from src.scenes.world import Scene

CAPTIONS = 5  # of a picture, in retrieval
LOOKING = ("truth", "CIDEr-D")  # scores that fall to the level of a blind model when pictures are shuffled


@dataclass
class Evaluation:
    """``rows``: one dict per picture, for predictions.jsonl.

    ``remarks``: "missing" says why a score is None, "notes" what one has to know of one that is there; by score.
    ``tokens``: what BLEU, ROUGE-L and CIDEr-D counted, of ``metrics.tokens.TOKENS``.
    """

    split: str
    scores: dict[str, float | None]
    rows: list[dict]
    captions_per_second: float | None
    remarks: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: str = "words"


def evaluate(parts: Parts, split: str, metrics: Sequence[str] = (), tokens: str = "words") -> Evaluation:
    """Everything that the data and the mechanism allow; documents get answers to their questions, if they have any.

    ``metrics``: beside BLEU, ROUGE-L and CIDEr-D, of ``metrics.extra``; ``tokens``: what those count.
    """
    if parts.source.interleaved:
        return evaluate_documents(parts, split)
    predictions, speed = _captions(parts, parts.data.pictures(split), split)
    result = score_captions(parts, split, predictions, speed, metrics, tokens)
    loss = split_loss(parts, split)
    result.scores = {"loss": loss, "perplexity": math.exp(loss), **result.scores}
    if isinstance(parts.captioner.fusion, Retriever) and parts.captioner.fusion.compares:
        result.scores |= retrieval_scores(parts, split)
    return result


def evaluate_few_shot(
    parts: Parts, split: str, shots: int, metrics: Sequence[str] = (), tokens: str = "words"
) -> Evaluation:
    """Captions with ``shots`` training pictures and their captions standing before each picture.

    Which ones depends on the run's seed and the picture's id alone. Raises UserError where there is no such thing.
    """
    if parts.source.interleaved or not parts.captioner.fusion.multi_image or shots < 0:
        raise UserError(
            f"shots={shots} needs captioned pictures, a mechanism that reads several pictures (fusion=flamingo), and 0 "
            "or more examples."
        )
    pool = parts.data.examples("train")

    def prompt(example: Example) -> Document:
        chance = Random(stable_number(parts.data.seed, "shots", example.id))
        return few_shot(example, [pool[int(chance.random() * len(pool))] for _ in range(shots)])

    documents = [prompt(example) for example in parts.data.examples(split)]
    predictions, speed = _captions(parts, _prompts(parts, documents), split, prompted=True)
    return score_captions(parts, split, predictions, speed, metrics, tokens)


def evaluate_documents(parts: Parts, split: str) -> Evaluation:
    """Nats per token, and for stories whether each sentence is finished as the right picture tells."""
    asked, documents = _questions(parts, split)
    scores, rows, speed = {"loss": split_loss(parts, split)}, [], None
    if documents:
        said, speed = _captions(parts, _prompts(parts, documents), split, prompted=True)
        verdicts = answer_scores(said, asked)
        scores |= shares(verdicts)
        leads = {document.id: document.chunks[-1].text for document in documents}
        rows = [
            {
                "id": id,
                "caption": f"{leads[id]} {answer}",
                "answer": asked[id].right,
                "verdict": judge(answer, asked[id]),
                **row,
            }
            for (id, answer), row in zip(said.items(), verdicts, strict=True)
        ]
    return Evaluation(split, scores, rows, speed)


def check_scorable(parts: Parts, split: str) -> None:
    """To be called before training: raises UserError where ``evaluate`` could not do its work after it."""
    if parts.source.interleaved:
        _, documents = _questions(parts, split)
        if documents:
            prompts(documents, parts.source, parts.captioner.tokenizer, None, parts.data.max_tokens)


def _questions(parts: Parts, split: str) -> tuple[dict[str, Asked], list[Document]]:
    """What is asked of each picture, by its id, and the documents up to the question."""
    asked, documents = {}, []
    for document in parts.data.examples(split):
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


def _prompts(parts: Parts, documents: list[Document]) -> Iterator[Batch]:
    size = parts.data.batch_size
    for first in range(0, len(documents), size):
        yield parts.data.prompts(documents[first : first + size])


def _captions(
    parts: Parts, batches: Iterable[Batch], split: str, prompted: bool = False
) -> tuple[dict[str, str], float]:
    """Captions by id, and how many there were per second."""
    started = time.perf_counter()
    shown = tqdm(batches, desc=f"captions of {split}", unit="batch", leave=False)
    predictions = parts.captioner.caption(shown, prompted=prompted)
    return predictions, len(predictions) / (time.perf_counter() - started)


def score_captions(
    parts: Parts,
    split: str,
    predictions: dict[str, str],
    speed: float | None,
    metrics: Sequence[str] = (),
    tokens: str = "words",
) -> Evaluation:
    """Standard scores against the references; on scenes also whether captions are true.

    "gap/" scores: minus the same score with shuffled pictures; 0 for a captioner that does not look.
    """
    references = parts.data.references(split)
    examples = {example.id: example for example in parts.data.examples(split)}
    scorer = CaptionScorer(references, tokens)
    scenes = {id: Scene.from_dict(e.extra["scene"]) for id, e in examples.items() if "scene" in e.extra}
    corpus, per_image = _scores(scorer, scenes, predictions)
    shuffled, _ = _scores(scorer, scenes, exchange(predictions, parts.data.seed))
    corpus |= {f"gap/{name}": corpus[name] - shuffled[name] for name in LOOKING if name in corpus}
    extra = extra_scores(metrics, predictions, references, lambda id, how: _pixels(parts, examples[id], how))
    rows = [
        {"id": id, "caption": caption, "references": list(references[id]), **per_image[id], **extra.per_image[id]}
        for id, caption in predictions.items()
    ]
    notes = note_on_tokens(tokens, predictions.values(), itertools.chain.from_iterable(references.values()))
    remarks = {"missing": extra.reasons, "notes": {**notes, **extra.notes}}
    return Evaluation(split, {**corpus, **extra.corpus}, rows, speed, remarks, tokens)


def _pixels(parts: Parts, example: Example, preprocessing: Mapping) -> torch.Tensor:
    """A picture as another encoder than the captioner's wants it."""
    if hasattr(parts.source, "picture"):
        return parts.source.picture(example, preprocessing)
    return parts.source.pixels(example, preprocessing["size"])


def _scores(scorer: CaptionScorer, scenes: dict[str, Scene], predictions: dict[str, str]) -> tuple[dict, dict]:
    """Scores of the corpus, and of each picture by id."""
    scores = scorer.score(predictions)
    if not scenes:
        return dict(scores.corpus), scores.per_image
    truth = truth_scores(predictions, scenes)
    per_image = {id: {**truth.per_image[id], **own} for id, own in scores.per_image.items()}
    return {**truth.corpus, **scores.corpus}, per_image


def exchange(predictions: dict[str, str], seed: int) -> dict[str, str]:
    """Every picture gets the caption of another one, which is what it would get if the pictures were shuffled."""
    ids = list(predictions)
    Random(seed).shuffle(ids)
    return {id: predictions[other] for id, other in zip(ids, ids[1:] + ids[:1], strict=True)}


@torch.no_grad()
def split_loss(parts: Parts, split: str) -> float:
    """Nats per token of the split's first references, one per picture; of all targets of documents."""
    captioner = parts.captioner
    captioner.eval()
    total, count = 0.0, 0
    for batch in parts.data.pictures(split):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            loss, targets = captioner.text_loss(batch)
        total, count = total + loss.item() * int(targets), count + int(targets)
    return total / max(1, count)


@torch.no_grad()
def retrieval_scores(parts: Parts, split: str) -> dict[str, float]:
    """Recall of finding a picture's captions, and a caption's picture, among all of the split."""
    captioner = parts.captioner
    captioner.eval()
    per_picture = min(CAPTIONS, *(len(example.captions) for example in parts.data.examples(split)))
    pictures, texts = [], []
    for batch in parts.data.pictures(split, captions=per_picture):
        batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
        with captioner.autocast():
            pictures.append(captioner.fusion.embed_pictures(captioner.memory(batch)).float())
            texts.append(captioner.fusion.embed_texts(captioner.language, batch.text).float())
    similarity_IB = torch.cat(pictures) @ torch.cat(texts).T
    picture_B = torch.arange(len(similarity_IB)).repeat_interleave(per_picture)
    return recall_at_k(similarity_IB.cpu(), picture_B)


def report(parts: Parts, result: Evaluation, folder: Path, cost: dict, samples: int, data: dict | None = None) -> None:
    """Write metrics.json, predictions.jsonl and samples.png into ``folder``; print the table and some captions.

    ``data``: "name" and options of the "source" that was scored; None where the run's configuration has them.
    """
    metrics = {
        **({"data": data} if data else {}),
        "split": result.split,
        "pictures": len(result.rows),
        "references_sha256": parts.data.fingerprint(result.split),
        "decoding": {"method": type(parts.captioner.decoder).__name__, **vars(parts.captioner.decoder)},
        "tokens": result.tokens,
        "scores": result.scores,
        "cost": {**cost, "captions_per_second": result.captions_per_second},
        **{kind: remarks for kind, remarks in result.remarks.items() if remarks},
    }
    write_json(folder / "metrics.json", metrics)
    if result.rows:
        write_jsonl(folder / "predictions.jsonl", result.rows)
    seal(folder, "metrics.json", "predictions.jsonl")
    where = f"{data['name']}/{result.split}" if data else result.split
    print(table(f"{where}, {len(result.rows)} pictures", result.scores))
    for remarks in result.remarks.values():
        for score, remark in remarks.items():
            print(f"  {score}: {remark}")
    if not result.rows:
        print(f"written: {folder}/metrics.json", flush=True)
        return
    chosen = result.rows[:samples]
    by_id = {example.id: example for example in _pictures(itertools.islice(parts.data.examples(result.split), samples))}
    pictures = [picture(parts, by_id[row["id"]]) for row in chosen]
    write_sheet(folder / "samples.png", pictures, [row["caption"] for row in chosen])
    for row in chosen[:8]:
        print(f"  {row['id']}: {row['caption']}")
    print(f"written: {folder}/metrics.json, predictions.jsonl, samples.png", flush=True)


def _pictures(examples: Iterable[Example | Document]) -> Iterator[Example]:
    for example in examples:
        if isinstance(example, Document):
            yield from (chunk.picture for chunk in example.chunks if chunk.picture)
        else:
            yield example


def picture(parts: Parts, example: Example) -> Image.Image:
    """The picture of one example, as the encoder gets it."""
    size = parts.captioner.vision.spec.image_size if parts.captioner.vision else 224
    return Image.fromarray(parts.source.pixels(example, size).permute(1, 2, 0).numpy())


def table(title: str, scores: dict[str, float | None]) -> str:
    """Scores as an aligned text table."""
    width = max(map(len, scores))
    lines = [f"  {name:<{width}}  {'-' if value is None else format(value, '.4f')}" for name, value in scores.items()]
    return "\n".join([title, *lines])
