"""Contrastive search: of the most probable tokens the one whose state is least like those before it.

    v* = argmax over the K most probable v of  (1 - alpha) p(v | x_<t) - alpha max_j cos(h_v, h_{x_j}),    j < t

Su, Lan, Wang, Yogatama, Kong, Collier 2022, "A Contrastive Framework for Neural Text Generation", NeurIPS, arXiv
2202.06417, section 3.2. h: the final hidden state of a token behind all tokens before it. alpha = 0 is greedy search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from src.contracts import Memory, Text
from src.decoding.base import Decoder, Step, next_column, without_end
from src.decoding.best import best_few
from src.kinds import Share, Size
from src.layers.cache import Cache


class ContrastiveSearch(Decoder):
    """``candidates`` K, ``penalty`` alpha; ``max_tokens``: longest caption, in tokens."""

    def __init__(self, max_tokens: Size, candidates: Size, penalty: Share):
        self.max_tokens, self.candidates, self.penalty = max_tokens, candidates, penalty

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        rows = len(prompt.ids_BT)
        found: list[list[int]] = [[] for _ in range(rows)]
        active, phi_B = list(range(rows)), prompt.phi_BT[:, -1]
        cache = Cache(rows, prompt.ids_BT.shape[1] + extra + self.max_tokens)
        logits_BV, hidden_BSE = step(memory, prompt, cache)
        cache.keep("seen", hidden_BSE, prompt.valid_BT)
        logits_BV = without_end(logits_BV, eos)
        for _ in range(self.max_tokens):
            said = [found[row] for row in active]
            ids_B, logits_BV = self._choose(step, memory, cache, logits_BV, phi_B, said)
            ids = ids_B.tolist()
            going = [row for row, token in enumerate(ids) if token != eos]
            for row in going:
                found[active[row]].append(ids[row])
            if not going:
                break
            if len(going) < len(ids):
                active = [active[row] for row in going]
                keep_B = torch.tensor(going, device=ids_B.device)
                logits_BV, phi_B, memory = logits_BV[keep_B], phi_B[keep_B], memory.select(keep_B)
                cache.select(keep_B)
        return found

    def _choose(
        self, step: Step, memory: Memory, cache: Cache, logits_BV: Tensor, phi_B: Tensor, said: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor]:
        """The next token of every row, and the logits behind it. All candidates are read; the chosen ones stay."""
        K = min(self.candidates, logits_BV.shape[1])
        logp_BK, id_BK = best_few(logits_BV.float().log_softmax(-1), K)
        before_BSE, valid_BS = cache.kept("seen")
        cache.repeat(K)
        behind_XV, hidden_X1E = step(memory, next_column(id_BK.flatten(), phi_B.repeat_interleave(K)), cache)  # X = B*K
        hidden_BKE = hidden_X1E[:, -1].unflatten(0, id_BK.shape)
        alike_BKS = F.normalize(hidden_BKE.float(), dim=-1) @ F.normalize(before_BSE.float(), dim=-1).transpose(1, 2)
        alike_BK = alike_BKS.masked_fill(~valid_BS[:, None], -torch.inf).amax(-1)
        score_BK = (1 - self.penalty) * logp_BK.exp() - self.penalty * alike_BK + self.liked(memory, said, id_BK)
        pick_B = score_BK.masked_fill(logp_BK.isneginf(), -torch.inf).argmax(-1)
        row_B = torch.arange(len(pick_B), device=pick_B.device)
        cache.select(row_B * K + pick_B)
        seen = torch.cat([before_BSE, hidden_BKE[row_B, pick_B][:, None]], 1)  # (B, S+1, E)
        cache.keep("seen", seen, F.pad(valid_BS, (0, 1), value=True))
        return id_BK[row_B, pick_B], behind_XV[row_B * K + pick_B]

    def liked(self, memory: Memory, said: Sequence[list[int]], id_BK: Tensor) -> Tensor | float:
        """What else speaks for each candidate behind what the rows have ``said``, (B, K)."""
        return 0.0
