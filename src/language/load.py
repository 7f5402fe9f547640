"""Where language models come from: drawn at random, a folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
)
from transformers import PreTrainedModel as LibraryModel
from transformers.utils import logging

from src import hub
from src.contracts import Tokenizer, UserError
from src.kinds import BelowOne, Size, checked
from src.language.base import LanguageModel
from src.language.bert import Bert
from src.language.gemma import Gemma2, Gemma3
from src.language.gpt2 import GPT2
from src.language.gpt_neox import GPTNeoX
from src.language.llama import Llama, Qwen3
from src.language.olmo2 import Olmo2
from src.language.opt import OPT
from src.language.phi3 import Phi3
from src.language.smollm3 import SmolLM3
from src.language.words import Words, WordVectors
from src.records.converted import converted

FAMILIES = {  # by model_type of a configuration
    "bert": Bert,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "gpt2": GPT2,
    "gpt_neox": GPTNeoX,
    "llama": Llama,
    "mistral": Llama,
    "olmo2": Olmo2,
    "opt": OPT,
    "phi3": Phi3,
    "qwen2": Llama,
    "qwen3": Qwen3,
    "smollm3": SmolLM3,
}

ADAPTER = "adapter_config.json"  # what peft writes beside a LoRA's tensors
ADVICE = "check the name, or download it where there is a network and give its folder as language.name"
IN_A_BLOCK = re.compile(r"(^|\.)(h|layers?)\.\d+\.")  # names of a block's tensors, in every family

# The same function as "gelu_new" (equal up to rounding) in one kernel instead of eight: a quarter of the MLP's time,
# and none of the intermediate results kept for the backward pass.
FUSED_GELU = "gelu_pytorch_tanh"


@checked("language.model")
def tiny(
    tokenizer: Tokenizer,
    width: Size = 256,
    layers: Size = 4,
    heads: Size = 4,
    context: Size = 128,
    dropout: BelowOne = 0.1,
) -> GPT2:
    """A small GPT-2 with random weights (GPT-2's own initialisation) and the tokenizer's vocabulary."""
    _check_heads(width, heads)
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


@checked("language.model")
def tiny_bert(
    tokenizer: Tokenizer,
    width: Size = 256,
    layers: Size = 4,
    heads: Size = 4,
    context: Size = 128,
    dropout: BelowOne = 0.1,
) -> Bert:
    """A small BERT with random weights, which reads both ways and has the tokenizer's vocabulary."""
    _check_heads(width, heads)
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        initializer_range=0.02 * (768 / width) ** 0.5,  # as in ``tiny``
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad,
    )
    return Bert(BertForMaskedLM(config), tokenizer)


@checked("language.model")
def words(tokenizer: Tokenizer, width: Size) -> Words:
    """Random word vectors of this width and no blocks, with the tokenizer's vocabulary."""
    config = PretrainedConfig()
    config.update({"vocab_size": len(tokenizer), "hidden_size": width})
    config.update({"num_hidden_layers": 0, "num_attention_heads": 0})
    return Words(WordVectors(config), tokenizer)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"language.model.heads={heads} must divide language.model.width={width}.")


@checked("language.model")
def pretrained(tokenizer: Tokenizer, name: str, init: Literal["pretrained", "random"] = "pretrained") -> LanguageModel:
    """A checkpoint of a supported family in float32; ``name``: a folder, a name on the hub or one in a package
    (``records.converted``).

    ``init="random"`` takes the architecture only, with random weights; for "gpt2" that needs no network. Raises
    UserError when the checkpoint cannot be had, is of another family, does not belong to the tokenizer, or would be
    opened as something else than what was trained: an adapter, quantised weights, a configuration of another model.
    """
    name = hub.expanded(converted(name))
    config = GPT2Config() if (name, init) == ("gpt2", "random") else _config(name)
    if config.model_type not in FAMILIES:
        raise UserError(
            f"{name} is a {config.model_type} model; language models of these types are supported: "
            f"{', '.join(FAMILIES)}."
        )
    _check_same_vocabulary(tokenizer, config, name)
    _check_computable(config, name)
    if getattr(config, "activation_function", None) == "gelu_new":
        config.activation_function = FUSED_GELU
    drawn = init == "random"
    model = _class_of(config).from_config(config, dtype=torch.float32) if drawn else _weights(name, config)
    lm = FAMILIES[config.model_type](model, tokenizer)
    lm.pretrained = not drawn
    return lm


def _class_of(config: PretrainedConfig):
    """The library's class with the head that predicts words."""
    return AutoModelForCausalLM if FAMILIES[config.model_type].causal else AutoModelForMaskedLM


def _config(name: str) -> PretrainedConfig:
    here = hub.find(name, "config.json")
    if hub.find(name, ADAPTER) or (here is None and _hub_has_adapter(name)):
        raise UserError(
            f"{name} holds an adapter ({ADAPTER}), which would be left out; merge it into the weights of its model "
            "(merge_and_unload of the package peft, then save_pretrained) and give that folder as language.name."
        )
    if here is None and Path(name).is_dir():
        raise UserError(f"The folder {name} holds no readable language model: config.json is missing.")
    return hub.fetch(lambda local: _read_config(name, local), name, "language model", ADVICE)


def _read_config(name: str, local: bool) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)
    except OSError:  # names the file, or says that there is none
        raise
    except Exception as error:  # one kind for every option of a configuration
        raise ValueError(f"config.json: {hub.reason(error)}") from error


def _hub_has_adapter(name: str) -> bool:
    try:
        return hub.on_hub(name, ADAPTER)
    except Exception:  # a folder, say, or out of reach: told where the configuration is read
        return False


def _weights(name: str, config: PretrainedConfig) -> LibraryModel:
    """The model with its weights; UserError unless exactly those of ``config`` are there.

    The library would draw missing weights at random and leave out those of blocks that ``config`` does not have.
    """
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        method = dict(quantised).get("quant_method", "an unnamed method")
        raise UserError(
            f"The weights of {name} are quantised ({method}), and only full ones can be opened here; give the "
            "checkpoint that they were made from."
        )
    with _quiet():
        model, report = hub.fetch(lambda local: _read_weights(name, config, local), name, "language model", ADVICE)
    for key, stored, wanted in sorted(report["mismatched_keys"]):
        raise UserError(
            f"The weights of {name} do not fit its config.json: {key} is {list(stored)} among the weights and "
            f"{list(wanted)} by the configuration; give both from one save."
        )
    if report["missing_keys"]:
        raise UserError(f"The checkpoint {name} lacks weights, among them {sorted(report['missing_keys'])[0]}.")
    if unread := sorted(filter(IN_A_BLOCK.search, report["unexpected_keys"])):
        raise UserError(
            f"The blocks of {name} hold weights that its config.json, of {config.num_hidden_layers} layers, leaves "
            f"out: {unread[0]}, {len(unread)} in all; give both from one save."
        )
    return model


def _read_weights(name: str, config: PretrainedConfig, local: bool) -> tuple[LibraryModel, dict]:
    """The model, and the names of weights that were missing, left over or of another size."""
    return _class_of(config).from_pretrained(  # pyright: ignore[reportReturnType]: two, for output_loading_info
        name,
        config=config,
        local_files_only=local,
        trust_remote_code=False,
        dtype=torch.float32,
        use_safetensors=True,  # pickled weights can run code
        ignore_mismatched_sizes=True,  # told by ``_weights``; the library's error does not name them
        output_loading_info=True,
    )


@contextmanager
def _quiet():
    """Without the library's table of keys, which a sentence follows."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_same_vocabulary(tokenizer: Tokenizer, config: PretrainedConfig, name: str) -> None:
    """A checkpoint's vocabulary is its tokenizer's plus a little padding; far fewer tokens mean another tokenizer."""
    if len(tokenizer) < 0.9 * config.vocab_size:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens and {name} {config.vocab_size}; "
            "use the tokenizer that belongs to the model."
        )


def _check_computable(config: PretrainedConfig, name: str) -> None:
    """Refuse what no model can be made of, or none that is computed here, before weights are fetched and read."""
    family = FAMILIES[config.model_type]
    for option in family.unsupported:
        if value := getattr(config, option, None):
            raise UserError(
                f"The config.json of {name} has {option}={value}, which is not computed here; give a model without."
            )
    try:
        family.check(config)
        with torch.device("meta"):
            _class_of(config).from_config(config)
    except Exception as error:  # one kind for every option of a configuration
        raise UserError(f"The config.json of {name} describes no model: {hub.reason(error)}") from error
