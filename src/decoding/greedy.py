"""Greedy decoding: the most probable token at every step."""

from __future__ import annotations

from src.contracts import Memory, Text
from src.decoding.base import Step, check_length, roll_out
from src.decoding.best import best


class Greedy:
    """``max_tokens``: longest caption, in tokens."""

    def __init__(self, max_tokens: int):
        check_length(max_tokens)
        self.max_tokens = max_tokens

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        return roll_out(step, memory, prompt, extra, self.max_tokens, eos, best)
