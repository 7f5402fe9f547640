"""What the verbs share at the command line: errors as one sentence."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from src.errors import UserError


def verb(task: Callable) -> Callable:
    """Decorate a Hydra task: a UserError becomes ``error: <sentence>`` on stderr and exit status 2."""

    @functools.wraps(task)
    def wrapped(config):
        try:
            return task(config)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapped
