"""What a fusion promises: it owns the walk through the language model.

    encode(lm, visual, aux) -> memory                    once per picture: all work that does not depend on text
    readout(lm, hidden_XE) -> logits_XV                  only at the positions where logits are wanted

What it can do is its base class, one or several of:

    Writer      decode(lm, memory, text, cache, aux) -> hidden_BTE   word after word; hidden[:, t] decides token t + 1
                learn(lm, memory, text) -> hidden_BTE, terms         decode for training, with losses of its own
    Reader      read(lm, memory, text, aux) -> Read                  picture and text at once, both ways
    Retriever   embed_pictures(memory), embed_texts(lm, text)        unit vectors that are compared

Where the mechanisms enter a pre-norm block stack (slot letters used in headers and reports):

    E  input embeddings      P_l  before block l      A_l  after the self-attention residual of block l
    Q_l  after block l       F    final hidden state  G    logits

What they meet in other language models (src/language/blocks.py):

    attention and MLP side by side (GPT-NeoX)    nothing stands between them, and A_l is Q_l: what cross-attention and
                                                 CoCa add, and SRAU's a', is read from block l + 1 on
    norms behind a branch (Gemma, OLMo 2)        every slot is where it was, on a stream that is not normed
    norms on the sums (OPT-350m)                 the same places, A and P on normed states
    no norm in front (OLMo 2, OPT-350m)          SRAU's LN1 is none: queries and levels enter as they are
    words scaled up (Gemma)                      E holds scaled words, and a prefix beside them as it is made
    bounded logits (Gemma 2)                     G: the model's own are bounded before VC-GPT adds to them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.contracts import Language, LanguageSpec, Memory, Text, UserError, VisionSpec, Visual
from src.kinds import Checked
from src.layers.cache import Cache
from src.layers.notes import Aux
from src.layers.regions import RegionEmbedding

Terms = dict[str, tuple[Tensor, float]]  # a mechanism's own losses by name: value and weight


class Fusion(Checked, nn.Module, ABC, group="fusion"):
    """Base of all mechanisms. Subclasses are built as ``Mechanism(vision_spec, language_spec, **options)``.

    What options may be stands in the annotations, what excludes each other in ``refusals``: see src/kinds.py.
    """

    where: str = ""  # slot letters, for reports
    sees: bool = True  # False for the control that ignores the picture
    needs_tokens: bool = True  # False: ``encode`` reads the pooled vector only, and the tokens may be missing
    needs_levels: int = 0  # how many levels of the vision encoder ``encode`` reads
    needs_blocks: bool = True  # False: of the language model it reads word vectors and output alone
    multi_image: bool = False  # reads contexts of several pictures, token by token as ``text.phi`` says
    undecayed: tuple[str, ...] = ()  # learnt constants (latents, prefixes): no weight decay, like norms and biases
    scalar_gates: tuple[str, ...] = ()  # scalars that open a branch: they learn ``optim.gate_rate`` times as fast
    extra_positions: int = 0  # text positions taken before the first token (prefixes)
    among_words: bool = False  # in documents these stand where a picture does, in place of its tag (``Text.visual``)

    def __init__(self, vision: VisionSpec | None, language: LanguageSpec):
        super().__init__()
        if not isinstance(self, Writer | Reader | Retriever):
            raise TypeError(f"{type(self).__name__} can do nothing yet: derive it from Writer, Reader or Retriever.")
        if self.needs_blocks and not language.layers:
            raise UserError(f"{type(self).__name__} works by a language model's blocks, and this one has none.")

    def init_from(self, lm: Language) -> None:
        """Called once after construction, for parameters that start as a function of the language model's."""

    @abstractmethod
    def encode(self, lm: Language, visual: Visual, aux: Aux | None = None) -> Memory:
        """Everything about the pictures that text will read; leading axis I. Without ``sees`` there are none in it.

        A context may hold no picture at all (M = 0). What is read from nothing is what attention over nothing hands on
        (0, and the bias behind it), and nothing stands before the words; the rest of a mechanism acts as ever.
        ``aux`` collects named intermediates (gates, attention weights, prefixes) and costs nothing when None.
        """

    def readout(self, lm: Language, hidden_XE: Tensor) -> Tensor:
        """Logits (..., V) of the hidden states that were made here, of width E: the language model's or its own."""
        return lm.unembed(hidden_XE)

    def scalars(self) -> dict[str, float]:
        """Named learnt numbers worth following over training (gates, temperatures)."""
        return {}


class Writer(Fusion):
    """Writes word after word."""

    preserves_lm_at_init: bool = False  # logits equal the plain language model before training
    caption_weight: float = 1.0  # of the caption's loss, beside the terms of ``learn``
    packs: bool = True  # False: texts stand in rows of their own, as what goes word by word is as slow as rows are long
    reads_ends: bool = False  # ``learn`` reads the last token of a text too, which is asked for nothing

    @abstractmethod
    def decode(
        self, lm: Language, memory: Memory, text: Text, cache: Cache | None = None, aux: Aux | None = None
    ) -> Tensor:
        """Hidden states (B, T, width) for the T columns of ``text``; any prefix is removed again here.

        ``aux`` as in ``encode``.
        """

    def learn(self, lm: Language, memory: Memory, text: Text) -> tuple[Tensor, Terms]:
        """Training's walk: hidden states (B, T, width), and losses of its own.

        A row may hold several texts (``Text.segment_BT``), which is the language model's care, not a mechanism's.
        """
        return self.decode(lm, memory, text), {}


class Read(NamedTuple):
    """What a Reader has made of picture and text.

    ``regions``: visual columns after reading (masked regions, order of frames). ``pooled``: one vector a row.
    """

    hidden_BTD: Tensor
    pooled_BD: Tensor
    regions_BND: Tensor | None = None


class Reader(Fusion):
    """Reads picture and text at once; every column of a text has seen all of it."""

    regions: RegionEmbedding  # how visual tokens enter, at which width they are read

    @abstractmethod
    def read(self, lm: Language, memory: Memory, text: Text, aux: Aux | None = None) -> Read:
        """``text`` is open throughout; ``aux`` as in ``encode``."""

    @abstractmethod
    def hide(self, memory: Memory, hidden_IN: Tensor) -> Memory:
        """The same pictures with some visual tokens hidden; ``memory["features"]``: what these are, (I, N, C)."""


class Retriever(Fusion):
    """Compares pictures with whole texts. ``compares``: whether it does so as it is built here."""

    compares: bool = True

    @abstractmethod
    def scale(self) -> Tensor:
        """What products of unit vectors are multiplied by in the softmax over what they are compared with, (1,)."""

    @abstractmethod
    def embed_pictures(self, memory: Memory) -> Tensor:
        """Unit vectors (I, E) to be compared with those of texts."""

    @abstractmethod
    def embed_texts(self, lm: Language, text: Text) -> Tensor:
        """Unit vectors (B, E) of whole texts, start and end token included."""


def first_columns(h_BTD: Tensor, text: Text) -> Tensor:
    """The states of the start tokens, (B, D), wherever padding puts them."""
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), text.valid_BT.int().argmax(1)]


def last_columns(h_BTD: Tensor, text: Text) -> Tensor:
    """The states of the last real tokens, (B, D)."""
    last_B = text.valid_BT.shape[1] - 1 - text.valid_BT.flip(1).int().argmax(1)
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device), last_B]


def gpt2_init(module: nn.Module) -> None:
    """GPT-2's start for new layers: normal weights, zero biases (Radford et al. 2019, section 2.3).

    Its standard deviation of 0.02 belongs to width 768; narrower layers get the same variance of their outputs.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02 * (768 / part.in_features) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
