"""Trainings in processes that are forked from one that has imported everything, so that many can be killed in a minute.

``python tests/trainings.py`` serves requests, a line of JSON each (see ``Trainings.run``). It answers with the process
id of the training and, when that has ended, with its exit status. The training is ``python -m src.train`` with
these arguments in a process group of its own; a byte per batch goes to the file ``steps``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 300  # seconds after which a training is killed: processes that wait for each other in vain
ROOT = Path(__file__).resolve().parents[1]


class Trainings:
    """The server, from the outside."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, text=True, **pipes)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()

    def run(
        self,
        folder: Path,
        *arguments: str,
        kill: tuple[int, int, bool] | None = None,
        stop: tuple[int, int] | tuple[int, int, bool] | None = None,
        **environment: str,
    ) -> tuple[int, str]:
        """Exit status and output of a training in ``folder``.

        ``kill``: a signal, after how many batches of this process, and whether to its group or its leader alone. A few
        milliseconds are added, so that it comes anywhere: in a step, in writing a checkpoint, in a validation.
        ``stop``: a signal, and the batch of this process at whose beginning exactly it comes; True: and SIGKILL in the
        next validation.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        log, steps = folder.with_suffix(".log"), folder.with_suffix(".steps")
        request = {"arguments": [*arguments, f"hydra.run.dir='{folder}'"], "log": str(log), "steps": str(steps)}
        print(json.dumps({**request, "stop": stop, "environment": environment}), file=self.server.stdin, flush=True)
        pid = int(self.server.stdout.readline())
        if kill is not None:
            self._kill(pid, *kill, steps)
        status = os.waitstatus_to_exitcode(int(self.server.stdout.readline()))
        return status, log.read_text(errors="replace")

    @staticmethod
    def _kill(pid: int, number: int, batch: int, group: bool, steps: Path) -> None:
        deadline = time.monotonic() + 120
        while not steps.exists() or steps.stat().st_size < batch:
            if time.monotonic() > deadline or not Path(f"/proc/{pid}/fd/1").exists():
                return  # it has ended by itself, which its status tells
            time.sleep(0.002)
        time.sleep(random.Random(f"{steps}{batch}").uniform(0, 0.03))
        (os.killpg if group else os.kill)(pid, number)


def serve() -> None:
    import lightning
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import src.train

    class Beacon(lightning.Callback):
        """Tells the batches, and does what ``stop`` says to its own process."""

        def __init__(self, path: str, stop: list[int] | None):
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self.signal, self.batches, self.kill = (*stop, False)[:3] if stop else (0, 0, False)

        def on_train_batch_start(self, *_) -> None:
            os.write(self.file, b".")
            self.batches -= 1
            if self.batches == 0:
                os.kill(os.getpid(), self.signal)

        def on_validation_start(self, *_) -> None:
            if self.kill and self.batches <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def child(request: dict) -> None:
        os.setsid()
        signal.alarm(LIMIT)
        os.environ |= request["environment"]
        output = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = [str(ROOT / "src" / "train.py"), *request["arguments"]]
        sys.modules["__main__"].__spec__ = importlib.util.find_spec("src.train")  # what DDP starts again
        make = src.train.make_trainer

        def with_beacon(*arguments):
            trainer, meter = make(*arguments)
            trainer.callbacks.insert(0, Beacon(request["steps"], request["stop"]))
            return trainer, meter

        src.train.make_trainer = with_beacon
        src.train.main()

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
            sys.exit(0)
        print(pid, flush=True)
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # data workers and other processes of a killed one
        print(status, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    serve()
