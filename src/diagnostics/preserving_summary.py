"""What the likelihoods of ``diagnostics.preserving`` come to, with 95 % intervals over texts, questions and pictures.

Forgetting is nats per token now minus at the start: above 0, something was lost. Of questions what counts is how many
are answered rightly that were not, minus the reverse. Of a start with random weights nothing can be lost: None.

Pictures and knowledge are crossed. With L(p, c) the mean log p of what is true of category c, said of picture p, a pair
of categories has

    D(a, b) = [L(a, a) - L(a, b)] - [L(b, a) - L(b, b)]       means over the pictures of a and of b

in which what a text is worth by itself cancels: who does not see, or knows nothing of what it sees, has 0. A verdict
says "forgets" where the interval of a forgetting lies above 0, "gains" where it lies below, else "open" ("unchanged"
where all is the same); over seeds
(``verdict``) the interval is Student's t over them, and with fewer than five it is but a hint.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from src.comparison.seeds import t_interval
from src.diagnostics.preserving import WAYS
from src.diagnostics.seeing_summary import ratio

ENOUGH = 5  # seeds


def prose_summary(nats: Mapping[str, np.ndarray], tokens_N: np.ndarray, domains: Sequence[str]) -> dict:
    """``nats``: of N windows by way, with or without "start"; ``domains``: of each window."""
    own = np.array(domains)
    told = _prose(nats, tokens_N)
    masks = {domain: own == domain for domain in dict.fromkeys(domains)}
    return {**told, "by_domain": {name: _prose(nats, tokens_N, mask) for name, mask in masks.items()}}


def _prose(nats: Mapping[str, np.ndarray], tokens_N: np.ndarray, mask: np.ndarray | None = None) -> dict:
    here = np.ones(len(tokens_N), bool) if mask is None else mask
    count_N = tokens_N[here]
    told = {"tokens": int(count_N.sum()), "windows": len(count_N)}
    told["nats"] = {way: float(own[here].sum() / count_N.sum()) for way, own in nats.items()}
    told["forgetting"] = None
    if "start" in nats:
        lost = {way: nats[way][here] - nats["start"][here] for way in WAYS}
        told["forgetting"] = {way: ratio(lost_N, count_N, "nats") for way, lost_N in lost.items()}
    return told


def is_right(logp_G: np.ndarray) -> bool:
    """Whether the first ending is the most likely one, and no other as likely."""
    return bool(logp_G[0] > logp_G[1:].max())


def questions_summary(right: Mapping[str, np.ndarray], kinds: Sequence[str]) -> dict:
    """``right``: whether N questions were answered rightly, by way, with or without "start"; ``kinds``: of each."""
    own, n = np.array(kinds), len(kinds)
    told: dict = {"n": n, "right": {way: int(right_N.sum()) for way, right_N in right.items()}, "change": None}
    if "start" in right:
        told["change"] = {way: _change(right["start"], now) for way, now in right.items() if way != "start"}
    told["by_kind"] = {
        kind: {"n": int((own == kind).sum()), **{way: int(r[own == kind].sum()) for way, r in right.items()}}
        for kind in dict.fromkeys(kinds)
    }
    return told


def _change(before_N: np.ndarray, now_N: np.ndarray) -> dict:
    """Gained minus lost, as a number of questions."""
    gained, lost = now_N & ~before_N, before_N & ~now_N
    found = ratio(gained.astype(float) - lost, np.ones(len(gained)), "questions")
    scaled = {name: len(gained) * value for name, value in found.items()}
    return {**scaled, "gained": int(gained.sum()), "lost": int(lost.sum())}


def knowledge_summary(groups: Mapping[str, tuple[np.ndarray, Sequence[str], Sequence[str]]]) -> dict:
    """By group: log p (pictures, categories), the categories, and that of each picture; several of both.

    Every picture has a part in the mean over pairs, which is linear in pictures; these are drawn anew.
    """
    parts, weights, pairs, by_group = [], [], {}, {}
    for name, (logp_PC, categories, shown) in groups.items():
        own_P = np.array([categories.index(category) for category in shown])
        part_P, weight_P = crossed(logp_PC, own_P)
        parts.append(part_P)
        weights.append(weight_P)
        by_group[name] = {"pictures": len(own_P), **ratio(part_P * weight_P, weight_P, "nats")}
        mean_CC = np.stack([logp_PC[own_P == c].mean(0) for c in range(len(categories))])
        for a, b in itertools.combinations(range(len(categories)), 2):
            difference = mean_CC[a, a] - mean_CC[a, b] - mean_CC[b, a] + mean_CC[b, b]
            pairs[f"{categories[a]}, {categories[b]}"] = float(difference)
    part_X, weight_X = np.concatenate(parts), np.concatenate(weights)
    told = {"pictures": len(part_X), **ratio(part_X * weight_X, weight_X, "nats"), "by_group": by_group}
    return {**told, "pairs": pairs, "pairs_above_0": sum(value > 0 for value in pairs.values())}


def crossed(logp_PC: np.ndarray, own_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each picture's part in the mean of D over its category's pairs, and its weight: categories count alike.

    From every column its mean over categories is taken first, so that a part is none of the texts' own worth.
    """
    P, C = logp_PC.shape
    mean_C = np.stack([logp_PC[own_P == c].mean(0) for c in range(C)]).mean(0)
    centred_PC = logp_PC - mean_C
    mine_P = centred_PC[np.arange(P), own_P]
    others_P = (centred_PC.sum(1) - mine_P) / (C - 1)
    return 2 * (mine_P - others_P), 1 / np.bincount(own_P, minlength=C)[own_P]


def scores(told: Mapping) -> dict[str, float | None]:
    """The numbers of a run that are compared, by name; None where there is nothing to lose, or nothing was shown."""
    prose, cloze, grammar = told["prose"], told["cloze"], told["grammar"]
    found = {
        f"preserve/{way}": None if prose["forgetting"] is None else prose["forgetting"][way]["nats"] for way in WAYS
    }
    for name, one in (("cloze", cloze), ("grammar", grammar)):
        change = one["change"]
        found[f"preserve/{name}"] = None if change is None else change["absent"]["questions"] / one["n"]
    found["preserve/knowledge"] = told["knowledge"].get("nats")
    found["preserve/nats"] = prose["nats"]["absent"]
    found |= {
        f"preserve/{name}_right": told[name]["right"]["absent"] / told[name]["n"] for name in ("cloze", "grammar")
    }
    return found


def verdict(told: Mapping) -> str:
    """Of one run: of this model, over texts."""
    if told["prose"]["forgetting"] is None:
        return "began with random weights: there was nothing to forget"
    words = {way: _word(row["low"], row["high"]) for way, row in told["prose"]["forgetting"].items()}
    return "this model " + ", ".join(f"{word} ({way})" for way, word in words.items())


def verdict_over_seeds(values: Sequence[float]) -> str:
    """Of an arm, from the forgetting of each of its seeds."""
    if not np.any(values):
        return "unchanged"
    if len(values) < 2 or np.ptp(values) == 0:
        return "open"
    word = _word(*map(float, t_interval(np.array(values))))
    return word if word == "open" or len(values) >= ENOUGH else f"hint: {word}"


def _word(low: float, high: float) -> str:
    """ "unchanged": to the last bit."""
    return "unchanged" if low == high == 0 else "forgets" if low > 0 else "gains" if high < 0 else "open"
