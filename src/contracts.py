"""The words every room shares: dimension letters, what travels between rooms, and what each room promises.

Dimension letters, used as suffixes of tensor names throughout the project:

    I  image contexts (one per picture, or per document of several pictures)
    M  pictures inside one context (1 for captioning)
    N  visual tokens per picture (patches or grid cells)
    C  width of the vision encoder          K  levels of the vision encoder
    B  text rows, B = I * G                 G  captions (or beams) per context; rows of one context are neighbours
    T  text positions of this call          S  text positions including the cached ones
    D  width of the language model          H  attention heads       d  width of one head
    V  vocabulary                           P  prefix vectors        X  any flat list of rows

The order of the rooms: config -> data -> vision -> fusion -> language -> loss or decoding -> metrics -> report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from src.errors import UserError as UserError  # every room speaks of it


# --------------------------------------------------------------------------------------------------------------------
# data
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Example:
    """One picture with its reference captions. ``image`` is a file path, or None where the source draws or has none."""

    id: str
    captions: tuple[str, ...]
    image: str | None = None
    extra: dict = field(default_factory=dict)  # what is known beside the captions, e.g. the true scene


@dataclass(frozen=True)
class Chunk:
    """Text of a document and the picture right before it; None where the document begins with text."""

    text: str
    picture: Example | None = None


@dataclass(frozen=True)
class Document:
    """Pictures and text in reading order. ``extra``: what is known beside them, e.g. what each sentence asks."""

    id: str
    chunks: tuple[Chunk, ...]
    extra: dict = field(default_factory=dict)

    @property
    def captions(self) -> tuple[str, ...]:
        """The texts, where a vocabulary is learnt or a data set is identified."""
        return tuple(chunk.text for chunk in self.chunks)


class Source(Protocol):
    """A data set: named splits of examples (or of documents), and the pixels of one example."""

    name: str
    has_images: bool
    interleaved: bool  # whether ``examples`` are documents

    def splits(self) -> tuple[str, ...]: ...

    def examples(self, split: str) -> Sequence[Example] | Sequence[Document]: ...

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size)."""
        ...


@dataclass
class Text:
    """Token rows. ``valid`` is False at padding; ``phi`` is the 1-based index of the picture a token looks at, or 0.

    ``ragged`` says that some row starts with padding (left-padded prompts); without it every row starts at column 0,
    so that a plain causal mask is exact and no mask tensor is made. ``target`` marks the tokens that are to be
    predicted; None: all valid ones.
    """

    ids_BT: Tensor
    valid_BT: Tensor
    phi_BT: Tensor
    ragged: bool = False
    target_BT: Tensor | None = None

    def columns(self, start: int | None, stop: int | None) -> Text:
        """The same rows, positions ``start:stop`` only."""
        cut = slice(start, stop)
        target_BT = None if self.target_BT is None else self.target_BT[:, cut]
        return Text(self.ids_BT[:, cut], self.valid_BT[:, cut], self.phi_BT[:, cut], self.ragged, target_BT)

    def targets(self) -> Tensor:
        """Which tokens are to be predicted, (B, T); the first column cannot be."""
        return self.valid_BT if self.target_BT is None else self.target_BT

    def positions(self) -> Tensor:
        """Where targets are predicted: (X,) indices into the flattened (B, T-1) columns that each look one ahead."""
        return self.targets()[:, 1:].flatten().nonzero().flatten()


@dataclass
class Batch:
    """What a data loader yields: I contexts, their B = I * G captions, and pixels or cached features.

    ``image_valid``: False where a context has fewer pictures than M; None when all are there. ``target``: the text's
    ``positions``, where they are known already. ``dataset`` and ``weight``: name and loss weight among several
    data sets.
    """

    ids: list[str]
    text: Text
    pixels_IM3hw: Tensor | None = None  # uint8
    visual: Visual | None = None
    image_valid_IM: Tensor | None = None
    target_X: Tensor | None = None
    dataset: str = ""
    weight: float = 1.0


# --------------------------------------------------------------------------------------------------------------------
# vision
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class VisionSpec:
    """What a fusion may know of the encoder. ``levels`` is how many of its last levels it can hand out (0 = none)."""

    width: int
    tokens: int
    pooled_width: int
    image_size: int
    levels: int = 0


@dataclass
class Visual:
    """Encoded pictures of I contexts; masks are None when everything is valid.

    A "picture" may be a video of F frames, whose tokens then stand one frame after the other (N = F * tokens of one).
    """

    tokens_IMNC: Tensor
    pooled_IMC: Tensor
    levels_IMKNC: Tensor | None = None
    image_valid_IM: Tensor | None = None
    token_valid_IMN: Tensor | None = None
    frames: int = 1

    @property
    def tokens_INC(self) -> Tensor:
        """Tokens of all pictures of a context in one list (N here counts M * N)."""
        return self.tokens_IMNC.flatten(1, 2)

    @property
    def valid_IN(self) -> Tensor | None:
        """Which entries of ``tokens_INC`` are real; None when all are."""
        if self.image_valid_IM is None and self.token_valid_IMN is None:
            return None
        valid_IMN = torch.ones(self.tokens_IMNC.shape[:3], dtype=torch.bool, device=self.tokens_IMNC.device)
        if self.image_valid_IM is not None:
            valid_IMN = valid_IMN & self.image_valid_IM[:, :, None]
        if self.token_valid_IMN is not None:
            valid_IMN = valid_IMN & self.token_valid_IMN
        return valid_IMN.flatten(1, 2)

    @property
    def pooled_IC(self) -> Tensor:
        """The pooled vector of the only picture."""
        if self.pooled_IMC.shape[1] != 1:
            raise UserError("This fusion reads one picture per text; give it data with one picture per text.")
        return self.pooled_IMC[:, 0]

    def levels_IKNC(self) -> Tensor | None:
        """Levels with all pictures of a context in one list of tokens."""
        return None if self.levels_IMKNC is None else self.levels_IMKNC.transpose(1, 2).flatten(2, 3)


class Memory(dict):
    """All that a fusion keeps per image context: named tensors whose first axis is I. Holds nothing about text."""

    def select(self, rows_I: Tensor) -> Memory:
        """The contexts ``rows_I`` only (used when finished captions leave the batch)."""
        return Memory({name: None if x is None else x.index_select(0, rows_I) for name, x in self.items()})


# --------------------------------------------------------------------------------------------------------------------
# language
# --------------------------------------------------------------------------------------------------------------------
class Tokenizer(Protocol):
    """Text <-> ids, without adding special tokens by itself. ``pad`` may equal ``eos``: padding is masked."""

    bos: int
    eos: int
    pad: int
    image_tag: list[int]  # what stands for a picture in a document

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder) -> None: ...


@dataclass(frozen=True)
class LanguageSpec:
    """What a fusion may know of the language model."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    bos: int
    eos: int
    pad: int


class Block(Protocol):
    """One decoder block, opened at its seams: ``attend`` then ``feed`` is the whole block."""

    def norm(self, h_BTD: Tensor) -> Tensor:
        """The block's own pre-attention norm (SRAU's code form applies it to its queries and its image levels)."""
        ...

    def attend(self, h_BTD: Tensor, walk) -> Tensor:
        """h + SelfAttention(norm(h)), causal; appends to the walk's cache if it has one."""
        ...

    def feed(self, h_BTD: Tensor) -> Tensor:
        """h + MLP(norm2(h))."""
        ...


class Language(Protocol):
    """A decoder language model with visible seams. It knows no mechanism."""

    spec: LanguageSpec

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), without positions."""
        ...

    def begin(self, inputs_BTD: Tensor, valid_BT: Tensor, ragged: bool = False, cache=None) -> tuple[Tensor, object]:
        """Add positions, prepare masks and claim cache columns; returns h_BTD and the walk that the blocks share."""
        ...

    def blocks(self) -> Sequence[Block]: ...

    def final_norm(self, h_BTD: Tensor) -> Tensor: ...

    def unembed(self, h_XD: Tensor) -> Tensor:
        """Logits (..., V)."""
        ...

    def unembedding(self) -> Tensor:
        """The matrix of ``unembed``, (V, D)."""
        ...
