"""The only file that turns a configuration into objects: tokenizer, language, vision -> fusion -> captioner, data."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from src.captioner import PARTS, Captioner
from src.config.classes import plain
from src.config.make import data_sets, make
from src.contracts import Example, Language, Prepared, Source, Tokenizer
from src.data.answers import commonest_answers
from src.data.base import Streamed
from src.errors import UserError
from src.fusion.base import Fusion, Reader, Writer
from src.language.adapters import adapt
from src.language.base import LanguageModel
from src.loading.mixture import Mixture
from src.loading.module import CaptionData, DocumentData
from src.loading.rows import Rows
from src.objectives.base import Objective, Surroundings
from src.objectives.default import default_objectives
from src.records.folder import Saved
from src.records.weights import tensor_hash
from src.text.tokenizers import load_tokenizer
from src.training.origin import check_tensors
from src.vision.base import Vision

SHARED_OUT = ("held_out", "test_fraction")  # options of single pictures: which of them are validated on, and scored
TOKENIZER_EXAMPLES = 20_000  # pictures whose captions train a tokenizer; enough for any vocabulary used here
ON_DEMAND = 20_000  # pictures whose captions tell how common words are, where captions are made one by one


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


def build(cfg: DictConfig, sources: dict[str, Source]) -> Parts:
    """Build all parts around data sources."""
    tokenizer = build_tokenizer(cfg, sources)
    language = build_language(cfg, tokenizer)
    vision = build_vision(cfg) if any(source.has_images for source in sources.values()) else None
    main = next(iter(sources.values()))
    captioner = build_captioner(
        cfg, vision, language, tokenizer, main.task, partial(commonest_answers, main), partial(captions, cfg, sources)
    )
    if cfg.weights:
        begin_at(captioner, Saved.at(cfg.weights))
    data = {name: build_data(options, cfg.seed, sources[name], captioner) for name, options in data_sets(cfg).items()}
    for name, options in data_sets(cfg).items():
        use_features(data[name], options, captioner, sources[name].splits())
    if "members" in cfg.data:
        return Parts(captioner, Mixture(data, cfg.data.weights, cfg.data.schedule))
    return Parts(captioner, data[""])


def build_tokenizer(cfg: DictConfig, sources: dict[str, Source]) -> Tokenizer:
    """From the run named by language.weights, or made anew from the training captions."""
    if cfg.language.weights:
        return load_tokenizer(Saved.at(cfg.language.weights).tokenizer())
    made: Tokenizer | Callable[[list[str]], Tokenizer] = make(cfg.language.tokenizer)
    if not callable(made):
        return made
    share = TOKENIZER_EXAMPLES // len(sources)
    examples = (e for source in sources.values() for e in itertools.islice(iter(source.examples("train")), share))
    return made([text for example in examples for text in example.texts])


def captions(cfg: DictConfig, sources: dict[str, Source]) -> Iterator[Sequence[str]]:
    """All captions of each picture that training uses; of pictures that are made on demand, of so many."""
    for name, options in data_sets(cfg).items():
        examples = build_pictures(options, cfg.seed, sources[name], vision=None).examples("train")
        most = None if isinstance(examples, list) else ON_DEMAND
        yield from (example.captions for example in itertools.islice(iter(examples), most))


def build_language(cfg: DictConfig, tokenizer: Tokenizer) -> LanguageModel:
    with own_randomness(cfg.seed, "language"):
        language: LanguageModel = make(cfg.language.model)(tokenizer)
    language.recompute = cfg.language.get("recompute", False)
    language.spec = replace(language.spec, frozen=not cfg.regime.train_language)
    if cfg.language.weights:
        language.load_state_dict(previous_language(Path(cfg.language.weights)))
    return language


def previous_language(run: Path) -> dict[str, torch.Tensor]:
    """Language weights of a run; a run that kept its language frozen points on to the run it took it from."""
    saved = Saved.at(run)
    weights = saved.part("language")
    if weights:
        return weights
    earlier = saved.config().language.weights
    if earlier is None:
        raise UserError(f"{run} holds no trained language model; give a run that trained one (regime=finetune_lm).")
    return previous_language(Path(earlier))


def begin_at(captioner: Captioner, saved: Saved) -> None:
    """Let all that trains begin at what a run has learnt; of what objectives learn by themselves, what both have.

    The language model has been taken over before, and an encoder that was frozen there comes from where it did. Raises
    UserError for one that was trained there and is frozen here, and for other shapes.
    """
    if captioner.vision is not None and not captioner.trains("vision") and saved.part("vision"):
        if tensor_hash(saved.part("vision")) != captioner.frozen_hashes()["vision"]:
            raise UserError(
                f"{saved.folder} trained its encoder, which is frozen here; say vision.weights={saved.folder} too."
            )
    for name, part in captioner.parts(trained=True).items():
        if name not in ("heads", "language") and (learnt := saved.part(name)):
            check_tensors(learnt, part.state_dict())
            part.load_state_dict(learnt)
    for name, head in captioner.heads.items():
        learnt, here = saved.part(f"heads.{name}"), head.state_dict()
        same = all(torch.equal(x, learnt.get(key, x[:0])) for key, x in head.named_buffers())  # what its places mean
        if same and {key: x.shape for key, x in learnt.items()} == {key: x.shape for key, x in here.items()}:
            head.load_state_dict(learnt)


def build_vision(cfg: DictConfig) -> Vision:
    with own_randomness(cfg.seed, "vision"):
        return make(cfg.vision)


def build_captioner(
    cfg: DictConfig,
    vision: Vision | None,
    language: LanguageModel,
    tokenizer: Tokenizer,
    task: str,
    answers: Callable[[int], Sequence[str]],
    captions: Callable[[], Iterable[Sequence[str]]] = tuple,
) -> Captioner:
    """Widths are agreed here: projector and fusion learn them from the specs of both sides.

    ``task``: what its data are for; ``answers``: the commonest of them, or those that it has learnt to choose from;
    ``captions``: of the training pictures, where these are here.
    """
    spec = vision.spec if vision else None
    projector = None
    if spec is not None and cfg.get("projector"):
        with own_randomness(cfg.seed, "projector"):
            projector = make(cfg.projector)(spec, language.spec)
        spec = projector.spec
    with own_randomness(cfg.seed, "fusion"):
        fusion = make(cfg.fusion)(spec, language.spec)
        _check_direction(fusion, language)
        fusion.init_from(language)
    regime = plain(cfg.regime)
    if regime["train_vision"] == "auto":
        regime["train_vision"] = vision is not None and not vision.pretrained
    if vision is None or not fusion.sees:
        vision, projector, regime["train_vision"] = None, None, False  # what is not read is neither trained nor counted
    optim = {**plain(cfg.optim), "precision": precision(cfg.trainer.precision)}
    tagged = any(options.get("image_tag", "max_images" in options) for options in data_sets(cfg).values())
    regions = fusion.regions.fc.out_features if isinstance(fusion, Reader) else 0
    objectives = build_objectives(cfg, fusion, task, Surroundings(spec, language.spec, answers, regions, captions))
    captioner = Captioner(
        vision, fusion, language, tokenizer, regime, optim, make(cfg.decode), objectives, projector, tagged
    )
    if regime.get("lora"):  # into what has just been frozen
        with own_randomness(cfg.seed, "adapters"):
            adapt(language, **regime["lora"])
    return captioner


def _check_direction(fusion: Fusion, language: Language) -> None:
    """Raises UserError where a mechanism writes and the language model reads both ways, or the other way round."""
    writes, name = isinstance(fusion, Writer), type(fusion).__name__
    if writes and not language.spec.causal:
        raise UserError(f"{name} writes word after word, and this language model reads both ways; leave language= out.")
    if isinstance(fusion, Reader) and language.spec.causal:
        raise UserError(f"{name} reads both ways, and this language model sees what comes before only; language=bert.")


def build_objectives(cfg: DictConfig, fusion: Fusion, task: str, to: Surroundings) -> dict[str, Objective]:
    """Those of the configuration; where it names none, what the mechanism can do and the data are for decides.

    Raises UserError for one that needs another ability, or something that model and data do not have.
    """
    named = cfg.get("objectives") or {}
    objectives = {name: make(node) for name, node in named.items()} or default_objectives(fusion, task)
    for name, objective in objectives.items():
        if not isinstance(fusion, objective.needs):
            raise UserError(
                f"objective={name} needs a mechanism that is a {objective.needs.__name__}, and fusion="
                f"{type(fusion).__name__} is none; choose another objective=."
            )
    return {name: objective.fitted(to) for name, objective in objectives.items()}


def build_data(options: DictConfig, seed: int, source: Source, captioner: Captioner) -> CaptionData:
    """The data module, which reads pictures, if any, until ``use_features``."""
    vision = captioner.vision
    tell(source, options, vision)
    longer = max((one.longer(options.max_tokens) for one in captioner.objectives.values()), default=0)
    fusion, context = captioner.fusion, captioner.language.spec.context
    before = 0 if source.interleaved and fusion.among_words else fusion.extra_positions
    needed = options.max_tokens + longer + before
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
        "rows": rows_for(fusion, options.get("pack", False)),
        "columns": fusion.extra_positions if fusion.among_words else 0,
    }
    if source.interleaved:
        return DocumentData(source, captioner.tokenizer, options.max_images, options.p_next, **shared)
    own = ("captions_per_image", "image_tag", "by_length", *SHARED_OUT)
    shared |= {name: options[name] for name in own if name in options}
    return CaptionData(source, captioner.tokenizer, **shared)


def rows_for(fusion: Fusion, pack: bool) -> Rows:
    """How texts stand in training, ``pack`` as in the options of data; ends are kept for who reads them."""
    return Rows(pack and fusion.packs, fusion.reads_ends) if isinstance(fusion, Writer) else Rows(pack, ends=False)


def build_pictures(options: DictConfig, seed: int, source: Source, vision: Vision | None) -> CaptionData:
    """Pictures with captions for whoever reads no token rows; without ``vision`` no picture is loaded."""
    tell(source, options, vision)
    return CaptionData(
        source,
        None,
        vision.spec.image_size if vision else None,
        options.batch_size,
        captions_per_image=1,
        train_fraction=options.train_fraction,
        seed=seed,
        workers=options.workers if vision else 0,  # there is nothing to load
        **{name: options[name] for name in SHARED_OUT if name in options},
    )


def tell(source: Source, options: DictConfig, vision: Vision | None) -> None:
    """How the encoder wants pictures. Raises UserError where what is to be done with faulty ones does not reach."""
    faults = getattr(source, "faults", None)
    if options.get("on_error", "raise") == "skip" and (faults is None or faults.on_error != "skip"):
        raise UserError(
            f"data.on_error=skip does not reach data={source.name}; leave it out, or give the source "
            "on_error: ${..on_error} in conf/data."
        )
    if vision is not None and isinstance(source, Prepared):
        source.prepare(vision.preprocessing)


def use_features(data: CaptionData, options: DictConfig, captioner: Captioner, splits: Sequence[str]) -> None:
    """With a frozen encoder, read features of ``splits`` that are computed once and kept on disk.

    Not of documents, and not of streamed data: they would take more room than the pictures.
    """
    vision, source = captioner.vision, data.source
    if vision is None or captioner.trains("vision") or source.interleaved or not source.has_images:
        return
    if not isinstance(data.examples(splits[0]), Streamed):
        data.features = cached_features(
            data, options.cache_dir, vision, splits, captioner.needs_levels, captioner.needs_tokens
        )


def cached_features(
    data: CaptionData, folder: str, vision: Vision, splits: Sequence[str], levels: int, tokens: bool
) -> dict:
    """Features of the pictures by split, computed where ``folder`` does not have them; see ``FeatureCache``."""
    from src.loading.features import FeatureCache, of_pictures

    def of_split(pictures: Sequence[Example]) -> FeatureCache:
        return FeatureCache.open_or_build(Path(folder), vision, data.source, pictures, levels, tokens=tokens)

    return {split: of_pictures(data.examples(split), of_split) for split in splits}


def place(captioner: Captioner, cfg: DictConfig) -> None:
    """Onto the GPU that torch would use, if there is one; a run that was told to train on the CPU stays there."""
    if cfg.trainer.accelerator != "cpu" and torch.accelerator.is_available():
        captioner.to(torch.accelerator.current_accelerator())


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
    """Trainable and total parameters, and those of each part, in which adapters are not counted."""
    counts = {"trainable": 0, "total": 0}
    for part in PARTS:
        module = getattr(captioner, part)
        if module is None or (part == "heads" and not len(module)):
            continue
        counts[part] = sum(p.numel() for p in module.parameters())
        counts["total"] += counts[part]
        counts["trainable"] += sum(p.numel() for p in module.parameters() if p.requires_grad)
    if adapters := captioner.adapters:
        counts["adapters"] = sum(p.numel() for p in adapters.values())
        counts["language"] -= counts["adapters"]
    return counts
