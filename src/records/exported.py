"""An exported captioner on disk: tensors as safetensors, everything else as JSON and YAML, all of it named by sha256.

    manifest.json       {"format", "files": {name: {"sha256", "bytes"}}, "frozen": {part: ...}, "tied": {name: name}}
    captioner.yaml      the run's configuration, in which parts whose tensors are here need nothing from elsewhere
    model.safetensors   "<part>.<name>": what was trained, and the frozen parts that were included
    tokenizer/          as in the run
    language/, vision/  configuration of a library's model whose tensors are here; only where there is one

``frozen`` says of each part that did not train its sha256 (of src.records.weights), where it came from, and whether
it is included. Reading executes nothing: there is no pickle in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from src.errors import UserError
from src.records.files import sha256, write_json

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
EXPORTED_CONFIG, EXPORTED_WEIGHTS = "captioner.yaml", "model.safetensors"
HERE = "<folder>"  # in captioner.yaml: the exported folder itself, wherever it lies
FORMAT = 1
CARD = "README.md"  # people may edit it: it has no hash
REPAIR = "copy the folder again, or export the run again"


@dataclass(frozen=True)
class Frozen:
    """A part that did not train. ``run``: whether ``source`` is a folder on the machine that it was trained on."""

    sha256: str
    source: str
    run: bool
    included: bool


def write(folder: Path, tensors: Mapping[str, Tensor], frozen: Mapping[str, Frozen]) -> None:
    """Write the tensors, then the manifest of all that ``folder`` holds by then. Raises UserError where it cannot."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept, tied = _without_twins(tensors)
    path = folder / EXPORTED_WEIGHTS
    try:
        save_file(kept, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be written ({error}).") from error
    path.chmod((folder / EXPORTED_CONFIG).stat().st_mode)  # safetensors lets nobody else read it, whatever the umask
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    about = {part: asdict(one) for part, one in frozen.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files, "frozen": about, "tied": tied})


def read(folder: Path) -> dict:
    """What a checkpoint holds, "state_dict" and "frozen" (part -> sha256), and "included": part -> its tensors.

    Every file is compared with the manifest before anything is read. Raises UserError naming the one that differs, and
    for a frozen part that is neither here nor where it came from.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = verify(folder)
    frozen = {part: Frozen(**about) for part, about in manifest["frozen"].items()}
    for part, about in frozen.items():
        if about.run and not about.included and not Path(about.source).is_dir():
            raise UserError(
                f"{folder} needs the frozen {part} model of the run {about.source}, which is not here; put that folder "
                "there, or export with frozen=include."
            )
    try:
        tensors = load_file(folder / EXPORTED_WEIGHTS)
        tensors |= {twin: tensors[name] for twin, name in manifest["tied"].items()}
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{folder / EXPORTED_WEIGHTS} cannot be read ({error}); {REPAIR}.") from error
    included = {part: _below(part, tensors) for part, about in frozen.items() if about.included}
    trained = {name: x for name, x in tensors.items() if name.partition(".")[0] not in frozen}
    return {
        "state_dict": trained,
        "frozen": {part: about.sha256 for part, about in frozen.items()},
        "included": included,
    }


def verify(folder: Path) -> dict:
    """The manifest of ``folder``, after comparing all of its files. Raises UserError naming the first that differs."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, files = manifest["format"], {name: about["sha256"] for name, about in manifest["files"].items()}
        if version == FORMAT:
            [Frozen(**about) for about in manifest["frozen"].values()], dict(manifest["tied"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); {REPAIR}.") from error
    if version != FORMAT:
        raise UserError(f"{folder} is an export of format {version}, and this code reads format {FORMAT}; update it.")
    for name, wanted in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {REPAIR}.")
        if sha256(folder / name) != wanted:
            raise UserError(f"{folder / name} is not what was exported (its sha256 differs); {REPAIR}.")
    return manifest


def holds(folder: Path, path: Path) -> bool:
    """Whether ``path`` is a file of the export in ``folder``, or a folder with such files: neither may change."""
    names = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return any((folder / name).is_relative_to(path) for name in names)


def _below(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): x for name, x in tensors.items() if name.startswith(f"{part}.")}


def _without_twins(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without those that share all their memory with another one, and the names of these.

    safetensors refuses shared memory; a language model's output matrix usually is that of its embeddings.
    """
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            kept[name] = tensor.detach().cpu().contiguous()
    return kept, tied
