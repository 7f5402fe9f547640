"""The language models of the benchmark, with random weights: GPT-2s, and Llamas as SmolLM2 is one."""

from __future__ import annotations

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from src.benchmarking.jobs import family
from src.contracts import Tokenizer
from src.language.base import LanguageModel
from src.language.gpt2 import GPT2
from src.language.llama import Llama
from src.language.load import FUSED_GELU, words


def make_language(size: dict, dropout: float, tokenizer: Tokenizer, blocks: bool = True) -> LanguageModel:
    """Its vocabulary may be larger than the tokenizer's. A Llama has no dropout. Without ``blocks``: word vectors."""
    if not blocks:
        return words(tokenizer, size["width"])
    if family(size) == "llama":
        return Llama(LlamaForCausalLM(LlamaConfig(**llama_options(size))), tokenizer)
    config = GPT2Config(**gpt2_options(size, dropout), activation_function=FUSED_GELU)
    return GPT2(GPT2LMHeadModel(config), tokenizer)


def gpt2_options(size: dict, dropout: float) -> dict:
    """What our GPT-2 and a peer's share."""
    return {
        "vocab_size": size["vocabulary"],
        "n_positions": size["context"],
        "n_embd": size["width"],
        "n_layer": size["layers"],
        "n_head": size["heads"],
        "initializer_range": _spread(size),
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
    }


def llama_options(size: dict) -> dict:
    """SmolLM2's form: key-value heads shared by groups of query heads, output tied to the input."""
    return {
        "vocab_size": size["vocabulary"],
        "max_position_embeddings": size["context"],
        "hidden_size": size["width"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["key_value_heads"],
        "intermediate_size": size["mlp"],
        "tie_word_embeddings": True,
        "initializer_range": _spread(size),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }


def _spread(size: dict) -> float:
    """Standard deviation of weights: 0.02 belongs to width 768."""
    return 0.02 * (768 / size["width"]) ** 0.5
