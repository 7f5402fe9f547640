"""What works on this machine, and why the rest does not.

python -m src.doctor
"""

from __future__ import annotations

import netrc
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.config.classes import HOME
from src.config.command_line import verb
from src.errors import UserError
from src.metrics.extra import METRICS, available
from src.metrics.meteor import Unavailable
from src.metrics.spice import java_version
from src.records.converted import DURATION, Packaged, check_convertible
from src.records.files import SUMS

# Without these src.train does not start; the others are for single parts of the project.
NEEDED = ("torch", "lightning", "transformers", "hydra-core", "omegaconf", "torchmetrics", "tokenizers", "numpy")
OPTIONAL = ("open_clip_torch", "pycocoevalcap", "matplotlib", "wandb", "peft")
LISTS = ("dataset*.json", "captions.csv", "captions.jsonl", "documents.jsonl")  # what a data folder is known by
ROOM = 2.0  # GB that runs should have: checkpoints, features, logs
WIDTH = 100  # of the report
GOOD, FAIR, BAD = "yes", "-", "NO"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``state``: GOOD, FAIR (not here, and src.train does without) or BAD (it does not)."""

    name: str
    state: str
    text: str


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="doctor")
@verb
def main(cfg: DictConfig) -> None:
    """Print the report as it is found; exit status 1 if something is broken that src.train needs."""
    broken = []
    for title, examine in sections(Path(cfg.runs)).items():
        print(f"\n{title}", flush=True)
        for finding in examine():
            print(line(finding), flush=True)
            broken += [finding.name] if finding.state == BAD else []
    if broken:
        print(f"\nsrc.train cannot run here: {', '.join(broken)}.")
        sys.exit(1)
    print("\nsrc.train can run here.")


def sections(runs: Path) -> dict:
    """Headings, and the functions that find what stands below them."""
    return {
        "Software": software,
        "Devices": devices,
        "Metrics": metrics,
        "Language models": language_models,
        "Data": data,
        "Results": lambda: results(runs),
    }


def line(finding: Finding) -> str:
    start = f"  {finding.name:<18}  {finding.state:<4}"
    return textwrap.fill(
        start + finding.text,
        WIDTH,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )


# --------------------------------------------------------------------------------------------------------------------
# software
# --------------------------------------------------------------------------------------------------------------------
def software() -> Iterator[Finding]:
    """Python and packages, against the versions that the project is tested with."""
    right = sys.version_info >= (3, 10)
    yield Finding("python", GOOD if right else BAD, platform.python_version() + ("" if right else "; 3.10 is needed"))
    tested = tested_versions(HOME / "constraints.txt")
    for name in (*NEEDED, *OPTIONAL):
        yield package(name, tested.get(name))


def package(name: str, tested: str | None) -> Finding:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, BAD if name in NEEDED else FAIR, f"missing: pip install {name}")
    other = f"; tested with {tested}" if tested and tested != version.split("+")[0] else ""
    return Finding(name, GOOD, version + other)


def tested_versions(constraints: Path) -> dict[str, str]:
    """Package -> version of the constraints that hold for this Python; empty where there is no such file."""
    from packaging.requirements import Requirement

    versions = {}
    for text in constraints.read_text(encoding="utf-8").splitlines() if constraints.is_file() else ():
        text = text.partition("#")[0].strip()
        if text and ((found := Requirement(text)).marker is None or found.marker.evaluate()):
            versions[found.name] = str(found.specifier).removeprefix("==")
    return versions


# --------------------------------------------------------------------------------------------------------------------
# devices
# --------------------------------------------------------------------------------------------------------------------
def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        yield Finding("torch", BAD, f"cannot be imported ({type(error).__name__}: {str(error).splitlines()[0]})")
        return
    yield Finding("cpu", GOOD, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        yield Finding("cuda", FAIR, "no GPU that this torch can use")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        with torch.cuda.device(number):
            half = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(f"cuda:{number}", GOOD, f"{about.name}, {about.total_memory / 2**30:.0f} GB, {half}")
    if torch.backends.mps.is_available():
        yield Finding("mps", GOOD, "Apple GPU")


# --------------------------------------------------------------------------------------------------------------------
# metrics
# --------------------------------------------------------------------------------------------------------------------
def metrics() -> Iterator[Finding]:
    """Every metric, with what stands in its way."""
    for name in ("BLEU", "ROUGE-L", "CIDEr-D", "diversity"):
        yield Finding(name, GOOD, "always")
    for name, scores in METRICS.items():
        reason = available(name)
        yield Finding(scores[0], FAIR if reason else GOOD, reason or f"metrics=[{name}]")
    try:
        yield Finding("java", GOOD, java_version())
    except Unavailable as error:
        yield Finding("java", FAIR, "none" if shutil.which("java") is None else str(error))


# --------------------------------------------------------------------------------------------------------------------
# language models
# --------------------------------------------------------------------------------------------------------------------
def language_models() -> Iterator[Finding]:
    """That of conf/language which comes inside a package: whether it is here, and converted already."""
    name = OmegaConf.load(HOME / "conf" / "language" / "smollm2.yaml").names.package
    place = Packaged.called(name).place
    if (place / SUMS).is_file():
        yield Finding("smollm2", GOOD, f"converted, in {place}")
        return
    try:
        check_convertible(name)
        yield Finding("smollm2", GOOD, f"installed, to be converted by its first run: {DURATION}")
    except UserError as error:
        yield Finding("smollm2", FAIR, str(error))


# --------------------------------------------------------------------------------------------------------------------
# data
# --------------------------------------------------------------------------------------------------------------------
def data() -> Iterator[Finding]:
    """The data sets of conf/data: drawn ones are always here, the others where their folder holds a list."""
    for path in sorted((HOME / "conf" / "data").glob("[!_]*.yaml")):
        cfg = OmegaConf.load(path)
        if "root" in cfg:
            yield data_set(path.stem, Path(cfg.root))
        elif path.stem == "captions_text":
            here = find_spec("pycocoevalcap") is not None
            yield Finding(
                path.stem, GOOD if here else FAIR, "inside pycocoevalcap" if here else "pip install pycocoevalcap"
            )
        elif "source" in cfg:
            yield Finding(path.stem, GOOD, "drawn")


def data_set(name: str, root: Path) -> Finding:
    if not root.is_dir():
        return Finding(name, FAIR, f"no folder {root}; say where it is with data.root=<folder>")
    lists = sorted(path.name for pattern in LISTS for path in root.glob(pattern))
    if not lists:
        return Finding(name, FAIR, f"{root} holds none of {', '.join(LISTS)}")
    return Finding(name, GOOD, f"{root}/{lists[0]}")


# --------------------------------------------------------------------------------------------------------------------
# results
# --------------------------------------------------------------------------------------------------------------------
def results(runs: Path) -> Iterator[Finding]:
    """Whether runs can be written, and whether Weights & Biases would take them."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free / 1e9
    except OSError as error:
        yield Finding(f"{runs}/", BAD, f"cannot be written ({error.strerror})")
    else:
        few = f"; less than the {ROOM:.0f} GB that a sweep may need" if free < ROOM else ""
        yield Finding(f"{runs}/", GOOD, f"{free:.1f} GB free{few}")
    yield Finding("wandb login", *((GOOD, "API key found") if has_key() else (FAIR, "no API key: wandb runs offline")))


def has_key() -> bool:
    """Whether wandb would find an API key, in the environment or in the netrc file; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        try:
            if netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


if __name__ == "__main__":
    main()
