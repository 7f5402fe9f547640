"""The run folder: what a run leaves behind, written so that a half-written file never takes a good one's place.

config.yaml         the resolved configuration            environment.json   commit, versions, machine, command
tokenizer/          the tokenizer                         checkpoints/       best.ckpt, last.ckpt
metrics.json        {"split", "scores", "cost", ...}      predictions.jsonl  id, caption, references, per-image scores
samples.png         pictures with captions                log/metrics.csv    losses over the steps
skipped.jsonl       entries and pictures that data.on_error=skip left out, if there are any
SHA256SUMS          of the files above, which are compared with it when they are read (``sha256sum -c SHA256SUMS`` does
                    it too); not of pictures, which nobody reads back, and of checkpoints, which have sums of their own
result.json         {"score", "value"}: written last, so its presence says that the run is complete

An exported folder (src.export) has manifest.json instead of checkpoints/, and captioner.yaml instead of config.yaml.
Nothing here may hold a secret: commands are written with secrets masked, and src.config refuses them as values.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError
from src.records import exported
from src.records.environment import environment
from src.records.files import SUMS, _write_sums, listed, seal, verify, write_json, write_jsonl, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor


def begin(run: Path, cfg: DictConfig, choices: Mapping[str, str]) -> None:
    """What a run folder holds from the start. ``choices``: the words that were chosen, by group."""
    from omegaconf import OmegaConf

    for name in ("result.json", SUMS):  # where a folder is used again
        (run / name).unlink(missing_ok=True)
    chosen = {group: name for group, name in choices.items() if "/" not in group}
    write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_json(run / "environment.json", {**environment(), "choices": chosen})
    seal(run, "config.yaml", "environment.json")


def complete(run: Path, score: str, value: float) -> None:
    """The last act of a run: sums of everything, then result.json."""
    seal(run, "skipped.jsonl", "log")
    content = json.dumps({"score": score, "value": value}, indent=2) + "\n"
    _write_sums(run, listed(run, strict=False) | {"result.json": hashlib.sha256(content.encode()).hexdigest()})
    write_text(run / "result.json", content)


@contextmanager
def removed_where_nothing_came_of_it(run: Path, name: str) -> Iterator[None]:
    """Around a run: a start that fails leaves no folder behind that holds nothing but what every start writes.

    The first process of several sees to it. ``name``: of the run, and of the folder above if that was made for it.
    """
    try:
        yield
    except BaseException:
        if os.environ.get("LOCAL_RANK", "0") == "0" and _holds_nothing(run):
            shutil.rmtree(run, ignore_errors=True)
            with suppress(OSError):  # others lie beside it
                if run.parent.name == name:
                    run.parent.rmdir()
        raise


def _holds_nothing(run: Path) -> bool:
    """Whether there is neither a checkpoint nor a line of the log nor anything that is not of a run's beginning."""
    begun = {"config.yaml", "environment.json", SUMS, "tokenizer"}
    return all(path.name in begun or (path.is_dir() and not any(path.iterdir())) for path in run.glob("*"))


def result(run: Path) -> dict | None:
    """{"score", "value"} of a complete run; None where there is none or a damaged one: scoring can be repeated."""
    try:
        verify(run, "result.json")
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return {"score": found["score"], "value": found["value"]}
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return None


# --------------------------------------------------------------------------------------------------------------------
# reading a run
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Saved:
    """A trained captioner in a folder, as src.train (a run) or src.export left it; ``at`` finds out which of both.

    ``read``: all that a checkpoint holds, of the folder. Nothing is read before it is asked for.
    """

    folder: Path
    config_name: str
    weights_name: str
    read: Callable[[Path], dict]

    @classmethod
    def at(cls, folder: Path | str) -> Saved:
        """Of an export the manifest may have been lost since; whatever is none is taken for a run."""
        folder = Path(folder)
        marks = (exported.MANIFEST, exported.EXPORTED_CONFIG)
        return cls.export(folder) if any((folder / name).is_file() for name in marks) else cls.run(folder)

    @classmethod
    def run(cls, folder: Path) -> Saved:
        return cls(folder, "config.yaml", "checkpoints/best.ckpt", _best_checkpoint)

    @classmethod
    def export(cls, folder: Path) -> Saved:
        return cls(folder, exported.EXPORTED_CONFIG, exported.EXPORTED_WEIGHTS, exported.read)

    @property
    def is_there(self) -> bool:
        """Whether the folder is one of either kind."""
        return (self.folder / self.config_name).is_file()

    @property
    def is_run(self) -> bool:
        """Whether training left it: with checkpoints, in a folder that results may be added to."""
        return self.config_name == "config.yaml"

    def config(self):
        """The configuration. Raises UserError when the folder is of neither kind, or when the file cannot be read."""
        from omegaconf import OmegaConf
        from yaml import YAMLError

        path = self.folder / self.config_name
        verify(self.folder, path.name)
        self._require_there()
        try:
            cfg = OmegaConf.load(path)
        except (YAMLError, ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
        return OmegaConf.create(_placed(OmegaConf.to_container(cfg), str(self.folder)))

    def _require_there(self) -> None:
        if not self.is_there:
            raise UserError(
                f"{self.folder} is not a run folder: it has no {self.config_name}; give the folder that src.train "
                "printed."
            )

    def weights(self) -> Path:
        """The file with the trained tensors. Raises UserError when it is missing."""
        self._require_there()
        path = self.folder / self.weights_name
        if not path.is_file():
            raise UserError(
                f"{path} is missing: training did not get that far, or the file was lost; give another run, or train "
                "this one again."
            )
        return path

    def tokenizer(self) -> Path:
        """Its folder. Raises UserError when a file in it is not what was written."""
        verify(self.folder, "tokenizer")
        return self.folder / "tokenizer"

    @cached_property
    def checkpoint(self) -> dict:
        """All that was kept of the training of this captioner."""
        return self.read(self.folder)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was trained, "<part>.<name>"."""
        return self.checkpoint["state_dict"]

    @property
    def frozen(self) -> dict[str, str]:
        """sha256 of every part that did not train."""
        return self.checkpoint.get("frozen", {})

    @property
    def included(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of those frozen parts that lie here, part by part."""
        return self.checkpoint.get("included", {})

    def part(self, part: str) -> dict[str, Tensor]:
        """All tensors of a part that lie here, trained or frozen; none where the part came from elsewhere."""
        begin = f"{part}."
        trained = {name.removeprefix(begin): x for name, x in self.tensors.items() if name.startswith(begin)}
        return self.included.get(part, trained)


def _best_checkpoint(run: Path) -> dict:
    from src.records.weights import read_checkpoint

    return read_checkpoint(checkpoint_path(run))


def write_skipped(run: Path, sources: Iterable) -> None:
    """skipped.jsonl with what data.on_error=skip left out; no file where that is nothing."""
    left_out = [fault for source in sources if hasattr(source, "faults") for fault in source.faults.skipped]
    if left_out:
        write_jsonl(run / "skipped.jsonl", left_out)


def written_config(folder: Path | str) -> DictConfig:
    """The configuration of a finished or running run, or of an exported one, as it stands in the file.

    ``src.config.added_keys.run_config`` reads it with the options that were added since.
    """
    return Saved.at(folder).config()


def _placed(node, folder: str):
    """The same values with the folder's place filled in."""
    if isinstance(node, dict):
        return {name: _placed(value, folder) for name, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return node.replace(exported.HERE, folder) if isinstance(node, str) else node


def checkpoint_path(folder: Path | str, which: str = "best") -> Path:
    """``checkpoints/<which>.ckpt`` of a run. Raises UserError when it is missing, and for an export, which has none."""
    if not Saved.at(folder).is_run:
        raise UserError(f"{folder} is an export and has no checkpoints; give the run folder that it was made from.")
    return replace(Saved.run(Path(folder)), weights_name=f"checkpoints/{which}.ckpt").weights()


def resumable(folder: Path) -> bool:
    """Whether a run has got far enough to be gone on with."""
    return any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "previous"))
