"""Self-critical sequence training (Rennie et al. 2017, CVPR, arXiv 1612.00563): what the captions a model makes up are
worth, in place of the captions of people. VisualGPT and M2 are trained so after next-token prediction.

    L = - (1 / tokens) sum_k (r(w^k) - b_k) sum_t log p(w^k_t | w^k_<t, picture)          w^k ~ p, without dropout

    b_k   greedy: r of the greedy caption (Rennie)   |   mean: the mean r of the picture's other samples (Luo 2020,
          arXiv 2003.09971)
    r     CIDEr-D by the document frequencies of the training captions; the end is a word (src/metrics/rewards.py)

Without 1 / tokens this is REINFORCE, whose mean is the gradient of -E r, since no b_k depends on w^k. A sample may be
empty, so that what is drawn from is exactly what is learnt. All tokens of a batch make one mean, as in Luo's and most
other codes: gradients are as large as those of next_token, and in a batch their direction is REINFORCE's, where a mean
of each caption's own tokens would ask more of short ones. With optim.reduction=sequence_sum the sum over tokens stays.

In validation the loss is that of next_token; CIDEr-D of captions of val chooses the best checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from src.contracts import Batch, Language, Memory, Target, Text, View, present
from src.decoding.greedy import Greedy
from src.decoding.sample import Sample
from src.fusion.base import Fusion, Writer
from src.kinds import Count, Size, check_refusals
from src.metrics.diversity import diversity
from src.metrics.rewards import CiderRewards, ended
from src.metrics.tokens import TOKENS
from src.objectives.base import Chance, Learner, Limit, Loss, Surroundings, Walked
from src.objectives.next_token import NextToken
from src.text.word_classes import unfinished


class Drawn(Sample):
    """Samples of the model's own distribution, in which saying nothing has a probability, too."""

    empty = True


@dataclass(frozen=True)
class SelfCritical(NextToken):
    """``samples``: of each picture; ``max_tokens``: the longest of them; ``val_captions``: see ``judged_by``."""

    samples: Size = 5
    baseline: Literal["greedy", "mean"] = "mean"
    max_tokens: Size = 24
    val_captions: Count = 200
    rewards: CiderRewards | None = field(default=None, init=False, repr=False, compare=False)
    makes_texts = True
    limits: ClassVar[Mapping[str, Limit]] = MappingProxyType(
        {
            "self_critical/no_advantage": Limit(
                0.99,
                "objective=self_critical has nothing to learn from: all samples of a picture are worth the same; begin "
                "with weights= of a run that says different things, or raise objectives.self_critical.samples",
            ),
            "self_critical/cut": Limit(
                0.9,
                "objective=self_critical: the samples do not end within decode.max_tokens; lower the learning rates "
                "(regime.lr_*), or raise decode.max_tokens",
            ),
            "self_critical/unfinished": Limit(
                0.5,
                'objective=self_critical: most samples end in the middle of a sentence ("with a"); lower the learning '
                "rates (regime.lr_*), or learn beside it what people say, objective=[self_critical,next_token]",
            ),
        }
    )

    def __post_init__(self):
        super().__post_init__()
        check_refusals(self.refusals, {"objective": self})

    @staticmethod
    def refusals(objective, data, run):
        if objective.baseline == "mean" and objective.samples < 2:
            yield "objectives.self_critical.baseline=mean compares a sample with others: samples must be at least 2."
        if run.weights is None:
            yield (
                "objective=self_critical goes on from what a run has learnt by next_token, since all that an untrained "
                "model makes up is worth 0; say weights=<run folder>."
            )
        if not data.captioned:
            yield "objective=self_critical scores captions of pictures, and these data have others; leave it out."
        if objective.val_captions == 0:
            yield "objective=self_critical keeps the checkpoint that captions val best; say val_captions=<pictures>."
        if run.loss_spike is not None:
            yield "optim.loss_spike compares losses, and objective=self_critical's are of both signs; leave it out."

    def fitted(self, to: Surroundings) -> SelfCritical:
        """Knows how common words are. Of a restored model, without its data, it cannot be learnt."""
        captions = list(to.captions())
        return self.knowing(rewards=CiderRewards(captions)) if captions else self

    def longer(self, tokens: int) -> int:
        return max(0, 1 + self.max_tokens - tokens)

    @property
    def judged_by(self) -> int:
        return self.val_captions

    def view(self, batch: Batch, chance: Chance) -> View:
        text = present(batch.text, "text in the batch")
        return View(text, Target.next(text), seed=chance(0).getrandbits(32))

    def live(self, of: Learner, batch: Batch, view: View) -> View:
        """Samples, each of whose tokens weighs what it is worth above its baseline."""
        greedy = [(Greedy(self.max_tokens), 1)] if self.baseline == "greedy" else []
        drawn = Drawn(self.max_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=view.seed)
        samples, *others = of.say(batch, (drawn, self.samples), *greedy)
        reward_In = self._rewards(of, batch, samples)
        baseline_In = self._rewards(of, batch, others[0]) if others else mean_of_others(reward_In)
        advantage_In = reward_In - baseline_In
        words = self._words(of, samples)
        spread = diversity(words)
        told = {
            "reward": reward_In.mean(),
            "baseline": baseline_In.mean(),
            "no_advantage": np.isclose(advantage_In, 0, atol=1e-9).all(1).mean(),
            "length": spread["length"],
            "distinct": spread["unique"],
            "cut": np.mean([self._cut(ids) for ids in samples]),
            "unfinished": np.mean([unfinished(one) for one in words]),
        }
        text = self._rows(of, samples, view.text.ids_BT.device)
        target, advantage_B = Target.next(text), torch.from_numpy(advantage_In).float().flatten().to(text.ids_BT.device)
        target.weight_X = advantage_B[target.at_X // text.ids_BT.shape[1]]
        return View(text, target, told={name: advantage_B.new_tensor(value) for name, value in told.items()})

    def _rewards(self, of: Learner, batch: Batch, said: Sequence[list[int]]) -> np.ndarray:
        """(I, n) of what is said of each picture."""
        n = len(said) // len(batch.ids)
        tokens = [one if self._cut(ids) else ended(one) for one, ids in zip(self._words(of, said), said, strict=True)]
        grouped = [tokens[first : first + n] for first in range(0, len(tokens), n)]
        return present(self.rewards, "document frequencies")(batch.captions, grouped)

    @staticmethod
    def _words(of: Learner, said: Sequence[list[int]]) -> list[str]:
        """As metrics read what is said, with spaces between the words."""
        return [TOKENS["words"](of.tokenizer.decode(ids)) for ids in said]

    def _cut(self, ids: Sequence[int]) -> bool:
        """Whether a caption has no end token: it would have come behind the last one that there is room for."""
        return len(ids) == self.max_tokens

    def _rows(self, of: Learner, said: Sequence[list[int]], device: torch.device) -> Text:
        """What is said behind the prompt that it was said behind, to be learnt."""
        prompt, eos = of.start(len(said), device), of.tokenizer.eos
        rows = [ids if self._cut(ids) else [*ids, eos] for ids in said]
        T = max(map(len, rows))
        ids_BT = torch.tensor([row + [of.tokenizer.pad] * (T - len(row)) for row in rows], device=device)
        valid_BT = torch.arange(T, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        text = Text(ids_BT, valid_BT, valid_BT * prompt.phi_BT[:, -1:]).behind_text(prompt)
        text.target_BT = torch.cat([torch.zeros_like(prompt.valid_BT), valid_BT], 1)
        return text

    def walk(self, fusion: Fusion, lm: Language, memory: Memory, view: View) -> Walked:
        """As captions are written: a mechanism's own losses are about what people say."""
        return cast(Writer, fusion).decode(lm, memory, view.text), {}

    def loss(self, of: Learner, walked: Walked, view: View) -> Loss:
        mean, count, *_ = super().loss(of, walked, view)
        told: dict[str, tuple[Tensor, float]] = {f"self_critical/{name}": (x, 0.0) for name, x in view.told.items()}
        return Loss(mean, count, told, rows=len(view.text.ids_BT))


def mean_of_others(reward_In: np.ndarray) -> np.ndarray:
    """(I, n) for each sample the mean of the picture's other ones."""
    return (reward_In.sum(1, keepdims=True) - reward_In) / (reward_In.shape[1] - 1)
