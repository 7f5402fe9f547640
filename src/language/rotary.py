"""Families that turn queries and keys by their positions (Su et al. 2021, arXiv 2104.09864): what they share, how far
they reach, and which rotations are none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from src import hub
from src.contracts import Tokenizer
from src.language.base import LanguageModel
from src.layers.walk import Walk

LAYER_TYPES = {"full_attention", "sliding_attention"}


class Rotary(LanguageModel):
    """Of the library's rotation it asks that it is the base model's ``rotary_emb``."""

    partly: bool = False  # whether some of a head's numbers may stay as they are

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer):
        super().__init__(model, tokenizer, context=_reach(model.config))

    def place(self, inputs_BTD: Tensor, walk: Walk) -> Tensor:
        """Positions enter as rotations of queries and keys, not here."""
        return inputs_BTD

    def rotary(self, positions_RT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (R, T, d) of the library."""
        rotation = cast(nn.Module, self.model.base_model.rotary_emb)
        return self.angles(self.model.config, rotation, positions_RT.new_empty(0, dtype=dtype), positions_RT)

    @staticmethod
    def rotation(config: PretrainedConfig) -> nn.Module:
        """What the library makes the angles with; in most families Llama's or its like."""
        return LlamaRotaryEmbedding(cast(LlamaConfig, config))

    @staticmethod
    def angles(
        config: PretrainedConfig, rotation: nn.Module, like: Tensor, positions_RT: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines; of ``like`` the library looks at type and device only."""
        return rotation(like, positions_RT)

    @classmethod
    def check(cls, config: PretrainedConfig) -> None:
        """ValueError unless the rotations are finite and turn whole heads (or less, where the family knows how)."""
        for kind in set(getattr(config, "layer_types", None) or ()) - LAYER_TYPES:
            raise ValueError(f"layer_types has {kind}, and only {' and '.join(sorted(LAYER_TYPES))} are known")
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        ends_12 = torch.tensor([[0, config.max_position_embeddings - 1]])
        try:
            cosine, _ = cls.angles(config, cls.rotation(config), torch.zeros(1), ends_12)
        except Exception as error:  # unknown kinds, missing numbers, lists of another length
            raise ValueError(f"rope_parameters cannot be computed ({hub.reason(error)})") from error
        turned = cosine.shape[-1]
        if turned > width or (turned < width and not cls.partly):
            raise ValueError(f"rope_parameters turn {turned} of a head's {width} numbers")
        if not cosine.isfinite().all():
            raise ValueError("rope_parameters give angles that are not finite")


def _reach(config: PretrainedConfig) -> int:
    """Positions that plain causal attention and a cache compute exactly.

    Up to the sliding window, where some layer has one. LongRoPE (Ding et al. 2024, arXiv 2402.13753) turns all
    positions by other angles once a text is longer than those of pretraining, where keys in the cache have been turned
    already.
    """
    window = getattr(config, "sliding_window", None)  # None as well where Qwen switches its window off
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    original = (rope["original_max_position_embeddings"] for rope in _ropes(config) if rope["rope_type"] == "longrope")
    return min(filter(None, (config.max_position_embeddings, window if slides else None, *original)))


def _ropes(config: PretrainedConfig) -> Iterable[dict]:
    """The parameters of all rotations: of one, or of each kind of layer."""
    rope = config.rope_parameters
    return [rope] if "rope_type" in rope else filter(None, rope.values())
