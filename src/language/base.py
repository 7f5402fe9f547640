"""What every language model here shows: the seams that a fusion walks through.

    h_BTD, walk = lm.begin(lm.embed(text.ids_BT), text, cache)
    for block in lm.blocks():
        h_BTD = block.feed(block.attend(h_BTD, walk))
    logits_BTV = lm.unembed(lm.final_norm(h_BTD))

The weights live in transformers' own modules (any checkpoint of the family loads, keys untouched); attention is
computed here, because the library's cache and masks cannot be shared with the layers that a fusion adds.

Which mask a walk needs (all three are exact):

    nothing cached, plain text         is_causal, no mask tensor: padding is on the right, where no real token looks
    one new column, cache not ragged   no mask: the newest token may look at everything
    otherwise                          an additive float mask from validity, order, open columns and segments
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from src.contracts import Block, LanguageSpec, Text, Tokenizer, UserError
from src.language.states import States
from src.layers.attention import additive_mask
from src.layers.cache import Cache
from src.layers.dropout import Dropout
from src.layers.walk import Walk


class LanguageModel(nn.Module, ABC):
    """A model of the transformers library, registered as ``model`` and nowhere else.

    Raises UserError if the tokenizer names tokens that the model does not have.
    """

    causal: bool = True  # see LanguageSpec
    attention: tuple[str, ...]  # names of the projections within a block
    mlp: tuple[str, ...]
    unsupported: tuple[str, ...] = ()  # options of a configuration that are computed here where they are off only
    pretrained: bool = False  # the weights are a checkpoint's, so that freezing them makes sense
    states: States | None = None  # of texts that it has read, where it is frozen: see language/states.py
    recompute: bool = False  # blocks keep their inputs only, and compute the rest again in the backward pass

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, context: int):
        super().__init__()
        config = model.config
        _check_vocabulary(tokenizer, config.vocab_size)
        use_fast_dropout(model)
        self.model = model.train()  # loaded models come in eval mode, random ones do not; whoever freezes sets eval
        self.spec = LanguageSpec(
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            vocabulary=config.vocab_size,
            context=context,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            pad=tokenizer.pad,
            causal=self.causal,
            mask=getattr(tokenizer, "mask", None),  # whoever only writes needs none
        )

    @classmethod
    def check(cls, config: PretrainedConfig) -> None:
        """ValueError where ``config`` describes no model of the family; what its classes find is not asked again."""

    @abstractmethod
    def embed(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings (B, T, D), without positions."""

    @abstractmethod
    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Inputs of the first block: with positions, where the family adds them there."""

    def rotary(self, positions_RT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, (R, T) and what blocks read, where the family turns queries and keys instead."""
        return None

    @abstractmethod
    def opened(self) -> Sequence[Block]:
        """The decoder blocks, first to last. Made anew at each call: views cost nothing and register nothing."""

    def blocks(self) -> Sequence[Block]:
        """``opened``, as training or decoding wants them."""
        blocks = self.opened()
        return [Recomputed(block) for block in blocks] if self.recompute and torch.is_grad_enabled() else blocks

    @abstractmethod
    def final_norm(self, h_BTD: Tensor) -> Tensor:
        """The norm after the last block."""

    def unembed(self, h_XD: Tensor) -> Tensor:
        """Logits (..., V)."""
        return self.bounded(self.model.lm_head(h_XD))

    def bounded(self, products_XV: Tensor) -> Tensor:
        """Logits of products with ``unembedding``: these, unless the family bounds them."""
        return products_XV

    def unembedding(self) -> Tensor:
        """The matrix of ``unembed``, (V, D)."""
        return self.model.lm_head.weight

    def walk(self, text: Text, dtype: torch.dtype, cache: Cache | None = None) -> Walk:
        """Masks for inputs of ``dtype``, positions and cache columns of one pass over the columns of ``text``.

        Raises UserError beyond ``spec.context``. Columns are counted, not positions: no device value is read, and the
        longest row of a sensible batch has no padding. (A row of several texts may be longer: positions begin anew in
        each, and how long they may be is known where they are loaded.) Raises ValueError where a cached pass goes on
        with columns that earlier ones should have seen.
        """
        T = text.valid_BT.shape[1]
        start = cache.length if cache is not None else 0
        if text.segment_BT is None and start + T > self.spec.context:
            raise UserError(
                f"The text with its prefix has {start + T} positions, but the language model reads at most "
                f"{self.spec.context}; use shorter texts, a shorter prefix or another language model."
            )
        if start > 0 and (text.segment_BT is not None or (text.open_BT is not None and text.open_BT.any())):
            raise ValueError("Open columns and segments belong into the first pass of a cache.")
        valid_BS, ragged = text.valid_BT, text.ragged
        if cache is not None:
            valid_BS = cache.claim(text.valid_BT, ragged)
            ragged = cache.ragged
        plain = not ragged and text.open_BT is None and text.segment_BT is None
        bias = None
        if ragged or (T > 1 if start > 0 else not plain):
            bias = seen_bias(valid_BS, T, attention_dtype(dtype, valid_BS.device.type), text.open_BT, text.segment_BT)
        positions_RT = positions(valid_BS, T, ragged, text.segment_BT)
        return Walk(positions_RT, bias, start == 0 and plain, cache, self.rotary(positions_RT, dtype))

    def begin(self, inputs_BTD: Tensor, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        """``walk``, then ``place``: h_BTD, and the walk."""
        walk = self.walk(text, inputs_BTD.dtype, cache)
        return self.place(inputs_BTD, walk), walk

    def hidden(self, text: Text, cache: Cache | None = None) -> Tensor:
        """The plain walk: final hidden states (B, T, D), which ``unembed`` turns into logits."""
        return self.read(text, cache)[0]

    def read(self, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        """The plain walk's final hidden states (B, T, D), from ``states`` where they are kept, and the walk."""
        if self.states is None or cache is not None or text.ragged or text.open_BT is not None:
            return self._through(text, cache)
        return self.states.of(text, lambda alone: self._through(alone)[0]), self.walk(text, self.model.dtype)

    def _through(self, text: Text, cache: Cache | None = None) -> tuple[Tensor, Walk]:
        h_BTD, walk = self.begin(self.embed(text.ids_BT), text, cache)
        for block in self.blocks():
            h_BTD = block.feed(block.attend(h_BTD, walk))
        return self.final_norm(h_BTD), walk


class Recomputed:
    """A block whose halves keep nothing but their input for the backward pass (Chen et al. 2016, arXiv 1604.06174).

    The same numbers: dropout draws again what it drew, as its seeds come from torch's generator.
    """

    def __init__(self, block: Block):
        self.block = block

    def norm(self, h_BTD: Tensor) -> Tensor:
        return self.block.norm(h_BTD)

    def attend(self, h_BTD: Tensor, walk: Walk) -> Tensor:
        if walk.cache is not None:  # which a second pass would fill twice
            return self.block.attend(h_BTD, walk)
        return checkpoint(self.block.attend, h_BTD, walk, use_reentrant=False)

    def feed(self, h_BTD: Tensor) -> Tensor:
        return checkpoint(self.block.feed, h_BTD, use_reentrant=False)


def use_fast_dropout(model: nn.Module) -> None:
    """Replace torch's dropout modules by ours, which draw faster on a CPU; they hold no weights, so keys stay."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, Dropout(child.p))


def seen_bias(
    valid_BS: Tensor,
    T: int,
    dtype: torch.dtype,
    open_BT: Tensor | None = None,
    segment_BT: Tensor | None = None,
) -> Tensor:
    """Additive mask (B, 1, T, S) for the last T of S columns: 0 where a token may look, very negative elsewhere.

    ``open`` and ``segment`` as in ``Text``; segments only with S = T. Every token sees itself, padding too: no row is
    empty (an empty softmax is NaN, or an average that looks ahead). No other token looks at padding, so what it
    computes reaches no real one.
    """
    S = valid_BS.shape[1]
    keys_S = torch.arange(S, device=valid_BS.device)
    queries_T1 = keys_S[S - T :, None]
    before_RTS = (keys_S <= queries_T1)[None]
    if open_BT is not None:
        before_RTS = before_RTS | F.pad(open_BT, (S - T, 0), value=False)[:, None, :]
    if segment_BT is not None:
        before_RTS = before_RTS & _together(segment_BT)
    seen_BTS = (before_RTS & valid_BS[:, None, :]) | (keys_S == queries_T1)
    return additive_mask(seen_BTS, dtype)[:, None]


def _together(segment_BT: Tensor) -> Tensor:
    """Whether a token (first T) and a key (second T) are of one segment, (B, T, T); all see what belongs to all."""
    keys_B1T = segment_BT[:, None, :]
    return (segment_BT[:, :, None] == keys_B1T) | (keys_B1T == 0)


def positions(valid_BS: Tensor, T: int, ragged: bool, segment_BT: Tensor | None) -> Tensor:
    """Positions of the last T of S columns: their index, or how many real tokens of their segment stand before."""
    S = valid_BS.shape[1]
    if segment_BT is not None:
        before_TT = torch.ones(T, T, dtype=torch.bool, device=valid_BS.device).tril(-1)
        return (_together(segment_BT) & before_TT & valid_BS[:, None, :]).sum(-1)  # (B, T)
    if not ragged:
        return torch.arange(S - T, S, device=valid_BS.device)[None]  # (1, T)
    return (valid_BS.cumsum(1) - 1).clamp_min(0)[:, S - T :]  # (B, T)


def attention_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """The type that attention over inputs of ``dtype`` will run in: autocast's, where it is on."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def _check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> None:
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens but the language model only {vocabulary}; "
            "use the tokenizer that belongs to the model."
        )
    for name in ("bos", "eos", "pad"):
        if not 0 <= getattr(tokenizer, name) < vocabulary:
            raise UserError(
                f"The tokenizer's {name} id {getattr(tokenizer, name)} lies outside the language model's "
                f"vocabulary of {vocabulary}; use the tokenizer that belongs to the model."
            )
