"""Tiny language models of every family, for tests that run over several; sizes as in tests/test_language.py."""

from __future__ import annotations

import torch
import transformers
from conftest import Characters, nudge
from test_language import CONFIGS, IMPLEMENTATION, make_norms_exact

from src.language import load


def make_family(kind: str):
    """In float64, every parameter nudged; ``kind``: of ``CONFIGS``."""
    torch.manual_seed(0)  # the same weights at every call
    config = CONFIGS[kind]()
    config.vocab_size, config.max_position_embeddings = len(Characters()), 64
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION.get(kind))
    language = nudge(load.FAMILIES[config.model_type](model, Characters()).double()).eval()
    make_norms_exact(language)
    return language
