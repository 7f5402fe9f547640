"""Where language models come from: drawn at random, a folder, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PretrainedConfig
from transformers import PreTrainedModel as LibraryModel

from src.contracts import Tokenizer, UserError
from src.language.base import LanguageModel
from src.language.gpt2 import GPT2
from src.language.llama import Llama

FAMILIES = {"gpt2": GPT2, "llama": Llama, "mistral": Llama, "qwen2": Llama, "qwen3": Llama}

UNREADABLE = (OSError, ValueError, SafetensorError)  # absent or unreachable, malformed configuration, broken weights

# The same function as "gelu_new" (equal up to rounding) in one kernel instead of eight: a quarter of the MLP's time,
# and none of the intermediate results kept for the backward pass.
FUSED_GELU = "gelu_pytorch_tanh"


def tiny(
    tokenizer: Tokenizer, width: int = 256, layers: int = 4, heads: int = 4, context: int = 128, dropout: float = 0.1
) -> GPT2:
    """A small GPT-2 with random weights (GPT-2's own initialisation) and the tokenizer's vocabulary."""
    if width % heads:
        raise UserError(f"The language model's width {width} is not divisible by its {heads} heads.")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        activation_function=FUSED_GELU,
        initializer_range=0.02 * (768 / width) ** 0.5,  # 0.02 belongs to width 768; the same variances at this one
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    return GPT2(GPT2LMHeadModel(config), tokenizer)


def pretrained(tokenizer: Tokenizer, name: str, init: str = "pretrained") -> LanguageModel:
    """A checkpoint of a supported family in float32; ``name`` is a folder or a name on the hub.

    ``init="random"`` takes the architecture only, with random weights; for "gpt2" that needs no network. Raises
    UserError when the checkpoint cannot be had, is of another family, or does not belong to the tokenizer.
    """
    if init not in ("pretrained", "random"):
        raise UserError(f"language.init is 'pretrained' or 'random', not {init!r}.")
    config = GPT2Config() if (name, init) == ("gpt2", "random") else _fetch(AutoConfig, name)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{name} is a {config.model_type} model; language models of these types are supported: "
            f"{', '.join(FAMILIES)}."
        )
    _check_same_vocabulary(tokenizer, config, name)
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = FUSED_GELU
    if init == "random":
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = _weights(name, config)
    lm = FAMILIES[config.model_type](model, tokenizer)
    lm.pretrained = init == "pretrained"
    return lm


def _weights(name: str, config: PretrainedConfig) -> LibraryModel:
    """The model with its weights; UserError when some are missing (the library would draw those at random)."""
    model, report = _fetch(
        AutoModelForCausalLM,
        name,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,  # pickled weights can run code
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise UserError(f"The checkpoint {name} lacks weights, among them {sorted(report['missing_keys'])[0]}.")
    return model


def _fetch(auto_class, name: str, **options):
    """``auto_class.from_pretrained``, from the folder or the local cache if possible, else from the hub."""
    try:
        return auto_class.from_pretrained(name, local_files_only=True, trust_remote_code=False, **options)
    except UNREADABLE as error:
        if Path(name).is_dir():
            raise UserError(f"The folder {name} holds no readable language model: {_first_line(error)}") from error
    _check_reachable(name)
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **options)
    except UNREADABLE as error:
        raise UserError(f"The language model {name} cannot be loaded: {_first_line(error)}") from error


def _check_reachable(name: str) -> None:
    """One request without retries: the library's own would retry for half a minute before it says the same."""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=5)
    except Exception as error:  # bad names, missing or gated models, and network errors share no base class
        raise UserError(
            f"The language model {name!r} is neither a folder here nor in the local cache, and the Hugging Face hub "
            f"does not give it ({_first_line(error)}); check the name, or download it where there is a network and "
            "give its folder as language.name."
        ) from error


def _check_same_vocabulary(tokenizer: Tokenizer, config: PretrainedConfig, name: str) -> None:
    """A checkpoint's vocabulary is its tokenizer's plus a little padding; far fewer tokens mean another tokenizer."""
    if len(tokenizer) < 0.9 * config.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and {name} {config.vocab_size}; "
            "use the tokenizer that belongs to the model."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
