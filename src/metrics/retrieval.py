"""Does a picture find its texts among all texts, and a text its picture among all pictures?

R@k, recall at k, with the five captions per picture of Karpathy & Fei-Fei 2015 (CVPR, arXiv 1412.2306, section 4.1):

    i2t/R@k   share of the pictures of which at least one own text is among the k texts most similar to it
    t2i/R@k   share of the texts whose picture is among the k pictures most similar to it

Ties count against: a text that is as similar as the best own one stands before it, so equal similarities (a model that
has learnt nothing) do not score. So do similarities that are not numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recall_at_k(similarity_IB: Tensor, picture_B: Tensor, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The numbers above, between 0 and 1, under "i2t/R@1", "t2i/R@1" and so on.

    ``similarity_IB``: larger is more similar (for unit vectors, their products). ``picture_B``: which of the I pictures
    text b belongs to; texts need not stand in order. Raises ValueError if a picture has no text or a text no picture.
    """
    I, B = similarity_IB.shape
    if picture_B.shape != (B,) or B == 0 or not set(picture_B.tolist()) == set(range(I)):
        raise ValueError("Every picture needs at least one text, and every text one picture.")
    own_IB = picture_B == torch.arange(I, device=picture_B.device)[:, None]
    own_similarity_B = similarity_IB.gather(0, picture_B[None])[0]
    best_I = similarity_IB.masked_fill(~own_IB, -torch.inf).amax(1)
    # "not below" and not "above or equal": every comparison with NaN is false.
    ahead = {
        "i2t": (~(similarity_IB < best_I[:, None]) & ~own_IB).sum(1),
        "t2i": (~(similarity_IB < own_similarity_B) & ~own_IB).sum(0),
    }
    return {f"{way}/R@{k}": (count < k).double().mean().item() for way, count in ahead.items() for k in ks}
