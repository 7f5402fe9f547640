"""Where training is logged: always in the run folder, and with ``logger=wandb`` or ``logger=tensorboard`` there too.

log/metrics.csv is the record; the others mirror it, and what the run folder holds at the end: scores, cost, captions
with their pictures, figures of gates and attention. A mirror that breaks costs no result.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig, OmegaConf

from src.errors import UserError
from src.kinds import Project
from src.records.wandb_runs import Session, require_package, sync_command, time_limit, wandb_mode
from src.tasks.mirrored import (
    config_choices,
    diagnostics,
    folders_of_results,
    results,
    sample_rows,
    sample_table,
)
from src.tasks.wandb_run import identity, run_id

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from src.build import Parts


class Tracker:
    """``logger=csv``: the local log alone. Others add to it.

    Made before any work, so that what is missing is said at once; ``running`` spans training and scoring.
    """

    def __init__(self) -> None:
        self.loggers: list[Logger] = []

    @contextmanager
    def running(self, cfg: DictConfig, run: Path) -> Iterator[None]:
        """``loggers`` are open inside, and closed with an exit status whatever ends the run."""
        from lightning.pytorch.loggers import CSVLogger

        self.loggers = [CSVLogger(str(run), name="", version="log")]
        status = 1
        with ExitStack() as stack:
            try:
                self.open(cfg, run)
                if len(self.loggers) > 1:
                    stack.enter_context(interruptible())
                yield
                status = 0
            except BaseException as error:
                status = exit_status(error)
                raise
            finally:
                with self._excused(run):
                    self.close(status)

    def report(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        """Mirror the results that lie in ``run``."""
        with self._excused(run):
            self.mirror(parts, cfg, run)

    @contextmanager
    def _excused(self, run: Path) -> Iterator[None]:
        """What goes wrong inside is said and ends nothing: the results are safe."""
        try:
            yield
        except Exception as error:
            cause = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"note: {type(self).__name__} has not got everything ({cause}); it is all in {run}.", flush=True)

    # -------------------------------------------------------------------------------------------- what a mirror adds
    def open(self, cfg: DictConfig, run: Path) -> None:
        """Add loggers to the local one."""

    def mirror(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        """Send scores, cost and pictures."""

    def close(self, status: int) -> None:
        """``status``: exit status of the run, 0 for a finished one. Called also when ``open`` failed."""


class TensorBoard(Tracker):
    """``logger=tensorboard``: event files in <run>/tensorboard; the scores stand in the tab HParams."""

    def __init__(self) -> None:
        super().__init__()
        require_package("tensorboard", "logger=tensorboard")

    def open(self, cfg: DictConfig, run: Path) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        board = TensorBoardLogger(str(run), name="", version="tensorboard", default_hp_metric=False)
        board.log_hyperparams({"choices": config_choices(run), **OmegaConf.to_container(cfg, resolve=True)})
        self.loggers.append(board)

    def mirror(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        import numpy as np
        from PIL import Image

        board = self.loggers[-1]
        numbers = {name: value for name, value in results(parts, run).items() if not isinstance(value, str)}
        board.log_hyperparams(board.hparams, numbers)
        for name, _, folder in folders_of_results(parts, run):
            if (folder / "samples.png").is_file():
                with Image.open(folder / "samples.png") as sheet:
                    board.experiment.add_image(f"samples/{name}".rstrip("/"), np.asarray(sheet), dataformats="HWC")

    def close(self, status: int) -> None:
        for board in self.loggers[1:]:
            board.finalize("success" if status == 0 else "failed")


class Wandb(Tracker):
    """``logger=wandb``. ``mode``: online, offline, disabled, or auto: WANDB_MODE, else online when logged in.

    ``labels``: "key=value", tags that panels can also group by, as ``labels.<key>`` of the run's configuration.

    What it writes offline is all in <run>/wandb. There W&B names the pictures of tables by their whole paths: upload
    before the folder is moved, or they are missing (the tables, curves, and pictures outside of tables are not).
    """

    def __init__(
        self,
        project: Project,
        entity: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        job_type: str = "train",
        labels: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.project, self.entity = str(project), entity
        self.mode = wandb_mode(mode)
        self.job_type, self.labels = job_type, labels
        self.session: Session | None = None
        self.run = None

    def open(self, cfg: DictConfig, run: Path) -> None:
        """Start the W&B run at once: also a captioner that is never trained has scores."""
        from lightning.pytorch.loggers import WandbLogger
        from lightning.pytorch.utilities import rank_zero_only

        if self.mode == "disabled" or rank_zero_only.rank:
            return
        self.session = Session(self.mode, run)
        who = identity(cfg, run, self.job_type, self.labels)
        self.run = self.session.begin(project=self.project, entity=self.entity, id=run_id(cfg, run), **who)
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.loggers.append(WandbLogger(project=self.project, save_dir=str(run), experiment=self.run))
        if self.session.mode == "online":
            print(f"W&B: {self.run.url}", flush=True)

    def mirror(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        if self.run is None:
            return
        import wandb

        from src.tasks.results import pictures

        self.run.summary.update(results(parts, run))
        for name, own, folder in folders_of_results(parts, run):
            key = f"samples/{name}".rstrip("/")
            rows = sample_rows(folder)[: cfg.samples]
            if rows:
                images = pictures(own.data, cfg.test_split, cfg.samples)
                self.run.log({key: sample_table(rows, images)})
                self.run.log({f"{key}_sheet": wandb.Image(str(folder / "samples.png"))})
        for kind, files in diagnostics(parts, cfg, run).items():
            self.run.log({f"diagnostics/{kind}": [wandb.Image(str(file), caption=file.stem) for file in files]})

    def close(self, status: int) -> None:
        if self.session is None:
            return
        try:
            complete = self.run is None or self.session.finish(status)
        finally:
            self.session.close()
        if self.run is None:
            return
        if self.session.mode == "offline":
            print("W&B: from another place than this, python -m src.sync run=<folder> uploads it", flush=True)
            print(f"W&B: upload with: {sync_command(Path(self.run.dir).parent)}", flush=True)
        elif not complete:
            print(
                f"note: W&B has not taken everything within {time_limit('FINISH')} s; the rest is kept here.",
                flush=True,
            )
            print(f"W&B: upload with: {shlex.join(['wandb', 'sync', str(Path(self.run.dir).parent)])}", flush=True)
        else:
            print(f"W&B: {self.run.url}", flush=True)


def exit_status(error: BaseException) -> int:
    """What the process will end with; never 0, since something did end it."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code or 1
    return 2 if isinstance(error, UserError) else 1


# ------------------------------------------------------------------------------------------------- the process
@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM (a sweep that is stopped, a batch system's time limit) unwinds like Ctrl-C, so that runs are closed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else sees to it
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
