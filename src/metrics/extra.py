"""METEOR, SPICE and CLIPScore behind one interface: the metrics that need more than Python, and may not run here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from src.errors import UserError
from src.metrics.meteor import Unavailable, meteor, meteor_command, meteor_statistics
from src.metrics.spice import spice, spice_command

if TYPE_CHECKING:
    from src.metrics.clip_score import Pictures

# What the configuration calls a metric -> the names of its scores.
METRICS = {"meteor": ("METEOR",), "spice": ("SPICE",), "clipscore": ("CLIPScore", "RefCLIPScore")}
WORDS = ("meteor", "spice")
METEOR_COUNTS = "METEOR counts"  # a picture's row of meteor.meteor_statistics
CLIP = {"model": "ViT-B-32", "pretrained": "openai"}  # what CLIPScore's authors publish numbers of
CLIP_REPOSITORY = "timm/vit_base_patch32_clip_224.openai"  # where open_clip takes these weights from


@dataclass(frozen=True)
class ExtraScores:
    """``corpus``: score name -> number, or None where ``reasons`` says why not; ``per_image``: id -> scores by name.

    Corpus scores are the means of those per image, but METEOR is that of the summed counts, which ``per_image`` has as
    ``METEOR_COUNTS`` (``meteor.meteor``).
    ``notes``: score name -> what one has to know of a number that is there, such as that it means nothing.
    """

    corpus: dict[str, float | None] = field(default_factory=dict)
    per_image: dict[str, dict[str, float | list[int]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def check_names(names: str | Iterable[str], tokens: str = "words") -> list[str]:
    """The names as a list. Raises UserError for one that is no metric; cheap, so to be called before any work.

    ``tokens``: of ``tokens.TOKENS``; METEOR and SPICE know English words only, and refuse to stand beside characters.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in METRICS:
            raise UserError(f"There is no extra metric {name!r}; metrics=[...] knows {', '.join(METRICS)}.")
        if tokens != "words" and name in WORDS:
            raise UserError(
                f"{METRICS[name][0]} reads English words, so it does not go with tokens={tokens}; leave it out."
            )
    return names


def available(name: str) -> str | None:
    """Why the metric ``name`` cannot run here, in one sentence; None where nothing stands in its way.

    Takes less than a second: nothing is loaded, and no network asked. CLIPScore is looked at with its usual weights.
    """
    try:
        {"meteor": meteor_command, "spice": spice_command, "clipscore": _find_clip}[name]()
    except (Unavailable, UserError) as error:
        return str(error)
    return None


def _find_clip() -> None:
    if find_spec("open_clip") is None:
        raise UserError("CLIPScore needs a package: pip install open_clip_torch.")
    from huggingface_hub import try_to_load_from_cache

    # open_clip's usual names; importing the library to ask for them takes seconds
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if not any(isinstance(try_to_load_from_cache(CLIP_REPOSITORY, file), str) for file in files):
        raise UserError(
            f"CLIPScore's weights {CLIP['model']}:{CLIP['pretrained']} are not on this machine; its first use fetches "
            f"{CLIP_REPOSITORY} from the Hugging Face hub, if it can be reached."
        )


def extra_scores(
    names: Iterable[str],
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    pictures: Pictures | None = None,
    clip: Mapping[str, str | None] = CLIP,
) -> ExtraScores:
    """Scores of one caption per picture against its references, both by the same ids, as their authors wrote them.

    ``pictures``: (id, preprocessing) -> pixels, for clipscore; ``clip``: "model" and "pretrained" of ClipScorer.
    Whatever goes wrong in a metric makes its scores None with a reason: hours of training may lie behind this call.
    """
    scores = ExtraScores(per_image={id: {} for id in references})
    for name in check_names(names):
        try:
            corpus, columns, note = _score(name, predictions, references, pictures, clip)
        except Exception as error:
            scores.corpus.update(dict.fromkeys(METRICS[name]))
            scores.reasons.update(dict.fromkeys(METRICS[name], _sentence(METRICS[name][0], error)))
            continue
        scores.corpus.update(corpus)
        for score, column in columns.items():
            for id, value in zip(references, column, strict=True):
                scores.per_image[id][score] = value
        if note:
            scores.notes.update(dict.fromkeys(METRICS[name], note))
    return scores


Column = list  # of a number for each picture, or of its counts


def _score(
    name: str,
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    pictures: Pictures | None,
    clip: Mapping[str, str | None],
) -> tuple[dict[str, float], dict[str, Column], str | None]:
    """Corpus scores, a column per score in the order of ``references``, and what one has to know of them."""
    said, known = [predictions[id] for id in references], list(references.values())
    if name == "meteor":
        counts = meteor_statistics(said, known)
        columns = {"METEOR": meteor(counts).tolist(), METEOR_COUNTS: counts.tolist()}
        return {"METEOR": float(meteor(counts.sum(0)))}, columns, None
    if name == "spice":
        columns, note = {"SPICE": spice(said, known)}, None
    else:
        columns, note = _clip_columns(list(references), said, known, pictures, clip)
    return {score: sum(column) / len(column) for score, column in columns.items()}, columns, note


def _clip_columns(
    ids: list[str], said: list[str], known: list[Sequence[str]], pictures: Pictures | None, clip: Mapping
) -> tuple[dict[str, Column], str | None]:
    if pictures is None:
        raise UserError("CLIPScore looks at the pictures, and none are given.")
    from src.metrics.clip_score import ClipScorer

    scorer = ClipScorer(**clip)
    columns = dict(zip(METRICS["clipscore"], scorer.score(ids, said, known, pictures), strict=True))
    return columns, None if scorer.pretrained else "the weights of the CLIP model are random: this number means nothing"


def _sentence(score: str, error: Exception) -> str:
    if isinstance(error, Unavailable | UserError):
        return str(error)
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{score} failed unexpectedly ({type(error).__name__}: {first})."
