"""Which words see the picture, and at which depth: log p(word | its picture) against other pictures', site by site.

python -m src.seeing run=runs/...                                some test captions of its data
python -m src.seeing run=[runs/a,runs/b] captions=200            also all on one axis of depth

In <run>/seeing: words.jsonl (nats that each word sees), seeing.json (by kind, position and depth, with 95 % intervals
over pictures), kinds.png, depth.png (what has entered up to a depth, what is lost without it, and on scenes what of a
thing's new colour comes in by it), captions.png. The W&B run of a training with logger=wandb gets them too.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import hydra
from omegaconf import DictConfig

from src.config.added_keys import run_config
from src.config.command_line import verb
from src.config.make import data_sets
from src.errors import UserError
from src.records.files import write_json, write_jsonl
from src.records.folder import Saved
from src.tasks.wandb_run import log_later

ENDS = ("share", "low", "high")


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="seeing")
@verb
def main(cfg: DictConfig) -> None:
    """Runs -> words.jsonl, seeing.json and figures in <run>/seeing; of several runs also a figure of all."""
    runs = [Path(run) for run in ([cfg.run] if isinstance(cfg.run, str) else cfg.run)]
    if not runs:
        raise UserError("run=[] names no run; say run=<folder>.")
    for run in runs:
        Saved.at(run).weights()
    found = {run: look(run, cfg) for run in runs}
    if len(runs) > 1:
        from src.diagnostics.figures import save
        from src.diagnostics.seeing_figures import depth_curves

        shared = Path(os.path.commonpath([run.resolve() for run in runs]))
        names = {str(run.resolve().relative_to(shared)): told for run, told in found.items()}
        figure, place = depth_curves(names), Path(cfg.output or shared) / "seeing.png"
        print(f"written: {save(figure, place)}" if figure else "No figure of all: none of them sees.")


def look(run: Path, cfg: DictConfig) -> dict:
    """What goes into a run's seeing.json, which is written, with all that lies beside it. Raises UserError."""
    from src.diagnostics.seeing_figures import draw
    from src.pretrained import restore_on

    options = next(iter(data_sets(run_config(run)).values()))
    parts = restore_on(run, options, cfg.split)
    data = chosen(run, parts, cfg)
    sight, found = measured(parts.captioner, data, cfg.split, cfg.shuffled)
    scores = {"seeing/nats": found["nats_per_token"]["seen"], "seeing/half_entered_at": found["half_entered_at"]}
    told = {"run": str(run), "split": cfg.split, "shuffled": cfg.shuffled, **found, "scores": scores}
    folder = run / "seeing"
    write_jsonl(folder / "words.jsonl", (vars(word) for word in sight.words))
    write_json(folder / "seeing.json", told)
    shown, size = data.examples(cfg.split)[: cfg.samples], parts.captioner.vision.spec.image_size
    written = draw(sight, told, {example.id: parts.source.pixels(example, size) for example in shown}, folder)
    print(story(told))
    print(f"written: {folder}/words.jsonl, seeing.json, {', '.join(path.name for path in written)}")
    log_later(run, "seeing", {"words": [vars(word) for word in sight.words], **tables(told)}, written)
    return told


def tables(told: dict) -> dict[str, list[dict]]:
    """The rows of seeing.json by kind of word and by site, flat, as W&B wants them."""
    kinds = [{"kind": name, **row} for name, row in told["by_kind"].items()]
    sites = [
        {"kind": site["kind"], "depth": site["depth"], "seen_when_cut": site["seen_when_cut"]}
        | {f"{what}_{end}": (site[what] or {}).get(end) for what in ("lost", "entered") for end in ENDS}
        for site in told["sites"]
    ]
    return {"kinds": kinds, "sites": sites}


def chosen(run: Path, parts, cfg: DictConfig):
    """The run's data with the examples that are looked at alone. Raises UserError where there is nothing to look at."""
    if parts.source.interleaved:
        raise UserError(f"{run} learnt from documents, not captions of one picture each; src.seeing cannot read these.")
    if not parts.captioner.fusion.sees:
        raise UserError(f"{run} does not look at pictures (fusion=blind): its words see nothing, whatever is shown.")
    examples = list(itertools.islice(parts.data.examples(cfg.split), cfg.captions))
    if len(examples) <= cfg.shuffled:
        raise UserError(
            f"There are {len(examples)} pictures of split={cfg.split} here, too few for shuffled={cfg.shuffled} others "
            "beside each; use more captions, or fewer others."
        )
    return parts.data.with_examples(cfg.split, examples)


def measured(captioner, data, split: str, shuffled: int) -> tuple:
    """What is seen, ``diagnostics.seeing.Sight``, and what it comes to, for seeing.json."""
    from src.diagnostics.patching import patching
    from src.diagnostics.seeing import see
    from src.diagnostics.seeing_summary import summary
    from src.scenes.words import word_kind
    from src.text.word_classes import word_class

    examples = data.examples(split)
    drawn = all("scene" in example.extra for example in examples)
    sight = see(captioner, data, split, shuffled, word_kind if drawn else word_class)
    kinds = "the words of scenes" if drawn else "lists of closed classes (src.text.word_classes), all else is content"
    told = {"kinds_by": kinds, **summary(sight)}
    captions = not any(example.question for example in examples)
    if drawn and captions and told["sites"] and not told["blind"]:
        told["patching"] = patching(captioner, data, split, sight)
    return sight, told


def story(told: dict) -> str:
    """A few lines of what was found."""
    per_token = told["nats_per_token"]
    amount = f"{per_token['seen']:.3f} nats a token [{per_token['low']:.3f}, {per_token['high']:.3f}]"
    lines = [f"{told['run']}: {told['captions']} captions, {told['tokens']} tokens, see {amount}"]
    if told["blind"]:
        return f"{lines[0]}: no more than chance, so there is nothing to see."
    for name, row in told["by_kind"].items():
        lines.append(f"  {name:<12}{row['seen']:7.3f} nats a word [{row['low']:.3f}, {row['high']:.3f}]  n={row['n']}")
    if not told["all_sites_found"]:
        lines.append("  with all sites cut it still sees: it reads the picture by a way that is not known here")
        return "\n".join(lines)
    for site in told["sites"]:
        lost, entered = site["lost"]["share"], site["entered"]["share"]
        shares = f"lost without it {lost:6.1%}, entered up to it {entered:6.1%}"
        lines.append(f"  depth {site['depth']:.2f} {site['kind']:<9} {shares}")
    if told.get("patching"):
        difference = told["patching"]["difference"]
        lines.append(
            f"  recoloured in {told['patching']['pairs']} scenes, a colour word loses {difference['nats']:.2f} nats "
            f"[{difference['low']:.2f}, {difference['high']:.2f}] against the other colour"
        )
    return "\n".join([*lines, f"  half has entered at depth {told['half_entered_at']:.2f}"])


if __name__ == "__main__":
    main()
