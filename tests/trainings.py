"""Trainings that can be killed at a given batch: many in a minute, as they begin with the libraries imported.

``python tests/trainings.py`` serves them, see ``commands``. A byte per batch goes to the file ``steps``.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import sys
import time
from pathlib import Path

from commands import ROOT, Server, serve


class Trainings(Server):
    """``python -m src.train``, from the outside."""

    def __init__(self) -> None:
        super().__init__(__file__)

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
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        arguments = (*arguments, f"hydra.run.dir='{folder}'")
        pid = self.start(log, log, ROOT, environment, arguments=arguments, steps=str(steps), stop=stop)
        if kill is not None:
            self._kill(pid, *kill, steps)
        return self.ended(), log.read_text(errors="replace")

    @staticmethod
    def _kill(pid: int, number: int, batch: int, group: bool, steps: Path) -> None:
        deadline = time.monotonic() + 120
        while not steps.exists() or steps.stat().st_size < batch:
            if time.monotonic() > deadline or not Path(f"/proc/{pid}/fd/1").exists():
                return  # it has ended by itself, which its status tells
            time.sleep(0.002)
        time.sleep(random.Random(f"{steps}{batch}").uniform(0, 0.03))
        (os.killpg if group else os.kill)(pid, number)


def training(asked: dict) -> None:
    """``python -m src.train`` with a callback that tells the batches."""
    import lightning

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

    sys.argv = [str(ROOT / "src" / "train.py"), *asked["arguments"]]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("src.train")  # what DDP starts again
    make = src.train.make_trainer

    def with_beacon(*arguments):
        trainer, meter = make(*arguments)
        trainer.callbacks.insert(0, Beacon(asked["steps"], asked["stop"]))
        return trainer, meter

    src.train.make_trainer = with_beacon
    src.train.main()


if __name__ == "__main__":
    serve(training)
