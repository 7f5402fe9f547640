"""Score a trained run again: another split, another decoding, other data.

python -m src.evaluate run=runs/... split=val decode=greedy
python -m src.evaluate run=runs/... shots=4
python -m src.evaluate run=runs/... data=coco data.root=<folder>   other pictures than the run's
python -m src.evaluate run=runs/... data.root=<folder>             the run's own, which lie there now
python -m src.evaluate run=exported/srau data=coco data.root=<folder>
"""

from __future__ import annotations

import json
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.config.added_keys import run_config
from src.config.command_line import verb
from src.config.make import data_sets
from src.errors import UserError
from src.metrics.extra import check_names
from src.records import exported
from src.records.folder import Saved


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="evaluate")
@verb
def main(cfg: DictConfig) -> float:
    """Results go to their own folder: what the run itself wrote stays."""
    run, metrics = Path(cfg.run), check_names(cfg.metrics, cfg.tokens)
    Saved.at(run).weights()
    chosen = HydraConfig.get().runtime.choices
    name, options = data_set(cfg, run)
    from src.build import parameter_counts, use_features
    from src.decoding.magic import Magic
    from src.pretrained import restore_on
    from src.tasks.choose import choose
    from src.tasks.judge import judge_on
    from src.tasks.results import report

    parts = restore_on(run, options, cfg.split, cfg.get("decode"))
    if chosen.get("data"):
        parts.data.image_tag = parts.captioner.tagged  # captions begin as those that it has learnt
    task = choose(cfg.task, parts.source, parts.captioner.fusion, metrics, cfg.tokens, cfg.shots)
    task.check(parts, cfg.split)
    shots = None if cfg.shots is None else f"{cfg.shots}-shot"
    counted = None if cfg.tokens == "words" else cfg.tokens
    words = [chosen.get("data"), cfg.data_set, cfg.split, cfg.task, shots, chosen.get("decode"), counted]
    folder = Path(cfg.output) if cfg.output else run / "evaluate" / "-".join(filter(None, words))
    if not Saved.at(run).is_run and exported.holds(run, folder):
        raise UserError(f"{folder} came with the export, whose files stay as they are; say output=<another folder>.")
    check_same(folder, cfg.split, parts.data.fingerprint(cfg.split), f"output={run}/evaluate/<name> keeps both")
    if not (chosen.get("data") or cfg.output):
        trained_on = run / name if (run / name / "metrics.json").is_file() else run
        more = "for other data than the run's say data=<name> data.root=<folder>"
        check_same(trained_on, cfg.split, parts.data.fingerprint(cfg.split), more)
    use_features(parts.data, options, parts.captioner, [cfg.split])
    if isinstance(decoder := parts.captioner.decoder, Magic):
        decoder.meet(judge_on(Path(decoder.judge), options, cfg.split), parts.captioner.tokenizer.decode)
    result = task.evaluate(parts, cfg.split)
    about = {"name": parts.source.name, "source": OmegaConf.to_container(options.source, resolve=True)}
    report(parts.data, result, folder, {"parameters": parameter_counts(parts.captioner)}, cfg.samples, about)
    return result.headline[1]


def data_set(cfg: DictConfig, run: Path) -> tuple[str, DictConfig]:
    """Name and options of the data set to score: of ``data=<name>``, or of the run, with what ``cfg`` changes of it."""
    sets = data_sets(cfg if "source" in cfg.data or "members" in cfg.data else run_config(run))
    if cfg.data_set and cfg.data_set not in sets:
        known = ", ".join(filter(None, sets)) or "a single one, without a name; leave data_set out"
        raise UserError(f"data_set={cfg.data_set} does not exist; there is {known}.")
    name = cfg.data_set or next(iter(sets))
    return name, changed(sets[name], cfg.data)


def changed(options: DictConfig, data: DictConfig) -> DictConfig:
    """The options of a data set with those of ``data`` that are not null; root and the like reach the source, too."""
    plain, given = (OmegaConf.to_container(node, resolve=True) for node in (options, data))
    for name, value in given.items():
        if value is None or name in ("members", "schedule", "weights", "source"):
            continue
        if name not in plain or (name == "root" and name not in plain["source"]):
            known = ", ".join(f"data.{one}" for one in plain if one != name)
            raise UserError(f"data.{name}={value} means nothing to these data; they know {known}.")
        plain[name] = value
        if name in plain["source"] and "source" not in given:
            plain["source"][name] = value
    return OmegaConf.create(plain)


def check_same(results: Path, split: str, fingerprint: str, otherwise: str) -> None:
    """Refuse to put scores on some pictures and captions beside, or in place of, scores on others. Raises UserError."""
    path = results / "metrics.json"
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        known = earlier["references_sha256"] if earlier["split"] == split else fingerprint
    except (OSError, ValueError, KeyError, TypeError):
        return  # no scores, or none that can be read
    if known != fingerprint:
        raise UserError(f"{path} is about other pictures or captions of split={split} than these; {otherwise}.")


if __name__ == "__main__":
    main()
