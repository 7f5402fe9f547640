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
    R  rows: B, or 1 where all agree        E  another width, said where it is used

A digit is an axis of that size. In src/layers, D and C are widths of their own. Tests hold the letters against the
tensors (tests/test_axes.py).

The order of the rooms: config -> data -> vision -> fusion -> language -> loss or decoding -> metrics -> report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError as UserError  # every room speaks of it
from src.errors import present as present
from src.layers.cache import Cache
from src.layers.walk import Walk


# --------------------------------------------------------------------------------------------------------------------
# data
# --------------------------------------------------------------------------------------------------------------------
class Line(NamedTuple):
    """A text about a picture: ``said`` is what a model learns to say behind what is ``given``, if anything is."""

    said: str
    given: str = ""


@dataclass(frozen=True)
class Example:
    """One picture with its reference captions. ``image`` is a file path, or None where the source draws or has none.

    With a ``question`` the captions are its answers, of all who were asked.
    """

    id: str
    captions: tuple[str, ...]
    image: str | None = None
    extra: dict = field(default_factory=dict)  # what is known beside the captions, e.g. the true scene
    question: str = ""

    @property
    def lines(self) -> list[Line]:
        """What may be said of it."""
        return [Line(caption, self.question) for caption in self.captions]

    @property
    def texts(self) -> tuple[str, ...]:
        """All words that a model meets with it."""
        return (*self.captions, self.question) if self.question else self.captions

    @property
    def pictures(self) -> tuple[Example, ...]:
        """Itself."""
        return (self,)


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
        """The texts, where a data set is identified."""
        return tuple(chunk.text for chunk in self.chunks)

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts, where a vocabulary is learnt."""
        return self.captions

    @property
    def pictures(self) -> tuple[Example, ...]:
        """In reading order."""
        return tuple(chunk.picture for chunk in self.chunks if chunk.picture)


class Source(Protocol):
    """A data set: named splits of examples (or of documents), and the pixels of one example."""

    name: str
    has_images: bool
    interleaved: bool  # whether ``examples`` are documents
    task: str  # what is asked of a captioner on them where task= does not say, of ``src.tasks.choose``

    def splits(self) -> tuple[str, ...]: ...

    def examples(self, split: str) -> Sequence[Example] | Sequence[Document]: ...

    def pixels(self, example: Example, size: int) -> Tensor:
        """uint8 RGB tensor (3, size, size)."""
        ...


@runtime_checkable
class Contradicting(Protocol):
    """A source that knows what is false of its pictures."""

    def foil(self, example: Example, caption: str, chance: Random) -> str | None:
        """The caption with a word that makes it false; None where there is none."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A source that knows what is on its pictures, by names of one or several kinds."""

    def classes(self) -> Mapping[str, Sequence[str]]:
        """All names there are, by kind."""
        ...

    def labels(self, example: Example) -> Mapping[str, frozenset[str]]:
        """The names that are true of a picture, by kind."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A source that makes its pictures as an encoder wants them."""

    def prepare(self, preprocessing: Mapping) -> None:
        """``preprocessing``: as in ``vision.base.Vision``."""
        ...


@dataclass
class Text:
    """Token rows, and who sees whom in them.

    ``valid`` is False at padding; ``phi`` is the 1-based index of the picture a token looks at, or 0. ``ragged`` says
    that some row has padding before its end (left-padded prompts); without it every row starts at column 0, so that a
    plain causal mask is exact and no mask tensor is made. ``target`` marks the tokens that the data want learnt (an
    answer, not its question); None: all valid ones.

    A token sees itself and what stands before it, within its segment. ``open`` marks columns that all of their segment
    sees, earlier columns too: none for plain text, a beginning for a prefix language model, all for an encoder that
    reads both ways. ``segment`` tells several texts of one row apart, counted from 1; columns of segment 0 belong to
    all of them. None: one text a row. ``visual``: which visual token of picture phi stands in a column, counted from 1;
    0: a word. None: words everywhere.
    """

    ids_BT: Tensor
    valid_BT: Tensor
    phi_BT: Tensor
    ragged: bool = False
    target_BT: Tensor | None = None
    open_BT: Tensor | None = None
    segment_BT: Tensor | None = None
    visual_BT: Tensor | None = None

    def columns(self, start: int | None, stop: int | None) -> Text:
        """The same rows, positions ``start:stop`` only."""
        cut = slice(start, stop)
        maybe = (self.target_BT, self.open_BT, self.segment_BT, self.visual_BT)
        optional = (None if x_BT is None else x_BT[:, cut] for x_BT in maybe)
        return Text(self.ids_BT[:, cut], self.valid_BT[:, cut], self.phi_BT[:, cut], self.ragged, *optional)

    def behind(self, columns: int, valid_BP: Tensor | None = None, open: bool = False) -> Text:
        """The same text behind P ``columns`` that are no tokens (visual ones, say) and belong to all of its segments.

        ``valid``: which of them are real; None: all. ``open``: they all see each other.
        """
        ahead = (columns, 0)
        valid_BS = F.pad(self.valid_BT, ahead, value=True)  # S = P + T
        if valid_BP is not None:
            valid_BS = torch.cat([valid_BP, self.valid_BT], dim=1)
        open_BT = self.open_BT
        if open and open_BT is None:
            open_BT = torch.zeros_like(self.valid_BT)
        return Text(
            F.pad(self.ids_BT, ahead),
            valid_BS,
            F.pad(self.phi_BT, ahead),
            self.ragged or valid_BP is not None,
            F.pad(self.targets(), ahead, value=False),
            None if open_BT is None else F.pad(open_BT, ahead, value=open),
            None if self.segment_BT is None else F.pad(self.segment_BT, ahead, value=0),
        )

    def and_hidden(self, mask: int) -> Text:
        """The same rows with one more column, a hidden word, all of them open."""
        valid_BS = F.pad(self.valid_BT, (0, 1), value=True)
        phi_BS = torch.cat([self.phi_BT, self.phi_BT[:, -1:]], 1)
        open_BS = torch.ones_like(valid_BS)
        return Text(F.pad(self.ids_BT, (0, 1), value=mask), valid_BS, phi_BS, self.ragged, open_BT=open_BS)

    def behind_text(self, earlier: Text) -> Text:
        """These columns behind those of ``earlier``."""
        return Text(
            torch.cat([earlier.ids_BT, self.ids_BT], 1),
            torch.cat([earlier.valid_BT, self.valid_BT], 1),
            torch.cat([earlier.phi_BT, self.phi_BT], 1),
            self.ragged or earlier.ragged,
        )

    def starts(self) -> Tensor:
        """The start tokens, (B, T): each text's first real column, wherever padding on the left puts it."""
        if self.segment_BT is None:
            return self.valid_BT & (self.valid_BT.cumsum(1) == 1)
        before_BT = F.pad(self.segment_BT[:, :-1], (1, 0))
        return self.valid_BT & (self.segment_BT != before_BT)

    def targets(self) -> Tensor:
        """Which tokens the data want learnt, (B, T)."""
        return self.valid_BT if self.target_BT is None else self.target_BT

    def asked(self) -> Tensor:
        """Which columns are asked for a next token, (B, T). A text's first token is asked of nobody: what stands before
        it is another text."""
        wanted_BT = self.targets()[:, 1:]
        if self.segment_BT is not None:
            wanted_BT = wanted_BT & (self.segment_BT[:, 1:] == self.segment_BT[:, :-1])
        return F.pad(wanted_BT, (0, 1), value=False)


@dataclass
class Target:
    """What is to be predicted: token ``id`` at column ``at`` of the text's flattened columns (B*T), (X,) each.

    ``weight``: of each in the sum of losses; None: 1.
    """

    at_X: Tensor
    id_X: Tensor
    weight_X: Tensor | None = None

    @classmethod
    def next(cls, text: Text) -> Target:
        """The label shift, here and nowhere else: columns but the last, each asked for the next token."""
        at_X = text.asked().flatten().nonzero().flatten()
        return cls(at_X, text.ids_BT.flatten().index_select(0, at_X + 1))

    @classmethod
    def here(cls, ids_BT: Tensor, chosen_BT: Tensor) -> Target:
        """Tokens ``ids`` asked for where they stood, (B, T), at the ``chosen`` columns: masked words."""
        at_X = chosen_BT.flatten().nonzero().flatten()
        return cls(at_X, ids_BT.flatten().index_select(0, at_X))


@dataclass
class View:
    """What one objective makes of a batch: what is read, and what is to be predicted.

    ``label``: of whole rows, (B,) whether text and picture match, or (B, A) shares of classes. ``hidden``: visual
    tokens that are not to be seen. ``seed``: of what the model is to draw in the step. ``told``: what is logged of it
    beside the loss.
    """

    text: Text
    target: Target | None = None
    label_B: Tensor | None = None
    hidden_IN: Tensor | None = None
    seed: int = 0
    told: dict[str, Tensor] = field(default_factory=dict)

    @property
    def seen(self) -> View:
        """What the model gets to see of it: nothing that is to be predicted."""
        return View(self.text, hidden_IN=self.hidden_IN)


@dataclass
class Batch:
    """What a data loader yields: I contexts, their B = I * G captions, and pixels or cached features.

    ``text``: the captions, or prompts to go on with; None where there are pictures only. ``captions``: all that is said
    of each context, or answered to its question. ``foils``: for each row of text one that is false of the picture, of
    nothing where there is none; None where nobody asks for them. ``image_valid``: False where a context has fewer
    pictures than M; None when all are there; (I, 0) for texts without any picture, given to who sees. ``views``: what
    each objective, by name, makes of it.
    ``dataset`` and ``weight``: name and loss weight among several data sets. ``counts``: False where another process
    has the same examples and counts them.
    """

    ids: list[str]
    text: Text | None = None
    pixels_IM3hw: Tensor | None = None  # uint8
    visual: Visual | None = None
    image_valid_IM: Tensor | None = None
    views: dict[str, View] = field(default_factory=dict)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    foils: Text | None = None
    dataset: str = ""
    weight: float = 1.0
    counts: bool = True


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

    @classmethod
    def nothing(cls, contexts: int) -> Visual:
        """``contexts`` without any picture, for who does not see."""
        return cls(torch.empty(contexts, 0, 0, 0), torch.empty(contexts, 0, 0))

    @classmethod
    def no_picture(cls, contexts: int, spec: VisionSpec, like: Tensor) -> Visual:
        """The same for who sees: as wide as pictures would be, M = 0; device and type of ``like``."""
        return cls(
            like.new_empty(contexts, 0, spec.tokens, spec.width),
            like.new_empty(contexts, 0, spec.pooled_width),
            like.new_empty(contexts, 0, spec.levels, spec.tokens, spec.width) if spec.levels else None,
        )

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


class Memory(dict[str, Tensor]):
    """All that a fusion keeps per image context: named tensors whose first axis is I. Holds nothing about text."""

    @classmethod
    def of(cls, **named: Tensor | None) -> Memory:
        """What there is of ``named``: no mask, no name."""
        return cls({name: x for name, x in named.items() if x is not None})

    def select(self, rows_I: Tensor) -> Memory:
        """The contexts ``rows_I`` only (used when finished captions leave the batch)."""
        return Memory({name: x.index_select(0, rows_I) for name, x in self.items()})

    def behind(self, other: Memory) -> Memory:
        """The contexts of ``other``, then these."""
        return Memory({name: torch.cat([other[name], x]) for name, x in self.items()})


# --------------------------------------------------------------------------------------------------------------------
# language
# --------------------------------------------------------------------------------------------------------------------
class Tokenizer(Protocol):
    """Text <-> ids, without adding special tokens by itself. ``pad`` may equal ``eos``: padding is masked.

    ``mask`` stands for words that are hidden; None where there is no such token.
    """

    bos: int
    eos: int
    pad: int
    mask: int | None

    @property
    def image_tag(self) -> list[int]:
        """What stands for a picture in a document."""
        ...

    def __len__(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder) -> None: ...


@dataclass(frozen=True)
class LanguageSpec:
    """What a fusion may know of the language model.

    ``causal``: each token sees those before it, so that it can write; otherwise all of them. ``mask``: the token of
    hidden words.
    """

    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    bos: int
    eos: int
    pad: int
    frozen: bool = False  # its weights do not learn
    causal: bool = True
    mask: int | None = None


class Block(Protocol):
    """One block, opened at its seams: ``attend`` then ``feed`` is the whole block.

    As most have it; in some the MLP is done with ``attend``, or norms stand behind (src/language/blocks.py).
    """

    def norm(self, h_BTD: Tensor) -> Tensor:
        """The block's own pre-attention norm (SRAU's code form applies it to its queries and its image levels); the
        states themselves where it has none."""
        ...

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        """h + SelfAttention(norm(h)), among what the walk lets be seen; appends to its cache if it has one."""
        ...

    def feed(self, h_BTD: Tensor) -> Tensor:
        """h + MLP(norm2(h))."""
        ...


class Language(Protocol):
    """A language model with visible seams. It knows no mechanism."""

    spec: LanguageSpec

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), without positions."""
        ...

    def walk(self, text: Text, dtype: torch.dtype, cache: Cache | None = None) -> Walk:
        """Masks, positions and cache columns of one pass over the columns of ``text``, which the blocks share."""
        ...

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Inputs of the first block: with positions, where the family adds them there."""
        ...

    def begin(self, inputs_BTD: Tensor, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        """``walk``, then ``place``: h_BTD, and the walk."""
        ...

    def blocks(self) -> Sequence[Block]: ...

    def read(self, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        """All of it without any fusion: final hidden states (B, T, D), and the walk."""
        ...

    def final_norm(self, h_BTD: Tensor) -> Tensor: ...

    def unembed(self, h_XD: Tensor) -> Tensor:
        """Logits (..., V)."""
        ...

    def bounded(self, products_XV: Tensor) -> Tensor:
        """Logits of products with ``unembedding``."""
        ...

    def unembedding(self) -> Tensor:
        """The matrix of ``unembed``, (V, D)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


# --------------------------------------------------------------------------------------------------------------------
# answers
# --------------------------------------------------------------------------------------------------------------------
class Speaker(Protocol):
    """Who answers in words: a captioner, or a pipeline that trains nothing."""

    def caption(
        self, batches: Iterable[Batch], decoder: Callable | None = None, prompted: bool = False
    ) -> dict[str, str]:
        """Captions by id. ``decoder``: another than its own; ``prompted``: go on with the text of the batches."""
        ...


class Judge(Protocol):
    """Who compares texts with pictures: all that a decoder may know of another model."""

    scale: float  # of cosines, in a softmax over what is compared

    def pictures(self, ids: Sequence[str]) -> Tensor:
        """Unit vectors of the pictures of these ids, (I, E)."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (B, E)."""
        ...
