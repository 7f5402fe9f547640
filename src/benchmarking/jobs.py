"""What is measured, and a process of its own for every measurement. Import-light.

A process per measurement because the highest resident memory of a process never falls again: in a shared one, the
largest model would hide all others. It is forked from a server that has imported everything and computed nothing, so
that starting it costs a fraction of a second, and ended before the next one starts, so that nothing runs beside it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from src.errors import UserError

FLOOR = "blind"  # the fusion that is the plain language model


@dataclass(frozen=True)
class Job:
    """One thing to measure. ``kind``: prepare | matrix | pictures | features | train | decode; some have no more.

    ``pack``: all captions of a picture stand in one row of training.
    """

    kind: str
    size: str = ""
    model: str = ""
    regime: str = ""
    peer: bool = False
    pack: bool = False

    def __str__(self) -> str:
        peer, pack = "(peer)" if self.peer else "", "packed" if self.pack else ""
        return " ".join(filter(None, (self.kind, self.size, self.model, peer, self.regime, pack)))


class Unsupported(Exception):
    """A library cannot do what is asked; the message says why."""


@dataclass(frozen=True)
class Failure:
    """Why a job has no result. ``unsupported``: it is none that a library can do."""

    reason: str
    unsupported: bool = False


def family(size: dict) -> str:
    """Of the language model of a size."""
    return size.get("family", "gpt2")


def plan(settings: dict) -> list[Job]:
    """The jobs of one round, in order: the machine's own rates, then each size with the floor first and peers last.

    Ours train on both kinds of rows, one right after the other; decoding has no such rows.
    """
    jobs = [Job("matrix"), Job("pictures")]
    models = [(FLOOR, False), *((name, False) for name in settings["fusions"] if name != FLOOR)]
    models += [(name, True) for name in settings["peers"]]
    for size in settings["sizes"]:
        jobs.append(Job("features", size))
        jobs += [
            Job("train", size, model, regime, peer, pack)
            for regime in settings["regimes"]
            for model, peer in models
            for pack in ([False] if peer else settings["pack"])
        ]
        jobs += [Job("decode", size, model, settings["regimes"][0], peer) for model, peer in models]
    return jobs


class Alone:
    """Calls ``function(*arguments)`` in new processes, one after the other; ``preload``: the module they need."""

    def __init__(self, preload: str):
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([preload])

    def __call__(self, function: Callable, *arguments):
        """What the function returns, or the Failure. Raises its UserError."""
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_answer, args=(theirs, function, arguments))
        process.start()
        theirs.close()  # so that its end is noticed when the process has died
        try:
            answer = ours.recv()
            process.join()
        except EOFError:
            process.join()
            return Failure(f"its process died with status {process.exitcode} (-9 mostly means: out of memory)")
        finally:
            process.kill()  # where we were interrupted
            ours.close()
        if isinstance(answer, UserError):
            raise answer
        return answer


def _answer(connection: Connection, function: Callable, arguments: tuple) -> None:
    try:
        answer = function(*arguments)
    except UserError as error:
        answer = error
    except Unsupported as reason:
        answer = Failure(str(reason), unsupported=True)
    except Exception as error:  # one mechanism or library that fails must not cost the measurements of all others
        answer = Failure(f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}")
    connection.send(answer)
