"""The only file that turns a configuration into objects: tokenizer, language, vision -> fusion -> captioner, data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig

from src.captioner import PARTS, Captioner
from src.config.classes import plain
from src.config.make import check_saved, data_sets, make
from src.contracts import Language, Prepared, Source, Tokenizer
from src.data.base import Streamed
from src.errors import UserError
from src.fusion.base import Fusion
from src.language.base import LanguageModel
from src.loading.mixture import Mixture
from src.loading.module import CaptionData, DocumentData
from src.objectives.base import Objective
from src.objectives.default import default_objectives
from src.records import exported
from src.records.files import verify
from src.records.folder import checkpoint_path, is_export, run_config
from src.records.weights import read_checkpoint
from src.text.tokenizers import load_tokenizer
from src.vision.base import Vision

TOKENIZER_EXAMPLES = 20_000  # pictures whose captions train a tokenizer; enough for any vocabulary used here


@dataclass
class Parts:
    """Everything that a verb needs. ``data`` is a Mixture where several data sets train together."""

    captioner: Captioner
    data: CaptionData | Mixture

    @property
    def source(self) -> Source:
        if isinstance(self.data, Mixture):
            raise ValueError("There are several sources here; ask each of ``data_sets()`` for its own.")
        return self.data.source

    def data_sets(self) -> dict[str, Parts]:
        """The same captioner with each data set by name; a single one is named ""."""
        if isinstance(self.data, Mixture):
            return {name: Parts(self.captioner, member) for name, member in self.data.members.items()}
        return {"": self}


def build(cfg: DictConfig, sources: dict[str, Source], tokenizer_folder: Path | None = None) -> Parts:
    """Build all parts around data sources. ``tokenizer_folder``: restore a run's tokenizer instead of making one."""
    tokenizer = build_tokenizer(cfg, sources, tokenizer_folder)
    language = build_language(cfg, tokenizer)
    vision = build_vision(cfg) if any(source.has_images for source in sources.values()) else None
    captioner = build_captioner(cfg, vision, language, tokenizer)
    data = {name: build_data(options, cfg.seed, sources[name], captioner) for name, options in data_sets(cfg).items()}
    for name, options in data_sets(cfg).items():
        use_features(data[name], options, captioner, sources[name].splits())
    if "members" in cfg.data:
        return Parts(captioner, Mixture(data, cfg.data.weights, cfg.data.schedule))
    return Parts(captioner, data[""])


def build_tokenizer(cfg: DictConfig, sources: dict[str, Source], folder: Path | None) -> Tokenizer:
    """From ``folder``, from the run named by language.weights, or made anew from the training captions."""
    folder = folder or (Path(cfg.language.weights) / "tokenizer" if cfg.language.weights else None)
    if folder is not None:
        return saved_tokenizer(folder)
    made: Tokenizer | Callable[[list[str]], Tokenizer] = make(cfg.language.tokenizer)
    if not callable(made):
        return made
    share = TOKENIZER_EXAMPLES // len(sources)
    examples = (e for source in sources.values() for e in itertools.islice(iter(source.examples("train")), share))
    return made([caption for example in examples for caption in example.captions])


def saved_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of a run or export. Raises UserError when it is missing or damaged."""
    verify(folder.parent, folder.name)
    return load_tokenizer(folder)


def build_language(cfg: DictConfig, tokenizer: Tokenizer) -> LanguageModel:
    with own_randomness(cfg.seed, "language"):
        language: LanguageModel = make(cfg.language.model)(tokenizer)
    language.recompute = cfg.language.get("recompute", False)
    if cfg.language.weights:
        language.load_state_dict(previous_language(Path(cfg.language.weights)))
    return language


def previous_language(run: Path) -> dict[str, torch.Tensor]:
    """Language weights of a run; a run that kept its language frozen points on to the run it took it from."""
    checkpoint = load_checkpoint(run)
    state, included = checkpoint["state_dict"], checkpoint.get("included", {})
    weights = {name.removeprefix("language."): x for name, x in state.items() if name.startswith("language.")}
    weights = included.get("language", weights)
    if weights:
        return weights
    earlier = run_config(run).language.weights
    if earlier is None:
        raise UserError(f"{run} holds no trained language model; give a run that trained one (regime=finetune_lm).")
    return previous_language(Path(earlier))


def build_vision(cfg: DictConfig) -> Vision:
    with own_randomness(cfg.seed, "vision"):
        return make(cfg.vision)


def build_captioner(cfg: DictConfig, vision: Vision | None, language: Language, tokenizer: Tokenizer) -> Captioner:
    """Widths are agreed here: projector and fusion learn them from the specs of both sides."""
    spec = vision.spec if vision else None
    projector = None
    if spec is not None and cfg.get("projector"):
        with own_randomness(cfg.seed, "projector"):
            projector = make(cfg.projector)(spec, language.spec)
        spec = projector.spec
    with own_randomness(cfg.seed, "fusion"):
        fusion = make(cfg.fusion)(spec, language.spec)
        fusion.init_from(language)
    regime = plain(cfg.regime)
    if regime["train_vision"] == "auto":
        regime["train_vision"] = vision is not None and not vision.pretrained
    if vision is None or not fusion.sees:
        vision, projector, regime["train_vision"] = None, None, False  # what is not read is neither trained nor counted
    optim = {**plain(cfg.optim), "precision": precision(cfg.trainer.precision)}
    tagged = any(options.get("image_tag", "max_images" in options) for options in data_sets(cfg).values())
    objectives = build_objectives(cfg, fusion)
    return Captioner(
        vision, fusion, language, tokenizer, regime, optim, make(cfg.decode), objectives, projector, tagged
    )


def build_objectives(cfg: DictConfig, fusion: Fusion) -> dict[str, Objective]:
    """Those of the configuration; where it names none, what the mechanism can do decides.

    Raises UserError for one that needs another ability.
    """
    named = cfg.get("objectives") or {}
    objectives = {name: make(node) for name, node in named.items()} or default_objectives(fusion)
    for name, objective in objectives.items():
        if not isinstance(fusion, objective.needs):
            raise UserError(
                f"objective={name} needs a mechanism that is a {objective.needs.__name__}, and fusion="
                f"{type(fusion).__name__} is none; choose another objective=."
            )
    return objectives


def build_data(options: DictConfig, seed: int, source: Source, captioner: Captioner) -> CaptionData:
    """The data module, which reads pictures, if any, until ``use_features``."""
    faults = getattr(source, "faults", None)
    if options.get("on_error", "raise") == "skip" and (faults is None or faults.on_error != "skip"):
        raise UserError(
            f"data.on_error=skip does not reach data={source.name}; leave it out, or give the source "
            "on_error: ${..on_error} in conf/data."
        )
    vision = captioner.vision
    if vision is not None and isinstance(source, Prepared):
        source.prepare(vision.preprocessing)
    needed, context = options.max_tokens + captioner.fusion.extra_positions, captioner.language.spec.context
    if needed > context:
        raise UserError(
            f"data.max_tokens={options.max_tokens} and the fusion need {needed} positions, but the language model "
            f"reads {context}; lower data.max_tokens, or raise language.model.context of a model made here."
        )
    shared = {
        "image_size": vision.spec.image_size if vision else None,
        "batch_size": options.batch_size,
        "train_fraction": options.train_fraction,
        "seed": seed,
        "max_tokens": options.max_tokens,
        "workers": options.workers,
        "objectives": captioner.objectives,
    }
    if source.interleaved:
        return DocumentData(source, captioner.tokenizer, options.max_images, options.p_next, **shared)
    shared |= {name: options[name] for name in ("captions_per_image", "image_tag", "by_length") if name in options}
    return CaptionData(source, captioner.tokenizer, **shared)


def use_features(data: CaptionData, options: DictConfig, captioner: Captioner, splits: Sequence[str]) -> None:
    """With a frozen encoder, read features of ``splits`` that are computed once and kept on disk.

    Not of documents, and not of streamed data: they would take more room than the pictures.
    """
    vision, source = captioner.vision, data.source
    if vision is None or captioner.trains("vision") or source.interleaved:
        return
    if not isinstance(data.examples(splits[0]), Streamed):
        from src.loading.features import FeatureCache

        data.features = {
            split: FeatureCache.open_or_build(
                Path(options.cache_dir),
                vision,
                source,
                data.examples(split),
                captioner.needs_levels,
                tokens=captioner.needs_tokens,
            )
            for split in splits
        }


def restore(run: Path, decode: DictConfig | None = None) -> Parts:
    """The parts of a run with its trained weights. ``decode`` replaces the run's way of decoding."""
    cfg = _run_config(run, decode)
    sources = {name: make(options.source) for name, options in data_sets(cfg).items()}
    parts = build(cfg, sources, run / "tokenizer")
    load_weights(parts.captioner, checkpoint_path(run))
    place(parts.captioner, cfg)
    return parts


def restore_on(run: Path, options: DictConfig, split: str, decode: DictConfig | None = None) -> Parts:
    """A run's captioner with its trained weights, and one data set of which ``split`` is to be read; no features yet.

    ``options``: as in conf/data, of the run's own data or of others. Raises UserError where they do not go together.
    """
    source = make(options.source)
    if split not in source.splits():
        raise UserError(f"split={split} does not exist; this data has {', '.join(source.splits())}.")
    captioner = restore_captioner(run, decode)
    if captioner.fusion.sees and not source.has_images:
        raise UserError(f"{run} reads pictures, and data={source.name} has none.")
    return Parts(captioner, build_data(options, run_config(run).seed, source, captioner))


def restore_captioner(run: Path, decode: DictConfig | None = None) -> Captioner:
    """The captioner of a run with its best weights, without its data (which need not be here); also an exported one."""
    checkpoint = load_checkpoint(run)
    cfg = _run_config(run, decode)
    tokenizer = saved_tokenizer(run / "tokenizer")
    saw = "vision" in checkpoint["frozen"] or any(name.startswith("vision.") for name in checkpoint["state_dict"])
    parts = {"vision": build_vision(cfg) if saw else None, "language": build_language(cfg, tokenizer)}
    for part, tensors in checkpoint.get("included", {}).items():
        _fill(parts[part], tensors, f"{run}: the frozen {part}")  # before the fusion looks at it
    captioner = build_captioner(cfg, **parts, tokenizer=tokenizer)
    captioner.check_origin(checkpoint)
    captioner.load_state_dict(checkpoint["state_dict"])
    place(captioner, cfg)
    return captioner


def place(captioner: Captioner, cfg: DictConfig) -> None:
    """Onto the GPU that torch would use, if there is one; a run that was told to train on the CPU stays there."""
    if cfg.trainer.accelerator != "cpu" and torch.accelerator.is_available():
        captioner.to(torch.accelerator.current_accelerator())


def _fill(module: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{what} does not fit its configuration ({str(error).splitlines()[-1].strip()}).") from error


def _run_config(run: Path, decode: DictConfig | None) -> DictConfig:
    cfg = run_config(run)
    check_saved(cfg, run)
    if decode is not None:
        cfg.decode = decode
    return cfg


def load_weights(captioner: Captioner, path: Path) -> None:
    """Trained tensors of a checkpoint into ``captioner``, after checking that the frozen parts are the same."""
    checkpoint = read_checkpoint(path)
    captioner.check_origin(checkpoint)
    captioner.load_state_dict(checkpoint["state_dict"])


def load_checkpoint(run: Path) -> dict:
    """The best checkpoint of a run, or the same of an exported folder."""
    return exported.read(run) if is_export(run) else read_checkpoint(checkpoint_path(run))


def precision(wanted: str) -> str:
    """Resolve "auto": bf16-mixed where the hardware multiplies bf16 natively, else 32-true."""
    if wanted != "auto":
        return wanted
    native = torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else _cpu_has_bf16()
    return "bf16-mixed" if native else "32-true"


def _cpu_has_bf16() -> bool:
    """AMX or AVX-512 BF16: either multiplies bfloat16 matrices several times faster than float32 ones."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


@contextmanager
def own_randomness(seed: int, part: str):
    """A generator of its own for each part, so that two arms start alike wherever they are alike."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{part}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield


def parameter_counts(captioner: Captioner) -> dict[str, int]:
    """Trainable and total parameters, and those of each part."""
    counts = {"trainable": 0, "total": 0}
    for part in PARTS:
        module = getattr(captioner, part)
        if module is None or (part == "heads" and not len(module)):
            continue
        counts[part] = sum(p.numel() for p in module.parameters())
        counts["total"] += counts[part]
        counts["trainable"] += sum(p.numel() for p in module.parameters() if p.requires_grad)
    return counts
