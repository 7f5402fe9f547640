"""Where training is logged: always in the run folder, and with ``logger=wandb`` or ``logger=tensorboard`` there too.

log/metrics.csv is the record; the others mirror it, and what the run folder holds at the end: scores, cost, captions
with their pictures, figures of gates and attention. A mirror that breaks costs no result.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig, OmegaConf

from src.config.classes import flatten
from src.config.make import config_hash
from src.errors import UserError
from src.kinds import Project

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger
    from PIL import Image

    from src.build import Parts

MODES = ("online", "offline", "disabled")
DIRECTORIES = ("DATA", "CACHE", "CONFIG")  # WANDB_..._DIR
TAGS = ("fusion", "data", "regime", "vision", "language")
PATIENCE = {"INIT": 60, "FINISH": 300}  # seconds for a server that does not answer; WANDB_..._TIMEOUT of yours wins
LOOKED_AT = 4  # pictures whose captions are read again for the diagnostics; each costs 65 forward passes of one caption


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
                    stack.enter_context(_interruptible())
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
        _needs("tensorboard", "logger=tensorboard")

    def open(self, cfg: DictConfig, run: Path) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        board = TensorBoardLogger(str(run), name="", version="tensorboard", default_hp_metric=False)
        board.log_hyperparams({"choices": _choices(run), **OmegaConf.to_container(cfg, resolve=True)})
        self.loggers.append(board)

    def mirror(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        import numpy as np
        from PIL import Image

        board = self.loggers[-1]
        numbers = {name: value for name, value in results(parts, run).items() if not isinstance(value, str)}
        board.log_hyperparams(board.hparams, numbers)
        for name, _, folder in _data_sets(parts, run):
            if (folder / "samples.png").is_file():
                with Image.open(folder / "samples.png") as sheet:
                    board.experiment.add_image(f"samples/{name}".rstrip("/"), np.asarray(sheet), dataformats="HWC")

    def close(self, status: int) -> None:
        for board in self.loggers[1:]:
            board.finalize("success" if status == 0 else "failed")


class Wandb(Tracker):
    """``logger=wandb``. ``mode``: online, offline, disabled, or auto: WANDB_MODE, else online when logged in.

    What it writes offline is all in <run>/wandb. There W&B names the pictures of tables by their whole paths: upload
    before the folder is moved, or they are missing (the tables, curves, and pictures outside of tables are not).
    """

    def __init__(
        self, project: Project, entity: str | None, mode: Literal["auto", "online", "offline", "disabled"]
    ) -> None:
        super().__init__()
        self.project, self.entity = str(project), entity
        self.mode = wandb_mode(mode)
        self.run = None
        self.environment: dict[str, str | None] = {}

    def open(self, cfg: DictConfig, run: Path) -> None:
        """Start the W&B run at once: also a captioner that is never trained has scores."""
        from lightning.pytorch.loggers import WandbLogger
        from lightning.pytorch.utilities import rank_zero_only

        if self.mode == "disabled" or rank_zero_only.rank:
            return
        import wandb

        try:
            self._start(cfg, run)
        except wandb.errors.CommError as error:
            cause = str(error).splitlines()[0]
            print(f"note: W&B cannot be reached ({cause}); this run is logged offline instead.", flush=True)
            wandb.teardown()  # its service knows where an online run would have put its files
            self.mode = "offline"
            self._start(cfg, run)
        self.run.define_metric("trainer/global_step")
        self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.loggers.append(WandbLogger(project=self.project, save_dir=str(run), experiment=self.run))
        if self.mode == "online":
            print(f"W&B: {self.run.url}", flush=True)

    def _start(self, cfg: DictConfig, run: Path) -> None:
        """``wandb.init``; raises CommError where the server does not answer in time."""
        import wandb

        if self.mode == "offline":
            # Pictures in tables, artifacts and logs go to the home directory otherwise, and would be missing where the
            # run folder is copied to. Online they stay with the user's own settings: what is there has been uploaded.
            folders = {f"WANDB_{kind}_DIR": str(run.absolute() / "wandb" / kind.lower()) for kind in DIRECTORIES}
            self.environment = _exchange(folders)
        choices = _choices(run)
        limits = {f"{name.lower()}_timeout": float(_limit(name)) for name in PATIENCE}
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(run),
            id=run_id(cfg, run),
            resume="allow",
            mode=self.mode,
            name=cfg.name,
            group=sweep_name(),
            job_type="train",
            tags=[f"{choice}={choices[choice]}"[:64] for choice in TAGS if choices.get(choice)],  # W&B's limit
            config={**OmegaConf.to_container(cfg, resolve=True), "choices": choices},
            settings=wandb.Settings(quiet=True, show_info=False, finish_timeout_raises=True, **limits),
        )

    def mirror(self, parts: Parts, cfg: DictConfig, run: Path) -> None:
        if self.run is None:
            return
        import wandb

        from src.tasks.results import pictures

        self.run.summary.update(results(parts, run))
        for name, own, folder in _data_sets(parts, run):
            key = f"samples/{name}".rstrip("/")
            rows = _rows(folder)[: cfg.samples]
            if rows:
                shown = pictures(own.data, cfg.test_split, cfg.samples)
                self.run.log({key: sample_table(rows, shown)})
                self.run.log({f"{key}_sheet": wandb.Image(str(folder / "samples.png"))})
        for kind, files in diagnostics(parts, cfg, run).items():
            self.run.log({f"diagnostics/{kind}": [wandb.Image(str(file), caption=file.stem) for file in files]})

    def close(self, status: int) -> None:
        if self.run is None:
            _exchange(self.environment)
            return
        import wandb

        complete = True
        try:
            self.run.finish(exit_code=status)
        except TimeoutError:
            complete = False
            print(f"note: W&B has not taken everything within {_limit('FINISH')} s; the rest is kept here.", flush=True)
        finally:
            wandb.teardown()  # its service keeps this run's folders, which another run in this process must not get
            _exchange(self.environment)
        if self.mode == "offline":
            print("W&B: from another place than this, python -m src.sync run=<folder> uploads it", flush=True)
            print(f"W&B: upload with: {sync_command(Path(self.run.dir).parent)}", flush=True)
        elif not complete:
            print(f"W&B: upload with: {shlex.join(['wandb', 'sync', str(Path(self.run.dir).parent)])}", flush=True)
        else:
            print(f"W&B: {self.run.url}", flush=True)


# ------------------------------------------------------------------------------------------------- before any work
def wandb_mode(wanted: str) -> str:
    """online, offline or disabled. Raises UserError for another word, and for online without a login."""
    if wanted not in ("auto", *MODES):
        raise UserError(f"logger.mode must be auto, {', '.join(MODES)}; got {wanted!r}.")
    _needs("wandb", "logger=wandb")
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return "disabled"  # a child of DDP: only the first process logs, and it has looked already
    if wanted == "auto" and (chosen := os.environ.get("WANDB_MODE")):
        wanted = {"run": "online", "dryrun": "offline"}.get(chosen, chosen)  # names of old
        if wanted not in MODES:
            raise UserError(f"WANDB_MODE={chosen} is not one of {', '.join(MODES)}; unset it, or give logger.mode.")
    if wanted in ("offline", "disabled"):
        return wanted
    known = logged_in()
    if wanted == "online" and not known:
        raise UserError("logger.mode=online needs a W&B login: run `wandb login`, or use logger.mode=offline.")
    return "online" if known else "offline"


def logged_in() -> bool:
    """Whether W&B finds credentials (environment, settings, netrc). No network is asked, nothing is printed or kept.

    Not wandb.login(), which asks the server who that is, and holds the process up at its end where there is no network.
    Raises UserError for credentials that cannot be right.
    """
    import wandb
    from wandb.sdk.lib import wbauth

    with tempfile.TemporaryDirectory() as scratch:
        before = _exchange({"WANDB_CACHE_DIR": scratch})  # the log of wandb's service
        try:
            settings = wandb.setup().settings
            host = wbauth.HostUrl(settings.base_url, app_url=settings.app_url)
            found = wbauth.authenticate_session(host=host, source="login", prompt=False, update_session=False)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"The W&B login is not usable ({error}); run `wandb login --relogin`.") from error
        finally:
            wandb.teardown()
            _exchange(before)
    return found is not None


def _limit(name: str) -> str | int:
    """Seconds that W&B may take to "INIT" or "FINISH" a run. In between training waits for nothing, and the single
    requests for pictures at its end give up by themselves after some 20 s."""
    return os.environ.get(f"WANDB_{name}_TIMEOUT", PATIENCE[name])


def _needs(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs a package: pip install {package}.")


# ------------------------------------------------------------------------------------------------- who a run is
def run_id(cfg: DictConfig, run: Path) -> str:
    """The same for the same configuration in the same folder, and for nothing else.

    A sweep gives a job that it starts again the folder of the attempt that was cut off, so the job continues its own
    W&B run. The configuration alone would not do: somebody who trains it twice would see one run with the curves of
    both. Nor would the folder's name, which every sweep over this configuration chooses alike; hence its whole path.
    """
    return hashlib.sha256(f"{config_hash(cfg)}\n{run.absolute()}".encode()).hexdigest()[:16]


def sweep_name() -> str | None:
    """WANDB_RUN_GROUP, which the sweep launcher sets where the user has not; else the folder of a Hydra multirun."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    named = os.environ.get("WANDB_RUN_GROUP")
    if named or not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return named or None
    return Path(HydraConfig.get().sweep.dir).name


def sync_command(own: Path) -> str:
    """What uploads ``own``, <run>/wandb/offline-run-<time>-<id>, and earlier attempts at this run."""
    return shlex.join(["wandb", "sync", *map(str, attempts(own))])


def attempts(own: Path) -> list[Path]:
    """``own`` and earlier attempts at its run. These go first: its curve begins there."""
    run, id = own.parents[1], own.name.rsplit("-", 1)[-1]
    found = [*run.parent.glob(f"{run.name}~*/wandb/offline-run-*-{id}"), *own.parent.glob(f"offline-run-*-{id}")]
    return sorted(found, key=lambda path: path.name)


def exit_status(error: BaseException) -> int:
    """What the process will end with; never 0, since something did end it."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code or 1
    return 2 if isinstance(error, UserError) else 1


# ------------------------------------------------------------------------------------------------- what is mirrored
def results(parts: Parts, run: Path) -> dict[str, float | str]:
    """test/<score>, test/<data set>/<score> of further data sets, and cost/<...>, of the metrics.json in ``run``.

    Always "test/", whatever ``test_split`` says: "val/loss" is the name of a curve.
    """
    found: dict[str, float | str] = {}
    for name, _, folder in _data_sets(parts, run):
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        prefix = f"test/{name}/" if name else "test/"
        found |= {f"{prefix}{score}": value for score, value in metrics["scores"].items() if value is not None}
        if not name:
            cost = flatten(metrics["cost"])
            found |= {f"cost/{key.replace('.', '/')}": value for key, value in cost if value is not None}
    return found


def _data_sets(parts: Parts, run: Path) -> list[tuple[str, Parts, Path]]:
    """Each data set's name, parts and folder of results. The first one is the run's own and goes by no name."""
    (_, main), *more = parts.data_sets().items()
    return [("", main, run), *((name, own, run / name) for name, own in more)]


def _rows(folder: Path) -> list[dict]:
    path = folder / "predictions.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _choices(run: Path) -> dict[str, str]:
    """Config group -> the word chosen for it."""
    return json.loads((run / "environment.json").read_text(encoding="utf-8"))["choices"]


def sample_table(rows: Sequence[dict], shown: dict[str, Image.Image]):
    """A wandb.Table: picture, id, caption, references, and every score that the pictures have."""
    import wandb

    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("id", "caption")))
    table = wandb.Table(columns=["picture", "id", "caption", *names])
    for row in rows:
        cells = [_cell(row.get(name)) for name in names]
        table.add_data(wandb.Image(shown[row["id"]]), row["id"], row["caption"], *cells)
    return table


def _cell(value):
    """A column of a table holds one simple type."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def diagnostics(parts: Parts, cfg: DictConfig, run: Path) -> dict[str, list[Path]]:
    """Figures by kind, in <run>/explain: where words come from, gates, prefixes; none for whoever sees no pictures."""
    own = next((p for p in parts.data_sets().values() if p.source.has_images and p.source.task == "caption"), None)
    if own is None or parts.captioner.vision is None:
        return {}
    from src.diagnostics.drawing import draw
    from src.diagnostics.reading import read

    captioner, size = parts.captioner, parts.captioner.vision.spec.image_size
    named = {e.id: own.source.pixels(e, size) for e in islice(own.data.examples(cfg.test_split), LOOKED_AT)}
    readings = {name: read(captioner, pixels) for name, pixels in named.items()}
    kinds: dict[str, list[Path]] = {}
    for file in draw(captioner, run, named, readings, run / "explain"):
        kinds.setdefault(file.stem.partition("-")[0], []).append(file)
    return kinds


# ------------------------------------------------------------------------------------------------- the process
@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM (a sweep that is stopped, a batch system's time limit) unwinds like Ctrl-C, so that runs are closed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else sees to it
        return
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exchange(wanted: dict[str, str | None]) -> dict[str, str | None]:
    """Set environment variables (None: remove); returns what they were."""
    before = {name: os.environ.get(name) for name in wanted}
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before
