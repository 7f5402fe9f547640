"""What every mechanism costs: training, decoding, data; beside the plain language model and other libraries.

python -m src.benchmark
python -m src.benchmark sizes=[base] fusions=[cross_attention,coca] regimes=[finetune_lm] repeats=3
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from src.benchmarking.jobs import FLOOR, Alone, Failure, Job, plan
from src.benchmarking.summary import summarise
from src.benchmarking.tables import text
from src.config.checks import choices
from src.config.classes import HOME, lineage, texts
from src.config.command_line import verb
from src.errors import UserError
from src.records.environment import environment
from src.records.files import write_json, write_text

PEERS = ("vision_encoder_decoder", "blip", "open_clip_coca")
MODULE = "src.benchmarking.measure"


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="benchmark")
@verb
def main(cfg: DictConfig) -> None:
    """Measure in rounds, print the tables, write benchmark.json and table.md."""
    settings = checked(cfg)
    output = Path(str(cfg.output))
    if settings["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes that measure inherit it, and take what they see
    with tempfile.TemporaryDirectory() as folder:
        for results in measure({**settings, "folder": folder}):
            content = {"environment": environment(), "settings": settings, **results}
            write_json(output / "benchmark.json", content)  # after every round: the next may be cut off
            write_text(output / "table.md", text(content))
    print(f"\n{text(content)}\nwritten: {output}/benchmark.json, table.md")
    ours = [job for job in content["failures"] if "(peer)" not in job]
    if ours:
        raise UserError(f"{len(ours)} measurements failed, the first was {ours[0]}; the notes in table.md say why.")


def measure(settings: dict) -> Iterator[dict]:
    """Everything, in rounds: each measures all jobs once, one after the other, so that a drift of the machine's speed
    meets all alike. A job that fails is not tried again. Yields after every round what all rounds have found."""
    alone, jobs = Alone(MODULE), plan(settings)
    about = alone(_take, Job("prepare"), settings)
    if isinstance(about, Failure):
        raise UserError(f"The benchmark cannot be prepared: {about.reason}.")
    found: dict[Job, list[dict]] = {job: [] for job in jobs}
    failures: dict[Job, Failure] = {}
    for turn in range(settings["repeats"]):
        for place, job in enumerate(jobs, 1):
            if job in failures:
                continue
            print(f"round {turn + 1} of {settings['repeats']}, {place} of {len(jobs)}: {job}", flush=True)
            answer = alone(_take, job, {**settings, "count": turn == 0})
            if isinstance(answer, Failure):
                failures[job] = answer
            else:
                found[job].append(answer)
        yield {"on": about, "rounds": turn + 1, **summarise(jobs, found, failures)}


def _take(job: Job, settings: dict) -> dict:
    """In a process of its own, which has the heavy libraries imported."""
    from src.benchmarking.measure import take

    return take(job, settings)


def checked(cfg: DictConfig) -> dict:
    """The configuration as plain data, lists filled in. Raises UserError for what cannot be measured.

    Types and ranges have been checked before: see src.config.table.
    """
    settings = OmegaConf.to_container(cfg, resolve=True)
    batches = settings["decode"]["batches"]
    known = {
        "fusions": [name for name in choices("fusion") if writes(name)],
        "regimes": choices("regime"),
        "peers": PEERS,
        "sizes": tuple(settings["size"]),
    }
    if settings["fusions"] is None:
        settings["fusions"] = [FLOOR, *(name for name in known["fusions"] if name != FLOOR)]
    for key, names in known.items():
        settings[key] = texts(settings[key])
        for name in settings[key]:
            _one_of(key, name, names)
    _one_of("encoder", settings["encoder"], choices("vision"))
    several = {key: settings[key] for key in ("regimes", "sizes", "pack")} | {"decode.batches": batches}
    for key, value in several.items():
        if not value:
            raise UserError(f"{key}=[] leaves nothing to measure; leave it out, or name at least one.")
    for size in settings["sizes"]:
        _check_heads(f"size.{size}", settings["size"][size])
    if settings["lengths"] == "questions":
        if settings["captions"] != 1 or settings["peers"]:
            raise UserError("lengths=questions asks one question a picture, of no peer: captions=1 peers=[].")
    elif settings["lengths"] is not None and not Path(settings["lengths"]).is_file():
        raise UserError(f"lengths={settings['lengths']} is no file.")
    return settings


def writes(fusion: str) -> bool:
    """Whether a mechanism writes, which is what is measured here."""
    return "Writer" in lineage(OmegaConf.load(HOME / "conf" / "fusion" / f"{fusion}.yaml")._target_)


def _check_heads(key: str, size: dict) -> None:
    if size["width"] % size["heads"]:
        raise UserError(f"{key}.heads must divide {key}.width.")
    grouped = [size.get(name) for name in ("key_value_heads", "mlp")]
    if (size.get("family") == "llama") != all(grouped) or any(grouped) != all(grouped):
        raise UserError(f"{key} needs key_value_heads and mlp with family: llama, and has neither without it.")
    if all(grouped) and size["heads"] % size["key_value_heads"]:
        raise UserError(f"{key}.key_value_heads must divide {key}.heads.")


def _one_of(key: str, name, names: Iterable[str]) -> None:
    if name not in names:
        raise UserError(f"{key}: choose from {', '.join(names)}; got {name!r}.")


if __name__ == "__main__":
    main()
