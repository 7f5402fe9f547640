"""The model card of an exported captioner: what it is, how good, what it cost, under which terms, and its limits.

All of it is read from the files of its run. The metadata on top is what model hubs read (huggingface_hub's
ModelCardData); the sections follow Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv 1810.03993, as far as
a run knows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from src.config.added_keys import run_config
from src.config.make import data_sets
from src.errors import UserError
from src.records.exported import Frozen

# What a run was trained on -> what that is, and the terms of its use.
DATA = {
    "scenes": ("drawn scenes of coloured shapes", "drawn by the code itself, so that nobody else has rights in them"),
    "coco": ("COCO 2014", "captions under CC BY 4.0; the photographs belong to Flickr users, each under their licence"),
    "flickr8k": ("Flickr8k", "photographs of Flickr users, given out for non-commercial research and education"),
    "flickr30k": ("Flickr30k", "photographs of Flickr users, given out for non-commercial research and education"),
    "own": ("own data", "the terms of those who own them"),
}
# Weights that others made -> the terms of their use; whoever published the rest says theirs.
WEIGHTS = {
    "package": "weights of EfficientNet-Lite0 by TensorFlow's authors (Apache 2.0), trained on ImageNet, which is "
    "given out for non-commercial research",
    "gpt2": "weights of GPT-2 by OpenAI (modified MIT licence)",
}
COSTS = {  # of metrics.json -> in words, factor, form
    "train_seconds": ("minutes of training", 1 / 60, ",.1f"),
    "step_ms": ("milliseconds a step (median)", 1, ",.1f"),
    "training_flops": ("GFLOP a step", 1e-9, ",.1f"),
    "pictures_seen": ("pictures seen in training", 1, ",.0f"),
    "peak_memory_mb": ("megabytes of memory at most", 1, ",.0f"),
    "captions_per_second": ("captions a second", 1, ",.1f"),
}
NOT_SCORED = "The run had not been scored when it was exported."
INTENDED = (
    "Research on how language models are made to see: comparing mechanisms, looking at what they attend to, building "
    "on them. Not for decisions about people, for surveillance, or for anything that safety depends on; as "
    "descriptions for people who cannot see a picture only after someone has looked at both."
)


@dataclass(frozen=True)
class About:
    """What a card is written from. ``results``: JSON files of the run by name; ``parameters``: per part, and sums."""

    name: str
    cfg: DictConfig
    results: Mapping[str, dict]
    frozen: Mapping[str, Frozen]
    parameters: Mapping[str, int]

    @property
    def environment(self) -> dict:
        return self.results.get("environment.json", {})

    @property
    def scored(self) -> dict[str, dict]:
        """The files with scores, the run's own first."""
        return {name: content for name, content in self.results.items() if isinstance(content.get("scores"), dict)}

    @property
    def parts(self) -> list[str]:
        return [part for part in ("fusion", "vision", "language") if part in self.parameters]

    def choice(self, group: str) -> str:
        """The word after ``group=`` on the command line."""
        node = self.cfg[group]
        target = node.get("_target_") or node.model["_target_"]
        return self.environment.get("choices", {}).get(group) or target.split(".")[-1]


def model_card(about: About) -> str:
    """Markdown with YAML metadata on top."""
    sections = "\n".join(f"\n## {title}\n\n{text}" for title, text in _sections(about) if text)
    return f"---\n{_metadata(about)}\n---\n\n# {about.name}\n\n{_introduction(about)}\n{sections}\n"


def _metadata(about: About) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    kinds = data_kinds(about.cfg)
    data = " and ".join(DATA[kind][0] for kind in kinds)
    content = next(iter(about.scored.values()), {"scores": {}})
    found = [
        EvalResult("image-to-text", "-".join(kinds), data, score, round(value, 4), dataset_split=content.get("split"))
        for score, value in content["scores"].items()
        if value is not None
    ]
    return ModelCardData(
        language="en",
        library_name="pytorch",
        pipeline_tag="image-to-text",
        tags=["image-captioning", f"fusion-{about.choice('fusion')}"],
        model_name=about.name if found else None,
        eval_results=found or None,
    ).to_yaml()


def _introduction(about: About) -> str:
    parts = ", ".join(f"`{part}={about.choice(part)}`" for part in about.parts)
    data = " and ".join(DATA[kind][0] for kind in data_kinds(about.cfg))
    return f"English captions by vision-language fusion: {parts}; trained on {data}, seed {about.cfg.seed}."


def _sections(about: About) -> Iterator[tuple[str, str]]:
    yield "Use", _use(about)
    yield "Scores", "\n\n".join(_scores(name, content) for name, content in about.scored.items()) or NOT_SCORED
    yield "Cost", _cost(about)
    yield "Parts", _parts(about)
    yield "Training", _training(about)
    yield "Licences", "\n".join(f"- {note}" for note in licences(about))
    yield "Intended use", INTENDED
    yield "Limits", "\n".join(f"- {limit}" for limit in limits(about))


def _use(about: About) -> str:
    commit = about.environment.get("commit")
    return (
        f"In a checkout of vision-language-fusion{f' (made at commit {commit})' if commit else ''}:\n\n"
        "```python\n"
        "from src.pretrained import caption_pictures, load\n\n"
        f'captioner = load("{about.name}")  # this folder\n'
        'captions = caption_pictures(captioner, ["photo.jpg"])  # {"photo.jpg": "..."}\n'
        "```\n\n"
        f"or `python -m src.caption run={about.name} images=photos/`. Loading executes nothing that is in this folder, "
        "and refuses files that differ from `manifest.json`."
    )


def _scores(name: str, content: dict) -> str:
    """One table: a row per score, and how the captions were decoded."""
    decoding = ", ".join(f"{key} {value}" for key, value in content.get("decoding", {}).items())
    data = f" of `{content['data']['name']}`" if "data" in content else ""
    pictures = f"{content['pictures']:,} pictures" if content.get("pictures") else ""
    what = [f"Split `{content.get('split')}`{data}", pictures]
    rows = [
        f"| {score} | {'-' if value is None else format(value, '.4f')} |" for score, value in content["scores"].items()
    ]
    remarks = [f"{score}: {why}" for kind in ("missing", "notes") for score, why in content.get(kind, {}).items()]
    sha256 = content.get("references_sha256")
    tail = [f"References: sha256 `{sha256}`."] if sha256 else []
    head = ", ".join(filter(None, [*what, f"decoding: {decoding}" if decoding else "", f"from `{name}`"]))
    table = "\n".join(["| score | value |", "|---|---|", *rows])
    return "\n\n".join([f"{head}.", table, *remarks, *tail])


def _cost(about: About) -> str:
    cost = next((content["cost"] for content in about.scored.values() if content.get("cost")), {})
    rows = [
        f"| {words} | {cost[key] * factor:{form}} |"
        for key, (words, factor, form) in COSTS.items()
        if cost.get(key) is not None
    ]
    rows += [f"| parameters, {kind} | {about.parameters[kind]:,} |" for kind in ("trainable", "total")]
    machine = about.environment.get("machine", {})
    where = f"\n\nMeasured on {machine['platform']}, {machine['cores']} cores." if machine else ""
    return "\n".join(["| cost | value |", "|---|---|", *rows]) + where


def _parts(about: About) -> str:
    rows = []
    for part in about.parts:
        frozen = about.frozen.get(part)
        if frozen is None:
            where = "trained, in `model.safetensors`"
        else:
            place = "in `model.safetensors`" if frozen.included else "not in this folder"
            where = f"frozen, from `{frozen.source}`, {place}, sha256 `{frozen.sha256}`"
        rows.append(f"| {part} | `{about.choice(part)}` | {about.parameters[part]:,} | {where} |")
    return "\n".join(["| part | what | parameters | weights |", "|---|---|---|---|", *rows])


def _training(about: About) -> str:
    environment, lines = about.environment, []
    if "command" in environment:
        lines.append(f"```bash\n{environment['command']}\n```\n")
    if environment.get("commit"):
        changed = ", with uncommitted changes" if environment.get("uncommitted_changes") else ""
        lines.append(f"Commit `{environment['commit']}`{changed}; seed {about.cfg.seed}.")
    versions = [f"{name} {version}" for name, version in environment.get("packages", {}).items() if version]
    if versions:
        lines.append(f"Python {environment.get('python')}, {', '.join(versions)}.")
    for name, options in data_sets(about.cfg).items():
        described = ", ".join(f"{key} `{value}`" for key, value in options.source.items() if key != "_target_")
        title = f"Data {name}" if name else "Data"
        lines.append(f"{title}: {DATA[data_kind(options.source)][0]}" + (f" ({described})." if described else "."))
        if options.train_fraction < 1:
            lines.append(f"Only {options.train_fraction:.0%} of its training split were used.")
    lines.append("All options: `captioner.yaml`.")
    return "\n".join(lines)


def licences(about: About) -> Iterator[str]:
    """The code's, and what the data and weights behind the tensors ask for."""
    yield "The code that runs it: MIT."
    yield (
        "The tensors: what you may do with them depends on the data and the weights that they were made from; this is "
        "no legal advice."
    )
    configs = [about.cfg, *earlier(about.cfg)]
    for kind in dict.fromkeys(kind for cfg in configs for kind in data_kinds(cfg)):
        yield f"{DATA[kind][0]}: {DATA[kind][1]}."
    for name in dict.fromkeys(name for cfg in configs for part in about.parts for name in foreign_weights(cfg, part)):
        yield f"{WEIGHTS.get(name, f'weights {name}, under the terms of their publisher')}."


def limits(about: About) -> Iterator[str]:
    kinds = data_kinds(about.cfg)
    if set(kinds) == {"scenes"}:
        yield "It has only seen drawn scenes: of photographs its captions say nothing."
    else:
        yield f"It says what captions of {' and '.join(DATA[kind][0] for kind in kinds)} say, in their manner."
        yield "Captions about people repeat what annotators presumed, such as their gender, age or occupation."
    yield "It gives wrong captions in the same tone as right ones; colours, numbers, places and rare things above all."
    scores = next(iter(about.scored.values()), {"scores": {}})["scores"]
    if scores.get("truth") is not None:
        yield f"Of its captions of the pictures above, {1 - scores['truth']:.1%} are not wholly true."
    yield "The scores are those of one seed; differences of a few hundredths to another run are no finding."
    if about.environment.get("uncommitted_changes"):
        yield "It was trained with changes that are in no commit, so that it cannot be trained again exactly."
    for part, frozen in about.frozen.items():
        if not frozen.included:
            yield f"Loading it needs the frozen {part} weights, {frozen.source}; others are refused by their sha256."


def data_kinds(cfg: DictConfig) -> list[str]:
    """Keys of ``DATA`` for the data sets of a configuration."""
    return list(dict.fromkeys(data_kind(options.source) for options in data_sets(cfg).values()))


def data_kind(source: DictConfig) -> str:
    name = source["_target_"].split(".")[-1]
    if name in ("Scenes", "ScenesInterleaved"):
        return "scenes"
    if name == "Karpathy" and source.get("name") in DATA:
        return source.name
    return "coco" if name == "CaptionsText" and "spice_jar" in source.get("files", ()) else "own"


def earlier(cfg: DictConfig) -> Iterator[DictConfig]:
    """Configurations of the runs whose weights a run started from, as far as their folders are here."""
    for part in ("language", "vision"):
        weights = cfg[part].get("weights")
        if weights and Path(weights).is_dir():
            try:
                found = run_config(weights)
            except UserError:
                continue  # an open_clip folder, say, and no run
            yield found
            yield from earlier(found)


def foreign_weights(cfg: DictConfig, part: str) -> Iterator[str]:
    """Names of weights that no run here made."""
    options = cfg[part]
    weights, init = options.get("weights"), options.get("init")
    if part == "vision" and options.get("pretrained"):
        yield f"{options.model}:{options.pretrained}"
    elif part == "vision" and str(options.get("model", "")).startswith(("local-dir:", "hf-hub:")):
        yield options.model
    elif part == "vision" and weights and not Path(weights).is_dir():
        yield weights
    elif part == "language" and init == "pretrained":
        yield options.name
