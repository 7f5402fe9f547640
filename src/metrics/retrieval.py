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
    """The numbers above, between 0 and 1, under "i2t/R@1", "t2i/R@1" and so on; arguments as of ``recall_of_each``."""
    found = _found(similarity_IB, picture_B, ks)
    return {name: found_X.double().mean().item() for name, found_X in found.items()}


def recall_of_each(similarity_IB: Tensor, picture_B: Tensor, ks: Sequence[int] = (1, 5, 10)) -> list[dict[str, float]]:
    """The same of every picture: whether it finds an own text, and the share of its texts that find it.

    ``similarity_IB``: larger is more similar (for unit vectors, their products). ``picture_B``: which of the I pictures
    text b belongs to; texts need not stand in order. Raises ValueError if a picture has no text or a text no picture.
    """
    own_IB = picture_B == torch.arange(len(similarity_IB), device=picture_B.device)[:, None]
    of_pictures = {
        name: found_X.double() if name.startswith("i2t") else (own_IB * found_X).sum(1).double() / own_IB.sum(1)
        for name, found_X in _found(similarity_IB, picture_B, ks).items()
    }
    return [{name: share_I[i].item() for name, share_I in of_pictures.items()} for i in range(len(similarity_IB))]


def _found(similarity_IB: Tensor, picture_B: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """By score: whether every picture, (I,), or every text, (B,), finds an own one."""
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
    return {f"{way}/R@{k}": count < k for way, count in ahead.items() for k in ks}
