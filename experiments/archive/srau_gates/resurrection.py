"""Do shut gates keep learning? Gradients at the gate logits of a trained SRAU, as it is and with renormalised gates.

    python -m experiments.archive.srau_gates.resurrection runs/frozen_or_tuned/scenes-srau-finetune_lm-s0-*

For each run with learnt gates (gate=concat), on 8 training batches: the share of gate entries whose visual side is shut
(exactly 0), and there the mean |dL/dz| of the caption loss by the gate's logit z, beside that of open entries.
"renormalised" divides the thresholded pair by its sum, the form against which section 3.2 of arXiv 2102.10407 argues: a
shut gate then leaves its partner at 1, whatever z is, so the gradient is 0 (up to rounding) and nothing that this entry
receives can open it again.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from src.config.added_keys import run_config
from src.fusion.srau import SRAU
from src.pretrained import restore_on

BATCHES = 8


def main(runs: list[str]) -> None:
    print("| tau | gates | visual side shut | mean abs. dL/dz there | where open |")
    print("|---|---|---|---|---|")
    for run in runs:
        parts = restore_on(Path(run), run_config(run).data, "train")
        fusion, plain = parts.captioner.fusion, SRAU._gate_pair
        for name, pair in (("SRAU", plain), ("renormalised", renormalised)):
            fusion._gate_pair = pair.__get__(fusion)
            shut, there, elsewhere = gradients(parts, fusion)
            print(f"| {fusion.tau} | {name} | {shut:.3f} | {there:.1e} | {elsewhere:.1e} |", flush=True)


def renormalised(fusion: SRAU, l: int, a_BTD, c_KBTD):
    """The thresholded pair divided by its sum."""
    visual, language = SRAU._gate_pair(fusion, l, a_BTD, c_KBTD)
    return visual / (visual + language), language / (visual + language)


def keep(logits: list, gate, given, z_KBTD: torch.Tensor) -> None:
    """Forward hook: remember the logits, and have their gradient kept."""
    z_KBTD.retain_grad()
    logits.append(z_KBTD)


def gradients(parts, fusion: SRAU) -> tuple[float, float, float]:
    """Share of shut visual entries, mean |dL/dz| there, and where they are open."""
    parts.captioner.eval()  # without dropout, so that both forms see the same
    shut, there, elsewhere = [], [], []
    for batch in islice(parts.data.train_dataloader(), BATCHES):
        batch = parts.captioner.transfer_batch_to_device(batch, parts.captioner.device, 0)
        logits: list[torch.Tensor] = []
        hooks = [gate.register_forward_hook(partial(keep, logits)) for gate in fusion.gates]
        loss, _ = parts.captioner.text_loss(batch)
        loss.backward()
        for hook in hooks:
            hook.remove()
        for z_KBTD in logits:
            z, dz = (x[:, batch.text.targets()[:, 1:]] for x in (z_KBTD, z_KBTD.grad))  # where the loss looks
            closed = 1 - torch.sigmoid(z) <= fusion.tau
            shut.append(closed.double().mean())
            there.append(dz[closed].abs())
            elsewhere.append(dz[~closed].abs())
    return float(torch.stack(shut).mean()), float(torch.cat(there).mean()), float(torch.cat(elsewhere).mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:])
