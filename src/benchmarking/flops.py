"""Floating-point operations of a training step, counted as it runs."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from src.captioner import Captioner
from src.contracts import Batch


def training_flops(captioner: Captioner, batch: Batch) -> int:
    """Floating-point operations of one step of training on ``batch``, captions that it makes included; gradients are
    left empty.

    In eval mode, which costs the same: training mode would move the running statistics of batch norms.
    """
    counter = FlopCounterMode(display=False)
    was_training = captioner.training
    captioner.eval()
    batch = captioner.transfer_batch_to_device(batch, captioner.device, 0)
    with counter:
        # Not ``captioner.total``, which asks the other processes of a training: they may have ended.
        losses = captioner.losses(captioner.live(batch)).values()
        total = sum(loss.mean + sum(value for value, _ in loss.terms.values()) for loss in losses)
        if total.requires_grad:
            total.backward()
    captioner.zero_grad(set_to_none=True)
    captioner.train(was_training)
    return counter.get_total_flops()
