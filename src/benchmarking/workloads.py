"""What every contestant is given: the same captions, the same visual tokens, the same batches in the same order.

Captions are real ones and tokenised by a real vocabulary, so that their lengths, and with them the padding, are those
of a training. Visual tokens are random numbers in a real feature cache: their values change no speed.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from src.benchmarking.flops import training_flops
from src.benchmarking.jobs import FLOOR, Job
from src.benchmarking.languages import make_language
from src.build import build_captioner, own_randomness
from src.captioner import Captioner
from src.config.command_line import compose
from src.config.fit import language_sizes
from src.contracts import Batch, Example, Memory, Text, Tokenizer, VisionSpec, Visual
from src.data.base import read_json
from src.data.captions_text import SPICE_JAR, CaptionsText
from src.data.order import EpochBatchSampler, InOrder
from src.data.scenes_questions import ScenesQuestions
from src.decoding.base import Decoder, Seen, Step
from src.decoding.beam import BeamSearch
from src.decoding.greedy import Greedy
from src.errors import UserError
from src.layers.cache import Cache
from src.layers.cast_once import cast_once
from src.layers.laid_out import laid_out
from src.loading.batches import CaptionBatches, Loader, TrainLoader
from src.loading.features import FeatureCache
from src.loading.module import most_words
from src.loading.rows import APART, Rows
from src.objectives.next_token import NextToken
from src.text.tokenizers import GPT2_LENGTH, ByteLevelBPE, GPT2Vocabulary, load_tokenizer

WINDOW = 4  # batches that are trained on over and over: all contestants see the same, however fast they are
LEARNT_FROM = 100_000  # captions that a vocabulary is learnt from
EXAMPLES = "examples.json"  # [[id, captions, question]], the pictures of the benchmark
QUESTIONS = "questions"  # in place of a file of captions: drawn ones
SIDE = 8  # of the stand-ins for pictures, in pixels; nothing looks at them


# --------------------------------------------------------------------------------------------------------------------
# data
# --------------------------------------------------------------------------------------------------------------------
class Tower(nn.Module):
    """Stands for a pretrained vision encoder: it names the shapes and draws the features that are cached."""

    pretrained = True

    def __init__(self, spec: VisionSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", torch.zeros(1), persistent=False)
        self._chance = torch.Generator().manual_seed(0)

    def identity(self) -> str:
        return f"random features, {self.spec}"

    def forward(self, pixels_IM3hw: Tensor, levels: int = 0) -> Visual:
        I, M = pixels_IM3hw.shape[:2]
        tokens_IMNC = torch.randn(I, M, self.spec.tokens, self.spec.width, generator=self._chance)
        return Visual(tokens_IMNC, tokens_IMNC.mean(2))


class Pictures:
    """A source whose pictures nobody looks at, since their features are cached."""

    name = "benchmark"
    has_images = True
    interleaved = False
    task = "caption"

    def pixels(self, example: Example, size: int) -> Tensor:
        return torch.zeros(3, size, size, dtype=torch.uint8)


def sample_examples(settings: dict) -> tuple[list[Example], list[str]]:
    """Pictures with ``captions`` captions each, drawn with the seed from all captions; and all of these.

    Which caption belongs to which picture is lost, and changes no speed. Of ``lengths=questions`` each has a question
    and its answer. Raises UserError where there are too few.
    """
    if settings["lengths"] == QUESTIONS:
        drawn = list(ScenesQuestions(settings["seed"], train=pictures_needed(settings)).examples("train"))
        return drawn, [text for example in drawn for text in example.texts]
    source = CaptionsText([settings["lengths"] or SPICE_JAR])
    every = [example.captions[0] for example in source.examples("train")]
    random.Random(settings["seed"]).shuffle(every)
    each, pictures = settings["captions"], pictures_needed(settings)
    if len(every) < each * pictures:
        raise UserError(
            f"lengths={settings['lengths']} holds {len(every)} training captions and this benchmark needs "
            f"{each * pictures}; give a longer file, or lower images, captions or decode.batches."
        )
    examples = [Example(str(i), tuple(every[i * each : (i + 1) * each])) for i in range(pictures)]
    return examples, every


def pictures_needed(settings: dict) -> int:
    """Enough for the window of training and for the largest batch of decoding."""
    return max(WINDOW * settings["images"], *settings["decode"]["batches"])


def make_tokenizer(vocabulary: int, captions: Sequence[str]) -> Tokenizer:
    """GPT-2's own where its size is asked for, else one learnt from the captions; few captions give fewer tokens."""
    if vocabulary == GPT2_LENGTH:
        return GPT2Vocabulary()
    return ByteLevelBPE.train(captions[:LEARNT_FROM], vocabulary)


class Workload:
    """The batches of one size, from the "folder" of the settings: captions, tokenizer, features.

    The features are made if they are not there.
    """

    def __init__(self, settings: dict, size: str):
        self.settings, self.size = settings, settings["size"][size]
        folder = Path(settings["folder"]) / size
        listed = read_json(Path(settings["folder"]) / EXAMPLES)
        examples = [Example(id, tuple(captions), question=question) for id, captions, question in listed]
        self.tokenizer = load_tokenizer(folder)
        self.tower = make_tower(self.size)
        self.features = FeatureCache.open_or_build(
            folder / "features", self.tower, Pictures(), examples, 0, progress=False
        )
        self._data = CaptionBatches(
            examples,
            Pictures(),
            self.tokenizer,
            settings["captions"],
            settings["max_tokens"],
            settings["seed"],
            image_size=None,
            features=self.features,
            image_tag=False,
            objectives={"next_token": NextToken()},
            rows=APART,
        )

    def lay(self, rows: Rows) -> None:
        """How the texts stand that a training reads; ``Batch.text`` has one a row always."""
        self._data.rows = rows

    def window(self) -> Iterator[Batch]:
        """The first batches of the first epoch, made anew by the loader of training.

        Without its workers: this is the whole cost of data, of which a training hides what workers do meanwhile.
        """
        lengths = list(map(most_words, self._data.examples)) if self.settings["by_length"] else None
        order = EpochBatchSampler(len(self.features), self.settings["images"], self.settings["seed"], lengths=lengths)
        return islice(TrainLoader(self._data, order, workers=0), WINDOW)

    def pictures(self, count: int) -> Batch:
        """The first ``count`` pictures in one batch, for decoding."""
        return next(iter(Loader(self._data, InOrder(len(self.features), count), workers=0)))


def make_tower(size: dict) -> Tower:
    # No levels: all contestants read the same tokens, and a fusion that wants levels makes them of these.
    return Tower(VisionSpec(size["visual_width"], size["visual_tokens"], size["visual_width"], SIDE))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """As Lightning does it."""
    return move_data_to_device(batch, device)


# --------------------------------------------------------------------------------------------------------------------
# contestants
# --------------------------------------------------------------------------------------------------------------------
class Contestant(ABC):
    """A model with a loss and a way to caption. ``module`` holds everything that is moved, trained and counted."""

    module: nn.Module
    note: str = ""  # what a reader of the table has to know

    def train(self) -> None:
        """Training mode, but for frozen parts."""
        self.module.train()

    @abstractmethod
    def groups(self) -> list[dict]:
        """Parameter groups for AdamW; empty where nothing trains."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """What is minimised."""

    def compiled_loss(self) -> Callable[[Batch], Tensor]:
        """``loss``, compiled; dynamic, because every batch has another length."""
        return torch.compile(self.loss, dynamic=True)

    def fitting(self) -> AbstractContextManager:
        """What is done once for a whole training, where it trains."""
        return nullcontext()

    @abstractmethod
    def rows(self, batch: Batch) -> list[list[int]]:
        """The tokens that the model gets to read and to predict, read off what it is given: no padding."""

    @abstractmethod
    def flops(self, batch: Batch) -> int:
        """Floating-point operations of a forward and a backward pass."""

    def ready(self) -> AbstractContextManager:
        """What is done once before many batches of pictures are captioned."""
        return nullcontext()

    @abstractmethod
    def generate(self, batch: Batch, beams: int, tokens: int, cached: bool) -> list[list[int]]:
        """``tokens`` ids for every picture, from its visual tokens; greedy with one beam. May raise Unsupported."""


class Own(Contestant):
    """A fusion of this project, built as src.train builds it around a language model with random weights."""

    def __init__(self, job: Job, workload: Workload, precision: str):
        settings, size = workload.settings, workload.size
        cfg = compose("train", [f"fusion={job.model}", f"regime={job.regime}", "decode=greedy"], [])
        cfg.seed, cfg.dropout, cfg.trainer.precision = settings["seed"], settings["dropout"], precision
        with own_randomness(settings["seed"], "language"):
            blocks = language_sizes(cfg).get("layers") != 0  # of the one that the mechanism asks for
            language = make_language(size, settings["dropout"], workload.tokenizer, blocks)
        self.module: Captioner = build_captioner(
            cfg, workload.tower, language, workload.tokenizer, "caption", lambda most: ()
        )
        workload.features.tokens = self.module.needs_tokens
        workload.lay(Rows(job.pack, self.module.writer.reads_ends))
        if not self.module.parameter_groups():
            # The floor of a frozen language model: no weight learns, but gradients flow back through all blocks to the
            # word vectors, as every mechanism in front of them or between them needs it.
            language.model.get_input_embeddings().register_forward_hook(lambda *given: given[-1].requires_grad_())
            self.note = f"{FLOOR} with a frozen language model: gradients flow back to the word vectors, nothing learns"

    def groups(self) -> list[dict]:
        return self.module.parameter_groups()

    def loss(self, batch: Batch) -> Tensor:
        """As in the captioner's training step."""
        return self.module.total(batch, self.module.losses(batch))

    def compiled_loss(self) -> Callable[[Batch], Tensor]:
        self.module.compile_training()
        return self.loss

    def fitting(self) -> AbstractContextManager:
        """As ``training.frozen_weights`` does it."""
        mixed = self.module.optim["precision"] == "bf16-mixed"
        return cast_once(self.module.modules(), torch.bfloat16) if mixed else nullcontext()

    def rows(self, batch: Batch) -> list[list[int]]:
        return [ids[valid].tolist() for ids, valid in zip(batch.text.ids_BT, batch.text.valid_BT, strict=True)]

    def flops(self, batch: Batch) -> int:
        return training_flops(self.module, batch)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """As in the captioner's ``caption``."""
        with torch.no_grad(), laid_out(self.module.fusion, self.module.language):
            yield

    def generate(self, batch: Batch, beams: int, tokens: int, cached: bool) -> list[list[int]]:
        decoder = Greedy(tokens) if beams == 1 else BeamSearch(tokens, beams, length_penalty=0.0)
        return self.module.generate(batch, Endless(decoder, cached))


# --------------------------------------------------------------------------------------------------------------------
# decoding
# --------------------------------------------------------------------------------------------------------------------
class Endless(Decoder):
    """A decoder whose captions all have the longest length; with ``cached`` False nothing is kept between steps."""

    def __init__(self, decoder, cached: bool):
        self.decoder, self.cached = decoder, cached

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        step = step if self.cached else recomputed(step)

        def endless(memory: Memory, text: Text, cache: Cache) -> Seen:
            seen = step(memory, text, cache)
            seen.logits_BV[:, eos] = -torch.inf
            return seen

        return self.decoder(endless, memory, prompt, eos, extra)


def recomputed(step: Step) -> Step:
    """The same step without cached keys and values: every call walks over the whole text again.

    The decoder's cache keeps the tokens instead, so that they follow their beams.
    """

    def whole(memory: Memory, text: Text, cache: Cache) -> Seen:
        valid_BS = cache.claim(text.valid_BT, text.ragged)
        ids_B1S1, phi_B1S1 = cache.append("text", text.ids_BT[:, None, :, None], text.phi_BT[:, None, :, None])
        return step(memory, Text(ids_B1S1[:, 0, :, 0], valid_BS, phi_B1S1[:, 0, :, 0], cache.ragged), None)

    return whole
