"""The random settings that tuning tries: the same for all arms in the options that they share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException

from src.errors import UserError


def settings(space: Sequence[str], trials: int, seed: int) -> list[tuple[str, ...]]:
    """Overrides of each trial. An option's values depend on the seed and its own line alone.

    ``space``: lines such as "regime.lr_fusion=tag(log, interval(3e-4, 1e-2))", "dropout=choice(0, 0.1)". Raises
    UserError for lines that are no sweep of these kinds.
    """
    columns = [_drawn(line, trials, seed) for line in space]
    return [tuple(column[trial] for column in columns) for trial in range(trials)]


def _drawn(line: str, trials: int, seed: int) -> list[str]:
    try:
        override = OverridesParser.create().parse_override(line)
    except HydraException as error:
        raise UserError(f"{line!r} cannot be read ({str(error).splitlines()[0]}).") from None
    digest = hashlib.sha256(f"{seed}/{line}".encode()).digest()
    chance, sweep, key = np.random.default_rng(list(digest)), override.value(), override.get_key_element()
    if isinstance(sweep, IntervalSweep):
        low, high = float(sweep.start), float(sweep.end)
        if "log" in sweep.tags:
            drawn = np.exp(chance.uniform(np.log(low), np.log(high), trials))
        else:
            drawn = chance.uniform(low, high, trials)
        return [f"{key}={value:.4g}" for value in drawn]
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        choices = [str(choice) for choice in override.sweep_string_iterator()]
        return [f"{key}={choices[place]}" for place in chance.integers(len(choices), size=trials)]
    raise UserError(f"{line!r} is no dimension: use interval(...), range(...) or choice(...).")
