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

import errno
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from src.errors import UserError

MANIFEST = "manifest.json"  # of an exported folder: sha256 of its files, and where frozen parts come from
EXPORTED_CONFIG, EXPORTED_WEIGHTS = "captioner.yaml", "model.safetensors"
HERE = "<folder>"  # in captioner.yaml: the exported folder itself, wherever it lies

SUMS = "SHA256SUMS"

PACKAGES = ("torch", "lightning", "transformers", "open_clip_torch", "hydra-core", "torchmetrics", "numpy")


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write beside and rename, so that ``path`` holds either the old content or all of the new.

    Raises UserError when it cannot be written; the old content is then still there.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
            _sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def _sync_folder(folder: Path) -> None:
    """That a file got its name must reach the disk too, or a machine that goes down takes it back."""
    with suppress(OSError):  # some file systems cannot; the file itself is written
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def unwritable(path: Path | str, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written ({error.strerror or error}); make room, or write to another place.")


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Around work of libraries that write into ``folder`` themselves: a full disk becomes a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise unwritable(error.filename or folder, error) from error


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path | str, content) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------------------------
# what was written is what is read
# --------------------------------------------------------------------------------------------------------------------
def seal(folder: Path | str, *names: str) -> None:
    """Note the sha256 of these files of ``folder`` in its SHA256SUMS. Of a folder among ``names``: of all in it."""
    folder = Path(folder)
    files = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    sums = listed(folder, strict=False) | {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    _write_sums(folder, sums)


def verify(folder: Path | str, *names: str) -> None:
    """Raises UserError for a file that SHA256SUMS lists and that is missing or differs. Others are not known here.

    ``names``: files, or folders of files, in ``folder``.
    """
    folder = Path(folder)
    for name, wanted in listed(folder).items():
        if not any(name == one or name.startswith(f"{one}/") for one in names):
            continue
        there = (folder / name).is_file()
        if not there or sha256(folder / name) != wanted:
            wrong = "is not what was written (its sha256 differs)" if there else "is missing"
            raise UserError(
                f"{folder / name} {wrong}; restore it, or make the run or evaluation again. (You changed it yourself? "
                f"Then delete its line in {folder / SUMS}.)"
            )


def sha256(path: Path) -> str:
    """Of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def complete(run: Path, score: str, value: float) -> None:
    """The last act of a run: sums of everything, then result.json."""
    seal(run, "skipped.jsonl", "log")
    content = json.dumps({"score": score, "value": value}, indent=2) + "\n"
    _write_sums(run, listed(run, strict=False) | {"result.json": hashlib.sha256(content.encode()).hexdigest()})
    write_text(run / "result.json", content)


def result(run: Path) -> dict | None:
    """{"score", "value"} of a complete run; None where there is none or a damaged one: scoring can be repeated."""
    try:
        verify(run, "result.json")
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
        return {"score": found["score"], "value": found["value"]}
    except (UserError, OSError, ValueError, TypeError, KeyError):
        return None


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def listed(folder: Path, strict: bool = True) -> dict[str, str]:
    """What SHA256SUMS lists: sha256 by name. Empty without one; ``strict``: raises UserError when it is damaged."""
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    found = [re.fullmatch("([0-9a-f]{64})  (.+)", line) for line in lines]
    if strict and None in found:
        raise UserError(f"{path} is damaged; delete it to go on without it, or make the run or evaluation again.")
    return {match[2]: match[1] for match in found if match}


# --------------------------------------------------------------------------------------------------------------------
# reading a run
# --------------------------------------------------------------------------------------------------------------------
def is_export(folder: Path | str) -> bool:
    """Whether ``folder`` was written by src.export, though its manifest may have been lost since."""
    return any((Path(folder) / name).is_file() for name in (MANIFEST, EXPORTED_CONFIG))


def write_skipped(run: Path, sources: Iterable) -> None:
    """skipped.jsonl with what data.on_error=skip left out; no file where that is nothing."""
    left_out = [fault for source in sources if hasattr(source, "faults") for fault in source.faults.skipped]
    if left_out:
        write_jsonl(run / "skipped.jsonl", left_out)


def run_config(folder: Path | str):
    """The configuration of a finished or running run, or of an exported one.

    Raises UserError when ``folder`` is neither, or when the file cannot be read.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = Path(folder) / (EXPORTED_CONFIG if is_export(folder) else "config.yaml")
    verify(folder, path.name)
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {path.name}; give the folder that src.train printed.")
    try:
        cfg = OmegaConf.load(path)
    except (YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}).") from None
    return OmegaConf.create(_placed(OmegaConf.to_container(cfg), str(folder))) if is_export(folder) else cfg


def _placed(node, folder: str):
    """The same values with the folder's place filled in."""
    if isinstance(node, dict):
        return {name: _placed(value, folder) for name, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, folder) for value in node]
    return node.replace(HERE, folder) if isinstance(node, str) else node


def weights_path(folder: Path | str) -> Path:
    """The file with the trained tensors of a run or of an exported folder. Raises UserError when it is missing."""
    return Path(folder) / EXPORTED_WEIGHTS if is_export(folder) else checkpoint_path(folder)


def checkpoint_path(folder: Path | str, which: str = "best") -> Path:
    """``checkpoints/<which>.ckpt`` of a run. Raises UserError when it is missing."""
    path = Path(folder) / "checkpoints" / f"{which}.ckpt"
    if is_export(folder):
        raise UserError(f"{folder} is an export, which src.caption reads; give the run folder that it was made from.")
    if not path.is_file():
        raise UserError(
            f"{path} is missing: training did not get that far, or the file was lost; give another run, or train this "
            "one again."
        )
    return path


def resumable(folder: Path) -> bool:
    """Whether a run has got far enough to be gone on with."""
    return any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "previous"))


def environment() -> dict:
    """Commit, versions, machine and command of this process."""
    return {
        "command": _command(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def _command() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    arguments = [masked(argument) for argument in sys.argv[1:]]
    return " ".join(["python", *(["-m", spec.name] if spec else sys.argv[:1]), *arguments])


# --------------------------------------------------------------------------------------------------------------------
# secrets
# --------------------------------------------------------------------------------------------------------------------
MASK = "***"
SECRET = r"(?:(?:api|access|private)[_-]?key|secret(?:[_-]?key)?|pass(?:word|wd|phrase)|token|credentials?)"
_NAMED = re.compile(rf"(?:.*[._-])?{SECRET}", re.IGNORECASE | re.DOTALL)
# What may follow such a name inside of a value, such as {api_key: abc}.
_GIVEN = re.compile(rf"((?<![a-z]){SECRET}[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|[^\s,}}\]]+)", re.IGNORECASE)
_LOGIN = re.compile(r"(\w://[^/\s:@]*:)[^/\s@]+(?=@)")  # https://user:password@host
SHORTEST = 8  # characters of an environment variable's value that is taken for a secret; shorter ones occur by chance


def names_secret(key: str) -> bool:
    """Whether the last part of ``key`` is what secrets are called: "logger.api_key", "HF_TOKEN"; not "max_tokens"."""
    return _NAMED.fullmatch(key.lstrip("+~")) is not None


def masked(argument: str) -> str:
    """A command-line argument without the secrets in it: values named like one, logins, and those of the environment.

    Other text is left as it is.
    """
    key, equals, _ = argument.partition("=")
    if equals and names_secret(key):
        return f"{key}={MASK}"
    argument = _LOGIN.sub(rf"\1{MASK}", _GIVEN.sub(rf"\1{MASK}", argument))
    for name, value in os.environ.items():
        if names_secret(name) and len(value) >= SHORTEST:
            argument = argument.replace(value, MASK)
    return argument


def is_secret(key: str, value) -> bool:
    """Whether ``value``, which stands under ``key`` in a configuration, must not be written down."""
    if isinstance(value, list):
        return any(is_secret(key, one) for one in value)
    return isinstance(value, str) and value != "" and (names_secret(key) or masked(value) != value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    home = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(["git", *arguments], cwd=home, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
