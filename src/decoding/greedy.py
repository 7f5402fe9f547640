"""Greedy decoding: the most probable token at every step."""

from __future__ import annotations

from src.contracts import Memory, Text
from src.decoding.base import Decoder, Step, roll_out
from src.decoding.best import best
from src.kinds import Size


class Greedy(Decoder):
    """``max_tokens``: longest caption, in tokens."""

    def __init__(self, max_tokens: Size):
        self.max_tokens = max_tokens

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        return roll_out(step, memory, prompt, extra, self.max_tokens, eos, best)
