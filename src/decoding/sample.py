"""Sampling with temperature, top-k and top-p (nucleus; Holtzman et al. 2020, arXiv 1904.09751)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from src.contracts import Memory, Text
from src.decoding.base import Decoder, Step, roll_out
from src.kinds import Count, Gt, Le, Positive, Seed, Size


class Sample(Decoder):
    """``top_k`` 0 and ``top_p`` 1.0 switch those filters off; ``seed`` makes the captions repeatable."""

    def __init__(
        self,
        max_tokens: Size,
        temperature: Positive,
        top_k: Count,
        top_p: Annotated[float, Gt(0), Le(1)],
        seed: Seed,
    ):
        self.max_tokens, self.temperature = max_tokens, temperature
        self.top_k, self.top_p, self.seed = top_k, top_p, seed

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        generator = torch.Generator(prompt.ids_BT.device).manual_seed(self.seed)

        def draw(logits_BV: Tensor) -> Tensor:
            probability_BV = self.filter(logits_BV / self.temperature).softmax(-1)
            return torch.multinomial(probability_BV, 1, generator=generator)[:, 0]

        return roll_out(step, memory, prompt, extra, self.max_tokens, eos, draw, self.empty)

    def filter(self, logits_BV: Tensor) -> Tensor:
        """Logits with everything outside top-k and outside the nucleus set to -inf; the best token always stays."""
        if self.top_k:
            kth_B1 = logits_BV.topk(min(self.top_k, logits_BV.shape[-1])).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
        if self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(descending=True)
            probability_BV = sorted_BV.softmax(-1)
            before_BV = probability_BV.cumsum(-1) - probability_BV  # mass of the better tokens
            outside_BV = (before_BV >= self.top_p).scatter(-1, order_BV, before_BV >= self.top_p)
            logits_BV = logits_BV.masked_fill(outside_BV, -torch.inf)
        return logits_BV
