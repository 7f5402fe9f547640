"""The standard streams of a command: UTF-8 whatever the locale, and no word when their reader leaves."""

from __future__ import annotations

import atexit
import io
import os
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """Before a command does anything: begin again in Python's UTF-8 mode where the locale asks for another encoding.

    File names and captions are UTF-8, and Python would neither find nor print them (LC_ALL=C with PYTHONUTF8=0, or a
    locale such as tr_TR.ISO8859-9). A terminal that is told another encoding by itself gets what it lacks escaped.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = sys.__stdout__ = Output.instead_of(sys.stdout)
        atexit.register(_last_words)


class Output(io.TextIOWrapper):
    """Standard output that ends the process quietly, with status 1, when its reader has closed the pipe, as head does.

    A broken pipe of anything else stays an error; setting SIGPIPE back to its default would end the process for those
    too (docs.python.org/3/library/signal.html#note-on-sigpipe).
    """

    @classmethod
    def instead_of(cls, stream: io.TextIOWrapper) -> Output:
        """``stream`` is of no use afterwards."""
        how = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
        return cls(stream.detach(), **how)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._end()

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._end()

    def _end(self):
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # takes what is left, or Python fails as it ends
        sys.exit(1)


def _last_words() -> None:
    with suppress(SystemExit):  # the process ends as it is
        sys.stdout.flush()
