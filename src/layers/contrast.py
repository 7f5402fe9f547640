"""Pictures against texts, each the negatives of all others: CLIP's loss, as CoCa (arXiv 2205.01917) has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.layers.pooler import AttentionalPooler
from src.layers.processes import processes


class Contrast(nn.Module):
    """All that serves L_con alone: CLS, the pooler of v, W_i, W_t, sigma. The formulas are in src/fusion/coca.py."""

    def __init__(
        self, width: int, source_width: int, heads: int, embed_width: int, temperature: float, dropout: float = 0.0
    ):
        super().__init__()
        self.cls_D = nn.Parameter(torch.randn(width) * 0.02)
        self.pooler = AttentionalPooler(width, source_width, heads, 1, dropout)
        self.norm_cls = nn.LayerNorm(width)
        self.W_i, self.W_t = (nn.Linear(width, embed_width, bias=False) for _ in "it")
        self.log_temperature = nn.Parameter(torch.full((1,), float(temperature)).log())

    def picture(self, source_INC: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (I, E) from U or, with ``pool: parallel``, from the visual tokens."""
        return unit(self.W_i(self.pooler(source_INC, bias)[:, 0]))

    def text(self, cls_BD: Tensor) -> Tensor:
        """y (B, E)."""
        return unit(self.W_t(self.norm_cls(cls_BD)))

    def scale(self) -> Tensor:
        """1 / sigma."""
        return 1 / self.log_temperature.exp()

    def loss(self, x_IE: Tensor, y_IE: Tensor) -> Tensor:
        """L_con of pictures and their texts."""
        return contrastive_loss(x_IE, y_IE, self.scale(), gathered=self.training)[0]


def contrastive_loss(x_IE: Tensor, y_IE: Tensor, scale: Tensor, gathered: bool) -> tuple[Tensor, Tensor]:
    """Mean nats of pictures and their texts, each the negatives of all others, and the share that finds its own.

    log I where all are equally similar. ``gathered``: of all processes, which they have to ask for together.
    """
    if gathered:  # outside of training a process may be alone here and would wait for the others
        x_IE, y_IE = _of_all_processes(x_IE), _of_all_processes(y_IE)
    with torch.autocast(x_IE.device.type, enabled=False):  # half precision would round s by hundredths
        s_II = x_IE @ y_IE.T * scale
    mine_I = torch.arange(len(s_II), device=s_II.device)
    right = (s_II.argmax(1) == mine_I).float().mean() / 2 + (s_II.argmax(0) == mine_I).float().mean() / 2
    return (F.cross_entropy(s_II, mine_I) + F.cross_entropy(s_II.T, mine_I)) / 2, right


def unit(x_XE: Tensor) -> Tensor:
    """x / |x|, at least in single precision."""
    return F.normalize(x_XE.to(torch.promote_types(x_XE.dtype, torch.float32)), dim=-1)


def _of_all_processes(x_IE: Tensor) -> Tensor:
    """The rows of all processes, with gradients to where they came from; every process has equally many.

    Every process then holds the whole loss: gradients arrive once from each, and data-parallel training takes the mean.
    """
    if processes() == 1:
        return x_IE
    from torch.distributed.nn.functional import all_gather  # absent where torch has no distributed package

    return torch.cat(all_gather(x_IE))
