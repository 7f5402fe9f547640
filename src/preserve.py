"""What learning to see cost of what the language model knew: prose, facts, grammar, and knowledge through pictures.

python -m src.preserve run=runs/...                              against the language model that the run began from
python -m src.preserve run=[runs/a,runs/b] tokens=30000          also one table of all, and forgetting over seeing

In <run>/preserve: preserve.json (nats, counts and hashes, with 95 % intervals), items.jsonl (every window and question,
at the start and now), preserve.png. Forgetting is told three times, in nats per token of prose unlike captions: of the
weights alone, of the model as deployed without a picture, and behind a picture that has nothing to do with the text.
A model "forgets" where that interval lies above 0; an arm by its seeds, with fewer than five as a hint.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.added_keys import run_config
from src.config.command_line import verb
from src.config.make import data_sets
from src.errors import UserError
from src.records.files import write_json, write_jsonl, write_text
from src.records.folder import Saved
from src.tasks.wandb_run import log_later

PICTURES_SEED = 0  # of the irrelevant pictures: the same for all runs on the same data

LEAST = 2  # pictures of a category, for knowledge to be asked of it


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="preserve")
@verb
def main(cfg: DictConfig) -> None:
    """Runs -> preserve.json, items.jsonl and a figure in <run>/preserve; of several runs also a table and a figure."""
    runs = [Path(run) for run in ([cfg.run] if isinstance(cfg.run, str) else cfg.run)]
    if not runs:
        raise UserError("run=[] names no run; say run=<folder>.")
    for run in runs:
        Saved.at(run).weights()
    known: dict = {}
    found = {run: look(run, cfg, known) for run in runs}
    if len(runs) > 1:
        from src.diagnostics.figures import save
        from src.diagnostics.preserving_arms import arms, frontier, table

        shared = Path(cfg.output or os.path.commonpath([run.resolve() for run in runs]))
        rows = arms(found)
        print(text := table(rows))
        write_text(shared / "preserve.md", f"{text}\n")
        write_json(shared / "preserve.json", rows)
        written = [save(figure, shared / "preserve.png")] if (figure := frontier(rows)) else []
        print(f"written: {', '.join(map(str, [shared / 'preserve.md', shared / 'preserve.json', *written]))}")


def look(run: Path, cfg: DictConfig, known: dict) -> dict:
    """What goes into a run's preserve.json, which is written, with all that lies beside it. Raises UserError.

    ``known``: what starts have answered before, in this process.
    """
    from src.data.order import circle
    from src.diagnostics.preserving_figures import draw
    from src.diagnostics.preserving_run import asking, knowledge_part, prose_part, questions_part
    from src.diagnostics.preserving_summary import scores, verdict
    from src.pretrained import first_language, restore_on
    from src.probes.files import SHA256

    options = next(iter(data_sets(run_config(run)).values()))
    parts = restore_on(run, options, cfg.split)
    require_writer(run, parts)
    captioner = parts.captioner.float().eval()
    first, about = first_language(run, captioner)
    places = circle(len(parts.data.examples(cfg.split)), PICTURES_SEED)[: cfg.pictures]
    asked = asking(captioner, first, parts.data, cfg.split, places, known)
    found = {"prose": prose_part(asked, cfg.tokens)}
    found |= {name: questions_part(asked, name) for name in ("cloze", "grammar")}
    found["knowledge"] = knowledge_part(captioner, parts.data, cfg.split, cfg.of_category)
    items = [item for part in found.values() for item in part.pop("items")]
    told = {"run": str(run), "split": cfg.split, "start": {"about": about, "sha256": asked.sha256 or None}, **found}
    told |= {"probes": SHA256, "scores": scores(told), "verdict": verdict(told)}
    folder = run / "preserve"
    write_jsonl(folder / "items.jsonl", items)
    write_json(folder / "preserve.json", told)
    print(story(told))
    figure = draw(told, folder)
    print(f"written: {folder}/preserve.json, items.jsonl, {figure.name}")
    log_later(run, "preserve", {"scores": [told["scores"]]}, [figure])
    return told


def require_writer(run: Path, parts) -> None:
    """Raises UserError for a run of which nothing can be asked."""
    from src.fusion.base import Writer

    if parts.source.interleaved:
        raise UserError(f"{run} learnt from documents, not captions of one picture; src.preserve cannot read these.")
    if not isinstance(parts.captioner.fusion, Writer):
        raise UserError(f"{run} does not write, so that nothing can be asked of it; src.preserve needs one that does.")


def story(told: Mapping) -> str:
    """A few lines of what was found."""
    prose, known = told["prose"], told["knowledge"]
    domains = ", ".join(prose["by_domain"])
    lines = [f"{told['run']} against {told['start']['about']}: {prose['tokens']} tokens of {domains}"]
    lines += prose["left_out"]
    for way, nats in prose["nats"].items():
        lost = (prose["forgetting"] or {}).get(way)
        forgotten = f"   {_interval(lost, 'nats', '+.4f')} forgotten" if lost else ""
        lines.append(f"{way:<11}{nats:8.4f} nats a token{forgotten}")
    for name in ("cloze", "grammar"):
        for way, right in told[name]["right"].items():
            moved, change = "", (told[name]["change"] or {}).get(way)
            if change:
                counts = f"gained {change['gained']}, lost {change['lost']}"
                moved = f"   {_interval(change, 'questions', '+.0f')}: {counts}"
            lines.append(f"{name:<8}{way:<11}{right:5d} of {told[name]['n']} right{moved}")
    if "left_out" in known:
        lines.append(f"knowledge is left out: {known['left_out']}")
    else:
        lines.append(f"knowledge through {known['pictures']} pictures: {_interval(known, 'nats', '+.4f')} nats a pair")
    return "\n  ".join([*lines, told["verdict"]])


def _interval(found: Mapping, what: str, form: str) -> str:
    return f"{found[what]:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


if __name__ == "__main__":
    main()
