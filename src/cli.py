"""What the verbs share at the command line: errors as one sentence."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

from omegaconf.errors import MissingMandatoryValue

from src.errors import UserError


def verb(task: Callable) -> Callable:
    """Decorate a Hydra task: a UserError or a missing value becomes ``error: <sentence>``, exit status 2."""

    @functools.wraps(task)
    def wrapped(config):
        try:
            return task(config)
        except MissingMandatoryValue as error:
            sentence = f"{error.full_key}= is missing; say {error.full_key}=<value> (what it means: conf/)."
        except UserError as error:
            sentence = str(error)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)

    return wrapped
