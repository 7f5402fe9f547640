"""Beam search over sums of log-probabilities, with an optional length penalty: the rules of transformers' ``generate``.

    score(y) = log p(y) / |y|^length_penalty         |y| counts the end token; 0 = plain log-probability

Of the continuations of a picture's K beams, an end token among the K best ends a caption; the K best others are the new
beams. What ``max_tokens`` cuts short competes as it stands. The search of a picture is over when no unfinished beam can
still beat its best caption. With a length penalty it may be over before: when K captions have ended and the best beam
would, at its present length, be no better than the worst of them.
"""

from __future__ import annotations

from heapq import heappush, heappushpop

import torch
from torch import Tensor

from src.contracts import Memory, Text
from src.decoding.base import Decoder, Step, next_column, without_end
from src.decoding.best import best_few
from src.kinds import Rate, Size
from src.layers.cache import Cache


class BeamSearch(Decoder):
    """``beams``: width of the search; ``max_tokens``: longest caption, in tokens."""

    def __init__(self, max_tokens: Size, beams: Size, length_penalty: Rate):
        self.max_tokens, self.beams, self.length_penalty = max_tokens, beams, length_penalty
        self.rules = "transformers"  # goes into metrics.json: src.compare refuses captions by the rules of before

    def __call__(self, step: Step, memory: Memory, prompt: Text, eos: int, extra: int = 0) -> list[list[int]]:
        search = _Search(self, prompt, eos, extra)
        search.start(step(memory, prompt, search.cache).logits_BV)
        for length in range(2, self.max_tokens + 1):
            kept_I = search.drop_finished()
            if not search.pictures:
                break
            if kept_I is not None:
                memory = memory.select(kept_I)
            search.extend(step(memory, search.column(), search.cache).logits_BV, length)
        return search.best_ids


class _Search:
    """State of one call. K = beams; row i*K + k of the batch is beam k of the i-th picture still searched."""

    def __init__(self, options: BeamSearch, prompt: Text, eos: int, extra: int):
        self.K, self.alpha, self.max_tokens, self.eos = options.beams, options.length_penalty, options.max_tokens, eos
        rows = len(prompt.ids_BT)
        self.cache = Cache(rows, prompt.ids_BT.shape[1] + extra + options.max_tokens)
        self.pictures = list(range(rows))  # which picture each remaining row group is
        self.phi_I = prompt.phi_BT[:, -1]
        self.ended: list[list[float]] = [[] for _ in range(rows)]  # scores of the K best captions, the worst first
        self.best_score = [-float("inf")] * rows
        self.best_ids: list[list[int]] = [[] for _ in range(rows)]

    def start(self, logits_IV: Tensor) -> None:
        """First tokens: the K best continuations of each prompt."""
        score_IV = without_end(logits_IV.float().log_softmax(-1), self.eos)
        score_IW, token_IW = best_few(score_IV, min(2 * self.K, score_IV.shape[1]))
        self.ids_IKt = score_IW.new_zeros(len(score_IW), self.K, 0, dtype=torch.long)
        self.cache.repeat(self.K)
        self._advance(score_IW, torch.zeros_like(token_IW), token_IW, length=1)

    def extend(self, logits_BV: Tensor, length: int) -> None:
        """One more token on every beam."""
        # Every beam can end at most once, so 2K candidates hold at least K that go on; they are among the 2K best of
        # each beam.
        logp_BV = logits_BV.float().log_softmax(-1)
        logp_BW, token_BW = best_few(logp_BV, min(2 * self.K, logp_BV.shape[1]))
        total_IX = (self.score_IK[:, :, None] + logp_BW.unflatten(0, (-1, self.K))).flatten(1)  # X = K * W
        score_IW, flat_IW = total_IX.topk(min(2 * self.K, total_IX.shape[1]))
        token_IW = token_BW.view(total_IX.shape).gather(1, flat_IW)
        self._advance(score_IW, flat_IW // logp_BW.shape[1], token_IW, length)

    def _advance(self, score_IW: Tensor, beam_IW: Tensor, token_IW: Tensor, length: int) -> None:
        """Note the candidates that are captions now, keep the K best unfinished ones as the new beams."""
        self.length = length
        ended_IW = token_IW == self.eos
        if length == self.max_tokens:  # of equally long captions only the best can win
            self._note(score_IW, beam_IW, token_IW, torch.ones_like(ended_IW[:, :1]))
            return
        self._note(score_IW, beam_IW, token_IW, ended_IW[:, : self.K])
        live_IW = score_IW.masked_fill(ended_IW, -torch.inf)
        if live_IW.shape[1] < self.K:  # a vocabulary smaller than the beam
            pad = self.K - live_IW.shape[1]
            live_IW = torch.nn.functional.pad(live_IW, (0, pad), value=-torch.inf)
            beam_IW, token_IW = (torch.nn.functional.pad(x, (0, pad)) for x in (beam_IW, token_IW))
        self.score_IK, pick_IK = live_IW.topk(self.K)
        beam_IK, token_IK = beam_IW.gather(1, pick_IK), token_IW.gather(1, pick_IK)
        old_IKt = self.ids_IKt.gather(1, beam_IK[:, :, None].expand(-1, -1, self.ids_IKt.shape[2]))
        self.ids_IKt = torch.cat([old_IKt, token_IK[:, :, None]], dim=2)
        first_I1 = torch.arange(len(beam_IK), device=beam_IK.device)[:, None] * self.K
        self.cache.select((first_I1 + beam_IK).flatten())

    def _note(self, score_IW: Tensor, beam_IW: Tensor, token_IW: Tensor, counts_IX: Tensor) -> None:
        """Captions end in the candidates that ``counts_IX`` marks among the first X."""
        for i, w in counts_IX.nonzero().tolist():
            picture, score = self.pictures[i], score_IW[i, w].item() / self.length**self.alpha
            ended = self.ended[picture]
            (heappush if len(ended) < self.K else heappushpop)(ended, score)
            if score > self.best_score[picture]:
                ids = [*self.ids_IKt[i, beam_IW[i, w]].tolist(), int(token_IW[i, w])]
                self.best_score[picture], self.best_ids[picture] = score, ids[:-1] if ids[-1] == self.eos else ids

    def drop_finished(self) -> Tensor | None:
        """Remove the pictures whose search is over; returns the kept row groups if others were removed."""
        over_I = torch.tensor([self._over(picture) for picture in self.pictures], device=self.score_IK.device)
        kept_I = (self.score_IK[:, 0] > over_I).nonzero()[:, 0]
        if len(kept_I) == len(self.pictures):
            return None
        self.pictures = [self.pictures[i] for i in kept_I.tolist()]
        self.phi_I, self.score_IK, self.ids_IKt = self.phi_I[kept_I], self.score_IK[kept_I], self.ids_IKt[kept_I]
        rows_IK = kept_I[:, None] * self.K + torch.arange(self.K, device=kept_I.device)
        self.cache.select(rows_IK.flatten())
        return kept_I

    def _over(self, picture: int) -> float:
        """The log-probability of its best beam at which the search of a picture is over."""
        # Log-probabilities only fall, and a longer caption divides by at most max_tokens^alpha.
        unbeatable = self.best_score[picture] * self.max_tokens**self.alpha
        if len(self.ended[picture]) < self.K:
            return unbeatable
        return max(unbeatable, self.ended[picture][0] * self.length**self.alpha)

    def column(self) -> Text:
        """The newest token of every beam, as the next input."""
        return next_column(self.ids_IKt[:, :, -1].flatten(), self.phi_I.repeat_interleave(self.K))
