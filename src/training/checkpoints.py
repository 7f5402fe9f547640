"""Checkpoints that survive kills and faults, and going on from them as if there had been no break."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import BinaryIO

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from omegaconf import DictConfig
from torch import distributed

from src.config.added_keys import run_config
from src.config.make import config_hash, counted
from src.errors import UserError
from src.layers.processes import processes
from src.records.files import write_bytes, written
from src.records.folder import checkpoint_path, result, resumable
from src.records.weights import damage
from src.training.optimiser import trunk_steps
from src.training.signals import Interrupts, Stopped, requeue
from src.training.soundness import require_finite_weights

PREVIOUS = "previous.ckpt"  # what last.ckpt was before it was written for the last time
TRUNK = "trunk.ckpt"  # before a cool-down


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside and renames, and keeps the last but one: whatever happens while writing, one good file is there."""

    def save_checkpoint(self, checkpoint: dict, path, storage_options=None) -> None:
        path = Path(path)
        previous, goes_on = path.with_name(PREVIOUS), path.name == "last.ckpt" and path.exists()
        if goes_on:
            previous.unlink(missing_ok=True)  # makes room: the last one stays until the new one is whole
        with written(path) as file:  # at once: a copy in memory would be as large as weights and moments together
            remembering = Remembering(file)
            try:
                torch.save(checkpoint, remembering)
            except RuntimeError as error:
                raise remembering.error or error from None
            file.flush()
            if goes_on:
                path.replace(previous)


class Remembering:
    """A file for torch.save, which does not say why a write failed: ``error`` does."""

    def __init__(self, file: BinaryIO):
        self.file, self.flush = file, file.flush
        self.error: OSError | None = None

    def write(self, content) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``, by validation loss, or ``by_captions`` by their CIDEr-D (``CaptionValidation``). Lightning's own
    forgets the best so far in another folder."""

    def __init__(self, run: Path, by_captions: bool = False):
        score, mode = ("val/CIDEr-D", "max") if by_captions else ("val/loss", "min")
        super().__init__(run / "checkpoints", "best", score, mode=mode, enable_version_counter=False)

    def load_state_dict(self, state_dict: dict) -> None:
        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        moved = {key: here(state_dict[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class LastCheckpoint(Checkpoint):  # Lightning calls a Checkpoint behind other callbacks, whose state is in it
    """``last.ckpt`` after every validation, and when a signal asks the training to stop.

    (``ModelCheckpoint(save_last=True)`` writes it after those validations only that were the best so far.) It is never
    written between batches whose gradients are added up, which no checkpoint holds: validations come after steps too.

    A signal lets all processes finish the step under way, save and end. A validation that is due or under way is
    finished first: the checkpoint after it knows whether it was the best. ``again``: under SLURM, SIGUSR1
    (sbatch --signal=USR1@60) also puts the job into the queue again.
    """

    def __init__(self, run: Path, interrupts: Interrupts, again: bool):
        self.path, self.interrupts, self.again = run / "checkpoints" / "last.ckpt", interrupts, again
        self.step = 0  # the last one that was finished
        self.agreed, self.group = 0, None  # the signal that all processes know of, and how they talk about it

    def on_train_start(self, trainer, module) -> None:
        # In place of Lightning's handlers, which save in the middle of a step and talk to the other processes from
        # inside of the handler; it puts back what was there before when training ends.
        self.interrupts.install()
        self.interrupts.under_way, self.step = True, trainer.global_step
        if trainer.world_size > 1:
            self.group = distributed.new_group(backend="gloo")  # on CPUs: no step waits for a GPU

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        if trainer.global_step == self.step:
            return  # the next batch belongs to the same step
        self.step, self.agreed = trainer.global_step, self._agree()
        if self.agreed and not validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self._save(trainer)

    def on_train_batch_start(self, trainer, module, batch, index) -> None:
        self._stop(trainer)  # now the log knows the last step too

    def on_train_end(self, trainer, module) -> None:
        self.interrupts.under_way, self.agreed = False, self._agree()
        self._stop(trainer)

    def on_exception(self, trainer, module, exception) -> None:
        self.interrupts.under_way = False
        if trainer.is_global_zero and not isinstance(exception, SystemExit):
            print(flush=True)  # a progress bar stands in the line, and sweeps look for lines that begin with "error:"

    def _save(self, trainer) -> None:
        require_finite_weights(trainer)
        trainer.save_checkpoint(self.path)

    def _agree(self) -> int:
        """The signal that any process has noted, or 0."""
        noted = torch.tensor(self.interrupts.noted)
        if self.group is not None:
            distributed.all_reduce(noted, distributed.ReduceOp.MAX, self.group)
        return int(noted)

    def _stop(self, trainer) -> None:
        if not self.agreed:
            return
        trainer.strategy.barrier()  # nobody's connections are closed before all have saved
        if self.again and self.agreed == signal.SIGUSR1 and trainer.is_global_zero and SLURMEnvironment.detect():
            requeue(os.environ)
        raise Stopped(self.agreed, self.step, trainer.is_global_zero)


class TrunkCheckpoint(Checkpoint):
    """``trunk.ckpt``, before the cool-down of a constant learning rate: from there the run can be lengthened.

    A step before, since a checkpoint holds the learning rate of the step that comes next.
    """

    def __init__(self, run: Path, cooldown: float):
        self.path, self.cooldown, self.step = run / "checkpoints" / TRUNK, cooldown, 0

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        stepped, self.step = trainer.global_step > self.step, trainer.global_step
        if stepped and self.step == trunk_steps(trainer.estimated_stepping_batches, self.cooldown) - 1:
            require_finite_weights(trainer)
            trainer.save_checkpoint(self.path)


def validation_follows(trainer) -> bool:
    """Whether validation comes right after the batch that is being finished, see src.training.validations."""
    return trainer.enable_validation and (trainer.fit_loop.total_batch_idx + 1) % trainer.val_check_batch == 0


class RandomState(Callback):
    """The random generators of every process, so that dropout after a break is what it would have been without one."""

    def __init__(self) -> None:
        self.saved: dict | None = None

    def state_dict(self) -> dict:
        here = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            here["cuda"] = torch.cuda.get_rng_state()
        everywhere = [here]
        if processes() > 1:
            everywhere = [None] * processes()
            distributed.all_gather_object(everywhere, here)
        return {"processes": everywhere}

    def load_state_dict(self, state_dict: dict) -> None:
        self.saved = state_dict

    def on_train_start(self, trainer, module) -> None:
        if self.saved is None:
            return
        here = self.saved["processes"][trainer.global_rank]
        torch.set_rng_state(here["cpu"])
        if "cuda" in here and torch.cuda.is_available():
            torch.cuda.set_rng_state(here["cuda"])
        elif "cuda" in here and trainer.is_global_zero:
            print("note: this training was on a GPU before, and goes on without one: slower, and not bit for bit.")


def unfinished(cfg: DictConfig, run: Path) -> Path | None:
    """The folder whose training ``resume=auto`` goes on with: the newest beside ``run`` of the same configuration.

    It has a checkpoint and no result yet. Folders whose configuration is damaged are named and left out; where there is
    none but one of another configuration, in what that differs is said.
    """
    wanted, other = config_hash(cfg), None
    folders = [path.parent for path in run.parent.glob("*/checkpoints") if resumable(path.parent)]
    for folder in sorted(folders, key=lambda path: (path / "checkpoints").stat().st_mtime, reverse=True):
        try:
            if result(folder) is None:
                found = run_config(folder)
                if config_hash(found) == wanted:
                    return folder
                other = other or (folder, found)
        except UserError as error:
            print(f"note: resume=auto leaves out {folder}: {error}", flush=True)
    if other:
        print(
            f"note: resume=auto begins anew: {other[0]} has {_differing(counted(other[1]), counted(cfg))}.", flush=True
        )
    return None


def _differing(there: dict, here: dict) -> str:
    """ "fusion.tau=0.2 (here 0.3) and 2 more"."""
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    more = f" and {len(keys) - 3} more" if keys[3:] else ""
    return ", ".join(f"{key}={there.get(key)} (here {here.get(key)})" for key in keys[:3]) + more


def take_over(earlier: Path, run: Path, length: tuple) -> Path:
    """Copy the best checkpoint and the log of ``earlier`` into ``run``; returns the checkpoint to go on from.

    That is the last good one, or, for a run that has begun to cool down and is to have another ``length`` (max_steps
    and max_epochs) now, the one before its cool-down. The log so far becomes ``log/before-<n>.csv``. Raises UserError
    when there is nothing to go on from, or when the best checkpoint is lost: what comes later may be worse, and would
    be taken for it.
    """
    trunk = earlier / "checkpoints" / TRUNK
    if trunk.is_file() and length != length_of(run_config(earlier)):
        _copy_log(earlier, run)
        return _without_best(trunk, run / "checkpoints" / "last.ckpt")
    last = _last_good(earlier)
    for left in (earlier / "checkpoints").glob(".*.tmp"):  # by a kill in the middle of writing
        left.unlink(missing_ok=True)
    best = earlier / "checkpoints" / "best.ckpt"
    if trunk.is_file() and earlier.resolve() != run.resolve():
        write_bytes(run / "checkpoints" / TRUNK, trunk.read_bytes())
    if best.is_file() or _knows_best(last):  # else it was stopped before its first validation
        wrong = damage(best)
        if wrong:
            raise UserError(f"{best} is lost ({wrong}), the best checkpoint so far; train this run again.")
        if earlier.resolve() != run.resolve():
            write_bytes(run / "checkpoints" / best.name, best.read_bytes())
    _copy_log(earlier, run)
    return last


def length_of(cfg: DictConfig) -> tuple:
    """What says how long a training is."""
    return cfg.trainer.max_steps, cfg.trainer.max_epochs


def _without_best(trunk: Path, path: Path) -> Path:
    """The trunk's checkpoint at ``path``, where the best so far is not known: it may be one of the cool-down."""
    if wrong := damage(trunk):
        raise UserError(f"{trunk} is damaged ({wrong}); train this run again.")
    checkpoint = torch.load(trunk, map_location="cpu", weights_only=True)
    callbacks = checkpoint["callbacks"].items()
    checkpoint["callbacks"] = {name: state for name, state in callbacks if not name.startswith(BestCheckpoint.__name__)}
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def _copy_log(earlier: Path, run: Path) -> None:
    logs = sorted((earlier / "log").glob("before-*.csv"), key=lambda path: int(path.stem.partition("-")[2]))
    if (earlier / "log" / "metrics.csv").is_file():
        logs.append(earlier / "log" / "metrics.csv")
    for number, log in enumerate(logs, 1):
        copy = run / "log" / f"before-{number}.csv"
        if not copy.exists():
            whole = log.read_bytes().rpartition(b"\n")  # a kill may have cut the last line
            write_bytes(copy, whole[0] + whole[1])


def _knows_best(checkpoint: Path) -> bool:
    """Whether there had been a best checkpoint when this one was written."""
    callbacks = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
    states = [state for name, state in callbacks.items() if name.startswith(BestCheckpoint.__name__)]
    return any(state["best_model_path"] for state in states)


def _last_good(run: Path) -> Path:
    last, previous = run / "checkpoints" / "last.ckpt", run / "checkpoints" / PREVIOUS
    if not resumable(run):
        return checkpoint_path(run, "last")  # which says what is missing
    wrong = damage(last) if last.is_file() else "it is missing"
    if wrong is None:
        return last
    if previous.exists() and damage(previous) is None:
        print(f"{last} is damaged ({wrong}); going on from {previous.name} instead.", flush=True)
        return previous
    raise UserError(f"{last} is damaged ({wrong}) and there is no earlier one; train this run again.")
