"""What ``regime`` and ``optim`` ask for: groups of parameters, the schedule, and how losses become one number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.layers.processes import processes, summed


def parameter_groups(parts: Mapping[str, nn.Module], rates: Mapping[str, float], optim: Mapping) -> list[dict]:
    """Per part, with and without weight decay; ``rates``: the learning rate of each part.

    Norms, biases, gates (all parameters with fewer than two axes) and learnt constants are not decayed. The learning
    rate of a part's ``scalar_gates`` is ``gate_rate`` times the part's; with 1 they are no group of their own.
    """
    groups, gate_rate = [], optim.get("gate_rate", 1.0)
    for part, module in parts.items():
        constants, gates = set(getattr(module, "undecayed", ())), set(getattr(module, "scalar_gates", ()))
        split: dict[str, list] = {part: [], f"{part}/no_decay": [], f"{part}/gates": []}
        for name, parameter in module.named_parameters():
            if gate_rate != 1 and name in gates:
                split[f"{part}/gates"].append(parameter)
            elif parameter.ndim >= 2 and name not in constants:
                split[part].append(parameter)
            else:
                split[f"{part}/no_decay"].append(parameter)
        for name, parameters in split.items():
            if parameters:
                rate = rates[part] * (gate_rate if name.endswith("/gates") else 1)
                decay = optim["weight_decay"] if name == part else 0.0
                groups.append({"name": name, "params": parameters, "lr": rate, "weight_decay": decay})
    return groups


def require_all(module: nn.Module, groups: Iterable[Mapping]) -> None:
    """Raises AssertionError unless every parameter that trains is in one group.

    One outside of the captioner's parts would be saved but never trained, one of two parts be trained twice.
    """
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and times[id(parameter)] != 1:
            raise AssertionError(
                f"{name} is in {times[id(parameter)]} of the optimiser's groups, and must be in one to be trained: "
                "put its module into one of captioner.PARTS, or add that to them."
            )


def adamw(groups: list[dict], optim: Mapping, steps: float) -> OptimizerLRScheduler:
    """AdamW and its schedule over ``steps``, as Lightning wants them."""
    optimizer = torch.optim.AdamW(groups, betas=tuple(optim["betas"]), fused=True)
    cooldown = optim.get("cooldown")

    def factor(step: int) -> float:
        if cooldown is None:
            return warmup_cosine(step, steps, optim["warmup"], optim["floor"])
        return warmup_constant(step, steps, optim["warmup"], optim["floor"], cooldown)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def warmup_constant(step: int, total: float, warmup: float, floor: float, cooldown: float) -> float:
    """Learning-rate factor: linear over ``warmup``, then 1, and over the last ``cooldown`` share linear to ``floor``.

    Before the cool-down it does not depend on ``total`` (with a ``warmup`` in steps), so one training gives several
    lengths. Hägele et al. 2024, arXiv 2405.18392, section 3: as good as a cosine of that length.
    """
    rising, trunk = warmup_steps(warmup, total), trunk_steps(total, cooldown)
    if step < rising:
        return (step + 1) / rising
    return 1.0 if step < trunk else max(floor, 1 - (1 - floor) * (step - trunk + 1) / (total - trunk))


def trunk_steps(total: float, cooldown: float) -> int:
    """Steps before the cool-down, which is at least one."""
    return int(total) - max(1, round(cooldown * total))


def warmup_steps(warmup: float, total: float) -> int:
    """``warmup``: a share of ``total`` steps, or a whole number of steps; at least 1."""
    return max(1, warmup if isinstance(warmup, int) else round(warmup * total))


def warmup_cosine(step: int, total: float, warmup: float, floor: float) -> float:
    """Learning-rate factor: linear over ``warmup``, then a cosine down to ``floor`` at ``total`` steps.

    Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.
    """
    rising = warmup_steps(warmup, total)
    if step < rising:
        return (step + 1) / rising
    progress = min(1.0, (step - rising) / max(1, total - rising))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def reduction(kind: str, targets: Tensor, rows: int) -> Tensor | float:
    """What turns the mean over this process's ``targets`` into the reduction that ``optim.reduction`` asks for.

    token_mean: the mean over the tokens of all processes, whose gradients are averaged afterwards: short captions on
    one of them must not weigh more. sequence_sum: summed over the tokens of a row, mean over rows, as in arXiv
    2204.14198.
    """
    if kind == "sequence_sum":
        return targets / rows
    return targets * processes() / summed(targets) if processes() > 1 else 1.0
