"""Runs of Weights & Biases: whether there is a login, their life whatever its server does, what is uploaded later."""

from __future__ import annotations

import importlib.util
import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.errors import UserError

MODES = ("online", "offline", "disabled")
DIRECTORIES = ("DATA", "CACHE", "CONFIG")  # WANDB_..._DIR
PATIENCE = {"INIT": 60, "FINISH": 300}  # seconds for a server that does not answer; WANDB_..._TIMEOUT of yours wins


def wandb_mode(wanted: str) -> str:
    """online, offline or disabled. Raises UserError for another word, and for online without a login."""
    if wanted not in ("auto", *MODES):
        raise UserError(f"logger.mode must be auto, {', '.join(MODES)}; got {wanted!r}.")
    require_package("wandb", "logger=wandb")
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
        before = exchange({"WANDB_CACHE_DIR": scratch})  # the log of wandb's service
        try:
            settings = wandb.setup().settings
            host = wbauth.HostUrl(settings.base_url, app_url=settings.app_url)
            found = wbauth.authenticate_session(host=host, source="login", prompt=False, update_session=False)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"The W&B login is not usable ({error}); run `wandb login --relogin`.") from error
        finally:
            wandb.teardown()
            exchange(before)
    return found is not None


class Session:
    """Runs in ``folder``/wandb, one after the other. ``mode``: online or offline; offline too from when the server does
    not answer. Until ``close`` the environment has what W&B reads; what is offline lies in that folder alone.
    ``silent``: W&B says nothing itself.
    """

    def __init__(self, mode: str, folder: Path, silent: bool = False):
        self.mode, self.folder, self.silent = mode, folder, silent
        self.run = None
        self.environment: dict[str, str | None] = {}

    def begin(self, **options):
        """The W&B run that ``wandb.init`` makes of ``options``."""
        import wandb

        try:
            self.run = self._init(**options)
        except wandb.errors.CommError as error:
            cause = str(error).splitlines()[0]
            print(f"note: W&B cannot be reached ({cause}); this run is logged offline instead.", flush=True)
            wandb.teardown()  # its service knows where an online run would have put its files
            self.mode = "offline"
            self.run = self._init(**options)
        return self.run

    def _init(self, **options):
        """Raises CommError where the server does not answer in time."""
        import wandb

        if self.mode == "offline" and not self.environment:
            # Pictures in tables, artifacts and logs go to the home directory otherwise, and would be missing where the
            # folder is copied to. Online they stay with the user's own settings: what is there has been uploaded.
            folders = {
                f"WANDB_{kind}_DIR": str(self.folder.absolute() / "wandb" / kind.lower()) for kind in DIRECTORIES
            }
            self.environment = exchange(folders)
        limits = {f"{name.lower()}_timeout": float(time_limit(name)) for name in PATIENCE}
        told = {"quiet": True, "silent": self.silent, "show_info": False}
        settings = wandb.Settings(finish_timeout_raises=True, **told, **limits)
        return wandb.init(dir=str(self.folder), mode=self.mode, settings=settings, **options)

    def finish(self, status: int) -> bool:
        """End the run; whether W&B has taken everything in time, or it is kept here."""
        run, self.run = self.run, None
        try:
            run.finish(exit_code=status)
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """End W&B's service, which keeps the folder of its runs: another run in this process must not get it. What runs
        still has failed."""
        import wandb

        try:
            if self.run is not None:
                self.finish(1)
        finally:
            wandb.teardown()
            exchange(self.environment)


def table(rows: Sequence[Mapping]):
    """A wandb.Table of rows with the same columns."""
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


def group_of(name: str) -> str:
    """The group that W&B shows runs in: WANDB_RUN_GROUP of the user, else ``name``."""
    return os.environ.get("WANDB_RUN_GROUP") or name


def time_limit(name: str) -> str | int:
    """Seconds that W&B may take to "INIT" or "FINISH" a run. In between training waits for nothing, and the single
    requests for pictures at its end give up by themselves after some 20 s."""
    return os.environ.get(f"WANDB_{name}_TIMEOUT", PATIENCE[name])


def require_package(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs a package: pip install {package}.")


def sync_command(own: Path) -> str:
    """What uploads ``own``, <run>/wandb/offline-run-<time>-<id>, and earlier attempts at this run."""
    return shlex.join(["wandb", "sync", *map(str, attempts(own))])


def attempts(own: Path) -> list[Path]:
    """``own`` and earlier attempts at its run. These go first: its curve begins there."""
    run, id = own.parents[1], own.name.rsplit("-", 1)[-1]
    found = [*run.parent.glob(f"{run.name}~*/wandb/offline-run-*-{id}"), *own.parent.glob(f"offline-run-*-{id}")]
    return sorted(found, key=lambda path: path.name)


def exchange(wanted: dict[str, str | None]) -> dict[str, str | None]:
    """Set environment variables (None: remove); returns what they were."""
    before = {name: os.environ.get(name) for name in wanted}
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before
