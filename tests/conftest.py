"""Small things that many tests need: a tokenizer of characters, tiny language models, random pictures."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from src.config.classes import lineage
from src.contracts import Batch, Text, VisionSpec, Visual
from src.language.load import tiny, tiny_bert, words
from src.loading.rows import APART, with_views
from src.objectives.next_token import NextToken

# Tests run side by side, one process per core; more threads than cores make tiny operations wait for each other.
torch.set_num_threads(1)

# A shell that starts the tests in the background makes them, and all that they start, deaf to Ctrl-C, which is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
EVERY = sorted(path.stem for path in (ROOT / "conf" / "fusion").glob("*.yaml"))
TARGETS = {name: OmegaConf.load(ROOT / "conf" / "fusion" / f"{name}.yaml")._target_ for name in EVERY}
FUSIONS = [name for name in EVERY if "Writer" in lineage(TARGETS[name])]  # those that write
READERS = [name for name in EVERY if "Reader" in lineage(TARGETS[name])]
VISION = VisionSpec(width=24, tokens=6, pooled_width=20, image_size=32, levels=3)


OBJECTIVES = {"next_token": NextToken()}


class Characters:
    """One token per ASCII character; 0, 1, 2, 3 are bos, eos, pad, mask."""

    bos, eos, pad, mask = 0, 1, 2, 3
    image_tag = (3 + ord("#"),)

    def __len__(self) -> int:
        return 131

    def encode(self, texts):
        return [[3 + ord(c) % 128 for c in text] for text in texts]

    def decode(self, ids):
        return "".join(chr(i - 3) for i in ids if i > 3)

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


@pytest.fixture(autouse=True)
def same_randomness():
    torch.manual_seed(0)


@pytest.fixture
def tokenizer():
    return Characters()


def make_language(width: int = 32, layers: int = 3, dropout: float = 0.0, context: int = 64):
    """A tiny GPT-2 in float64 whose every parameter is nudged, so that no zero or one hides a mistake."""
    torch.manual_seed(0)  # the same weights at every call
    language = tiny(Characters(), width=width, layers=layers, heads=4, context=context, dropout=dropout)
    return nudge(language.double()).eval()


def make_bert(width: int = 32, layers: int = 3, context: int = 64):
    """The same of a BERT."""
    torch.manual_seed(0)
    language = tiny_bert(Characters(), width=width, layers=layers, heads=4, context=context, dropout=0.0)
    return nudge(language.double()).eval()


def make_words(width: int = 32):
    """The same of word vectors alone."""
    torch.manual_seed(0)
    return nudge(words(Characters(), width=width).double()).eval()


def language_of(name: str, make=make_language, **options):
    """A language model for ``conf/fusion/<name>.yaml``: what ``make`` makes, or the one that the yaml asks for."""
    return make_words() if asked_for(name, "language") == "words" else make(**options)


def nudge(module: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    """Seeded noise on every parameter: gates that start at 0 open, biases stop being 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def asked_for(name: str, group: str) -> str | None:
    """What ``conf/fusion/<name>.yaml`` asks for of another group of conf/."""
    defaults = OmegaConf.load(ROOT / "conf" / "fusion" / f"{name}.yaml").get("defaults", [])
    entries = (pair for entry in defaults if entry != "_self_" for pair in entry.items())
    return next((word for key, word in entries if key.endswith(f".{group}")), None)


IN_BLOCKS = [name for name in FUSIONS if asked_for(name, "language") is None]  # by those of any language model


def fusion_config(name: str, *overrides: str):
    """``conf/fusion/<name>.yaml`` with overrides such as "fusion.tau=0.1"."""
    loaded = OmegaConf.load(ROOT / "conf" / "fusion" / f"{name}.yaml")
    loaded.pop("defaults", None)
    written = OmegaConf.create({"fusion": loaded, "dropout": 0.1})
    return OmegaConf.merge(written, OmegaConf.from_dotlist(list(overrides))).fusion


def make_fusion(name: str, language, *overrides: str, nudged: bool = True):
    """The fusion of ``conf/fusion/<name>.yaml`` at test size, float64, in eval mode."""
    spec, chosen = VISION, asked_for(name, "projector")
    if chosen is not None:
        options = OmegaConf.load(ROOT / "conf" / "projector" / f"{chosen}.yaml")
        projector = instantiate(OmegaConf.create({"projector": options, "dropout": 0.1})).projector(
            VISION, language.spec
        )
        spec = projector.spec
    fusion = instantiate(fusion_config(name, *overrides))(spec, language.spec)
    if chosen is not None:  # part of the mechanism for the tests' purposes
        fusion.projector, encode = projector, fusion.encode
        fusion.encode = lambda lm, visual, aux=None: encode(lm, fusion.projector(visual), aux)
    fusion.double().init_from(language)
    return (nudge(fusion) if nudged else fusion).eval()


def make_visual(contexts: int, seed: int = 2, tokens: int = VISION.tokens) -> Visual:
    g = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return Visual(
        tokens_IMNC=random(contexts, 1, tokens, VISION.width),
        pooled_IMC=random(contexts, 1, VISION.pooled_width),
        levels_IMKNC=random(contexts, 1, VISION.levels, tokens, VISION.width),
    )


def make_text(rows: int, length: int, seed: int = 3) -> Text:
    """Random captions behind a start token; everything valid."""
    ids_BT = torch.randint(3, 131, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids_BT[:, 0] = Characters.bos
    return Text(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), torch.ones_like(ids_BT))


def text_of(ids_BT, valid_BT=None, ragged: bool = False) -> Text:
    """Rows of which nothing is known but where they are padded."""
    valid_BT = torch.ones_like(ids_BT, dtype=torch.bool) if valid_BT is None else valid_BT
    return Text(ids_BT, valid_BT, valid_BT.long(), ragged)


def viewed(batch: Batch) -> Batch:
    """``batch`` as its loader hands it out where the next token is learnt."""
    return with_views(batch, OBJECTIVES, None, APART)


def quiet_trainer(**options) -> lightning.Trainer:
    """On the CPU, without any word or file that is not asked for."""
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(**{"accelerator": "cpu", **silent, **options})
