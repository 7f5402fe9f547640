"""Commands as users give them, each in a process of its own, which begins with the libraries already imported.

Importing them takes a command of a few training steps most of its time. A server of each test session imports them
once, and every command is a fork of it: its own arguments, environment, folder, output and exit code. No module of this
project is imported before the fork. What a command does from the very start of Python is tested without this.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds after which a command is killed: processes that wait for each other in vain
LIBRARIES = ("lightning.pytorch", "torchmetrics", "transformers.models.gpt2.modeling_gpt2")


def run(*command: str, cwd: Path = ROOT, ok: bool = True) -> subprocess.CompletedProcess:
    """``python -m <command>`` in ``cwd``, which must end well or, with ``ok`` False, with another exit code than 0."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        server = _server()
        server.start(out, err, cwd, {**os.environ, "OMP_NUM_THREADS": "1"}, command=command)
        code = server.ended()
        answer = subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))
    assert (code == 0) == ok, answer.stdout + answer.stderr
    return answer


@cache
def _server() -> Server:
    server = Server(__file__)
    atexit.register(server.close)
    return server


class Server:
    """A process that runs ``serve`` in ``file``, from the outside. One command at a time."""

    def __init__(self, file: str):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, file], cwd=ROOT, env=environment, text=True, **pipes)

    def start(self, out: Path, err: Path, cwd: Path, environment: dict[str, str], **asked) -> int:
        """The process id of a command, whose output is added to ``out`` and ``err``."""
        environment = {**environment, "PYTHONPATH": str(ROOT)}
        request = {"out": str(out), "err": str(err), "cwd": str(cwd), "environment": environment, **asked}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def ended(self) -> int:
        """The exit code of the command, once it has ended; negative: the signal that killed it."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve(become: Callable[[dict], None]) -> None:
    """Fork for every request, a line of JSON each; ``become``: the rest of such a process. In a process group of its
    own, which ends with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in LIBRARIES:
        import_module(name)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            os.setsid()
            signal.alarm(LIMIT)
            os._exit(_exit_code(become, json.loads(line)))
        print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # data workers and other processes of a killed one
        print(status, flush=True)


def _exit_code(become: Callable[[dict], None], asked: dict) -> int:
    """As Python itself ends: what was raised is told, threads and exit handlers are waited for."""
    for stream, path, how in ((0, os.devnull, "r"), (1, asked["out"], "a"), (2, asked["err"], "a")):
        with open(path, how) as file:
            os.dup2(file.fileno(), stream)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    code = 0
    try:
        become(asked)
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _module(asked: dict) -> None:
    """``python -m``."""
    sys.argv, sys.path[:0] = asked["command"], [asked["cwd"]]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(_module)
