"""All that a run's model is asked, in the ways of ``diagnostics.preserving``: prose, facts, grammar, pictures.

Each part comes with its ``items``: every window and every question, with what each way makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch

from src.captioner import Captioner
from src.contracts import Memory
from src.diagnostics.preserving import (
    COLUMNS,
    Asked,
    Way,
    alone,
    asked,
    likelihoods,
    windows,
    with_pictures,
    without_picture,
)
from src.diagnostics.preserving_summary import is_right, knowledge_summary, prose_summary, questions_summary
from src.language.base import LanguageModel
from src.loading.module import CaptionData
from src.probes.prose import Prose, read_prose
from src.probes.questions import Group, Question, facts, groups, minimal_pairs
from src.records.weights import tensor_hash

LEAST = 2  # pictures of a category, for knowledge to be asked of it
NAMED = 3  # captions of a picture that name what it shows

Known = dict[tuple[str, str, str], list[np.ndarray]]  # of starts: by their hash, their tokenizer's, and what was asked


@dataclass(frozen=True)
class Asking:
    """A model in its ``ways``; one that is the same as another is asked once. ``sha256``: of the start, or "".

    ``known``: what starts have answered before.
    """

    captioner: Captioner
    ways: Mapping[str, Way]
    sha256: str
    known: Known = field(repr=False)

    def answers(self, questions: Sequence[Asked], among: Sequence[str], title: str) -> dict[str, list[np.ndarray]]:
        """log p of all endings, by those of the ways ``among`` that there are. ``title``: tells questions apart."""
        found: dict[str, list[np.ndarray]] = {}
        for name in (name for name in among if name in self.ways):
            way, key = self.ways[name], (self.sha256, self.captioner.tokenizer_hash, title)
            is_start = way is self.ways.get("start")
            twin = next((other for other in found if self.ways[other] is way), None)
            again = found[twin] if twin else self.known.get(key) if is_start else None
            found[name] = likelihoods(way, questions, f"{title}, {name}") if again is None else again
            if is_start:
                self.known[key] = found[name]
        return found


def asking(
    captioner: Captioner,
    first: LanguageModel | None,
    data: CaptionData,
    split: str,
    places: Sequence[int],
    known: Known,
) -> Asking:
    """``first``: the language model that it began from, None for a random one; ``places``: of irrelevant pictures."""
    weights = alone(captioner.language)
    ways = {"weights": weights, "absent": weights, "irrelevant": weights}
    if captioner.fusion.sees:
        ways["absent"] = without_picture(captioner)
        ways["irrelevant"] = with_pictures(captioner, memory(captioner, data, split, places))
    if first is None:
        return Asking(captioner, ways, "", known)
    start = weights if first is captioner.language else alone(first.eval().to(captioner.device))
    return Asking(captioner, {"start": start, **ways}, tensor_hash(first.state_dict()), known)


@torch.no_grad()
def memory(captioner: Captioner, data: CaptionData, split: str, places: Sequence[int]) -> Memory:
    """What the mechanism keeps of the pictures at these places of the split."""
    kept = Memory()
    for batch in data.pictures_at(split, places):
        own = captioner.memory(captioner.transfer_batch_to_device(batch, captioner.device, 0))
        kept = own.behind(kept) if kept else own
    return kept


# --------------------------------------------------------------------------------------------------------------------
# texts
# --------------------------------------------------------------------------------------------------------------------
def prose_part(asking: Asking, tokens: int) -> dict:
    """Prose of all domains that are installed, equally much of each."""
    texts, left_out = read_prose()
    cut = windows_of(asking, texts, tokens)
    questions = [Asked([], [ids], number) for number, (_, ids) in enumerate(cut)]
    columns = max(len(ids) for _, ids in cut)
    logp = asking.answers(questions, list(asking.ways), f"prose of {tokens} tokens by {columns}")
    nats = {way: -np.concatenate(own) for way, own in logp.items()}
    return {
        **prose_summary(nats, np.array([len(ids) for _, ids in cut]), [text.domain for text, _ in cut]),
        "texts": [{"domain": text.domain, "text": text.name, "sha256": text.sha256} for text in texts],
        "left_out": left_out,
        "items": [
            {"probe": "prose", "domain": text.domain, "text": text.name, "tokens": len(ids)}
            | {way: float(own[number]) for way, own in nats.items()}
            for number, (text, ids) in enumerate(cut)
        ],
    }


def windows_of(asking: Asking, texts: Sequence[Prose], tokens: int) -> list[tuple[Prose, list[int]]]:
    """Windows that fit behind all that may stand before them, of all domains in turn."""
    captioner, found = asking.captioner, []
    columns = min(COLUMNS, captioner.language.spec.context - captioner.fusion.extra_positions)
    columns -= max(len(way.start) for way in asking.ways.values())
    domains = list(dict.fromkeys(text.domain for text in texts))
    for domain in domains:
        own = [text for text in texts if text.domain == domain]
        cut = windows(captioner.tokenizer, [text.text for text in own], tokens // len(domains), columns)
        found += [(own[place], ids) for place, ids in cut]
    return found


def questions_part(asking: Asking, name: str) -> dict:
    """``name``: cloze, or grammar, which is not asked behind pictures."""
    if name == "cloze":
        return _questions(asking, name, facts(), ("start", "absent", "irrelevant"))
    return _questions(asking, name, minimal_pairs(), ("start", "absent"))


def _questions(asking: Asking, name: str, questions: Sequence[Question], among: Sequence[str]) -> dict:
    tokenizer = asking.captioner.tokenizer
    rows = [asked(tokenizer, question.sentences, number) for number, question in enumerate(questions)]
    logp = asking.answers(rows, among, name)
    right = {way: np.array([is_right(one) for one in own]) for way, own in logp.items()}
    items = [
        {"probe": name, "kind": question.kind, "sentences": question.sentences}
        | {way: own[number].tolist() for way, own in logp.items()}
        for number, question in enumerate(questions)
    ]
    return {**questions_summary(right, [question.kind for question in questions]), "items": items}


# --------------------------------------------------------------------------------------------------------------------
# pictures
# --------------------------------------------------------------------------------------------------------------------
def knowledge_part(captioner: Captioner, data: CaptionData, split: str, most: int) -> dict:
    """Pictures crossed with what is true of things in them; ``left_out``: a sentence, where they show too few.

    ``most``: pictures of a category.
    """
    shown = shown_in(data, split, groups(), most)
    counts = {category: len(places) for category, places in shown.items()}
    kept = {group.name: [one for one in group.names if counts[one] >= LEAST] for group in groups()}
    asked_of = [group for group in groups() if len(kept[group.name]) > 1]
    if not asked_of:
        there = sum(count >= LEAST for count in counts.values())
        sentence = (
            f"{there} of the {len(counts)} categories are shown by {LEAST} pictures of split={split}, and it takes two "
            "of one group."
        )
        return {"left_out": sentence, "pictures_of": counts, "items": []}
    found, items = {}, []
    for group in asked_of:
        own = kept[group.name]
        places = {place: category for category in own for place in shown[category]}
        logp_PSC, sentences = _crossed(captioner, data, split, group, own, list(places))
        found[group.name] = (logp_PSC.mean(1), own, list(places.values()))
        about = [{"probe": "knowledge", "picture": data.examples(split)[p].id, "shows": c} for p, c in places.items()]
        items += [
            {**picture, "sentences": one, "now": logp_C.tolist()}
            for picture, logp_SC in zip(about, logp_PSC, strict=True)
            for one, logp_C in zip(sentences, logp_SC, strict=True)
        ]
    return {**knowledge_summary(found), "pictures_of": counts, "items": items}


def _crossed(
    captioner: Captioner, data: CaptionData, split: str, group: Group, categories: list[str], places: list[int]
) -> tuple[np.ndarray, list[list[str]]]:
    """log p (pictures, properties, categories), and the sentences, (properties, categories)."""
    columns = [list(group.names).index(category) for category in categories]
    sentences = [[one[column] for column in columns] for one in group.sentences]
    if not captioner.fusion.sees:  # it says the same of all pictures
        return np.zeros((len(places), len(sentences), len(columns))), sentences
    way = with_pictures(captioner, memory(captioner, data, split, places))
    tokenizer = captioner.tokenizer
    rows = chain.from_iterable([asked(tokenizer, one, picture) for one in sentences] for picture in range(len(places)))
    logp = likelihoods(way, list(rows), f"knowledge, {group.name}")
    return np.array(logp).reshape(len(places), len(sentences), len(columns)), sentences


def shown_in(data: CaptionData, split: str, groups: Sequence[Group], most: int) -> dict[str, list[int]]:
    """Places of pictures that show each category: at least ``NAMED`` captions name it, and none names another one."""
    patterns = {category: one for group in groups for category, one in group.patterns.items()}
    found: dict[str, list[int]] = {category: [] for category in patterns}
    if not data.source.has_images:
        return found
    for place, example in enumerate(data.examples(split)):
        captions = [caption.lower() for caption in example.captions]
        named = {category: sum(bool(one.search(own)) for own in captions) for category, one in patterns.items()}
        there = [category for category, count in named.items() if count]
        if len(there) == 1 and named[there[0]] >= NAMED and len(found[there[0]]) < most:
            found[there[0]].append(place)
    return found
