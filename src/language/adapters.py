"""Low-rank adapters on a language model whose own weights stay as they are, by the library peft.

    y = W x + b + alpha / r * B A x        A: (r, in), B: (out, r), on the projections of every block

Hu et al. 2021, arXiv 2106.09685. B starts at 0, and with it the adapted model at its own logits; A is drawn. They lie
inside of the library's modules, which the families' files go through as ever.
"""

from __future__ import annotations

from typing import Literal, cast

from transformers.pytorch_utils import Conv1D

from src.language.base import LanguageModel
from src.records.wandb_runs import require_package

Targets = Literal["attention", "mlp", "all"]


def adapt(language: LanguageModel, rank: int, alpha: float, targets: Targets) -> None:
    """Put adapters into every block of ``language``, in place; nothing else of it learns from then on.

    Their values come from torch's generator. Raises UserError where peft is not installed.
    """
    require_package("peft", "regime=lora")
    from peft import LoraConfig, inject_adapter_in_model  # seconds

    attention, mlp = language.attention, language.mlp
    names = {"attention": attention, "mlp": mlp, "all": attention + mlp}[targets]
    transposed = any(isinstance(module, Conv1D) for module in language.modules())
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),  # of which it makes alpha / rank, a float in any case
        target_modules=list(names),
        fan_in_fan_out=transposed,
    )
    training = language.training
    inject_adapter_in_model(config, language.model)
    language.train(training)  # new modules come in training mode


def merge(language: LanguageModel) -> None:
    """Add the adapters to the weights beside them and take them out: the library's own modules, in place, none of
    whose weights learns."""
    from peft.tuners.lora import LoraLayer

    for module in list(language.modules()):
        for name, child in module.named_children():
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(module, name, child.get_base_layer())
