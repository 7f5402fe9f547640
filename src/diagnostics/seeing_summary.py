"""Sums of what words see, with 95 % intervals over pictures, which are drawn anew as wholes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.comparison.resampling import draws, interval
from src.diagnostics.seeing import Sight

RESAMPLES = 2_000


def ratio(above_N: np.ndarray, below_N: np.ndarray, unit: str = "seen") -> dict:
    """Sum over sum with its interval; N pictures, a picture without anything of it has 0 in both."""
    statistics_N2 = np.stack([above_N, below_N], 1)
    blocks = draws(len(above_N), 2, RESAMPLES, np.random.default_rng(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = np.concatenate([(sums := weights @ statistics_N2)[:, 0] / sums[:, 1] for weights in blocks])
    low, high = interval(drawn)
    return {unit: float(above_N.sum() / below_N.sum()), "low": low, "high": high}


def summary(sight: Sight) -> dict:
    """What goes into seeing.json, as nats a token, a word, and shares of what is seen in all.

    Shares are None where nothing is seen: where the interval of nats per token reaches 0.
    """
    total = ratio(sight.seen_N, sight.tokens_N)
    blind = total["low"] <= 0
    places = [word.position for word in sight.words]
    return {
        "captions": len(sight.tokens_N),
        "tokens": int(sight.tokens_N.sum()),
        "nats": float(sight.seen_N.sum()),
        "nats_per_token": total,
        "blind": blind,
        "by_kind": _by(sight, [word.kind for word in sight.words]),
        "by_position": {str(position): row for position, row in sorted(_by(sight, places).items())},
        "all_sites_found": sight.complete,
        "sites": _sites(sight, blind) if sight.complete else [],
        "half_entered_at": half_depth(sight) if sight.complete and not blind else None,
    }


def _by(sight: Sight, keys: Sequence) -> dict:
    """n words of each key and what one of them sees, the most seeing first."""
    ids = {id: i for i, id in enumerate(dict.fromkeys(word.id for word in sight.words))}
    picture = np.array([ids[word.id] for word in sight.words])
    values = np.array([word.seen for word in sight.words])
    found = {}
    for key in dict.fromkeys(keys):
        here = np.array([own == key for own in keys])
        count_N = np.bincount(picture[here], minlength=len(ids))
        seen_N = np.bincount(picture[here], values[here], minlength=len(ids))
        found[key] = {"n": int(here.sum()), **ratio(seen_N, count_N)}
    return dict(sorted(found.items(), key=lambda item: -item[1]["seen"]))


def _sites(sight: Sight, blind: bool) -> list[dict]:
    rows = []
    for site, depth, cut_N, upto_N in zip(sight.sites, sight.depths, sight.cut_LN, sight.upto_LN, strict=True):
        rows.append(
            {
                "kind": site.kind,
                "depth": round(depth, 4),
                "seen_when_cut": float(cut_N.sum() / sight.tokens_N.sum()),
                "lost": None if blind else ratio(sight.seen_N - cut_N, sight.seen_N, "share"),
                "entered": None if blind else ratio(upto_N, sight.seen_N, "share"),
            }
        )
    return rows


def half_depth(sight: Sight) -> float:
    """The depth at which half of what is seen has entered, between sites by a straight line."""
    shares = [0.0, *(sight.upto_LN.sum(1) / sight.seen_N.sum())]
    deep = [0.0, *sight.depths]
    i = next(i for i, share in enumerate(shares) if share >= 0.5)
    before = (0.5 - shares[i - 1]) / (shares[i] - shares[i - 1])
    return float(deep[i - 1] + before * (deep[i] - deep[i - 1]))
