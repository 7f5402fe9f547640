"""MAGiC: a language model that sees nothing proposes words, and who compares texts with the picture chooses among them.

    v* = argmax over the K most probable v of
         (1 - alpha) p(v | x_<t) - alpha max_j cos(h_v, h_{x_j}) + beta f(v)
    f(v) = softmax over the K candidates of  s cos(CLIP(picture), CLIP([x_<t : v]))

Su, Lan, Liu, Liu, Yogatama, Wang, Kong, Collier 2022, "Language Models Can See: Plugging Visual Controls in Text
Generation", arXiv 2205.02655, section 3.2, and their code, by which cosines are scaled by s = CLIP's own e^t before the
softmax; without it all candidates get about 1 / K, and nothing is chosen. Nothing is trained with pairs but the judge.
The rest is contrastive search, and a step reads the language model once; beta = 0 is contrastive search, K = 1 greedy.

Theirs writes on behind the end of a text and cuts it afterwards; here a text ends where it does. Their judge reads the
end token as a word; here it reads words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from src.contracts import Judge, Memory
from src.decoding.contrastive import ContrastiveSearch
from src.errors import UserError
from src.kinds import Rate, Share, Size

PICTURE = "judged"  # in memory: what the judge makes of the pictures, (I, E)


class Magic(ContrastiveSearch):
    """``judge``: the folder of a run that compares (fusion=clip), which ``meet`` brings in person; ``weight`` beta."""

    judged = True

    def __init__(self, max_tokens: Size, candidates: Size, penalty: Share, weight: Rate, judge: str):
        super().__init__(max_tokens, candidates, penalty)
        self.weight, self.judge = weight, judge
        self._judge: Judge | None = None
        self._decode: Callable[[Sequence[int]], str] | None = None

    def meet(self, judge: Judge, decode: Callable[[Sequence[int]], str]) -> None:
        """``decode``: from the language model's tokens to words."""
        self._judge, self._decode = judge, decode

    def beside(self, memory: Memory, ids: Sequence[str]) -> Memory:
        """Raises UserError where no judge has seen the pictures."""
        if self._judge is None:
            raise UserError("decode=magic needs a judge that knows the pictures: python -m src.evaluate decode=magic.")
        return Memory({**memory, PICTURE: self._judge.pictures(ids)})

    def liked(self, memory: Memory, said: Sequence[list[int]], id_BK: Tensor) -> Tensor:
        """beta f, (B, K)."""
        if self._judge is None or self._decode is None:
            raise ValueError("Nobody has met the judge.")
        texts = [self._decode([*row, id]) for row, ids in zip(said, id_BK.tolist(), strict=True) for id in ids]
        y_BKE = self._judge.texts(texts).unflatten(0, id_BK.shape)
        cosine_BK = (y_BKE @ memory[PICTURE][:, :, None])[..., 0]
        return self.weight * torch.softmax(self._judge.scale * cosine_BK, -1)
