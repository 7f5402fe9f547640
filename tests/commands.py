"""Commands as users give them, each in a process of its own, which begins with the libraries already imported.

Importing them takes a command of a few training steps most of its time. A process of each test session imports them
once, and every command is a fork of it: its own arguments, environment, folder, output and exit code. No module of this
project is imported before the fork. What a command does from the very start of Python is tested without this.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300  # seconds


def run(*command: str, cwd: Path = ROOT, ok: bool = True) -> subprocess.CompletedProcess:
    """``python -m <command>`` in ``cwd``, which must end well or, with ``ok`` False, with another exit code than 0."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        asked = {"command": command, "cwd": str(cwd), "environment": environment, "out": str(out), "err": str(err)}
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        answer = subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))
    assert (code == 0) == ok, answer.stdout + answer.stderr
    return answer


@cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    import transformers.models.llama.modeling_llama  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            _become(asked)
        alarm = threading.Timer(LIMIT, os.kill, (child, 9))
        alarm.start()
        _, status = os.waitpid(child, 0)
        alarm.cancel()
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict) -> None:
    """The rest of this process is the command."""
    for descriptor, path, how in ((0, os.devnull, "r"), (1, asked["out"], "w"), (2, asked["err"], "w")):
        with open(path, how) as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    module, *arguments = asked["command"]
    sys.argv, sys.path[:0] = [module, *arguments], [asked["cwd"], str(ROOT)]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
