"""Weights on the disk: whether a checkpoint file is whole, reading one, and the hash that tells tensors apart."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from src.errors import UserError


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file: a kill while writing, a full disk or a flipped bit; None for a good one.

    torch writes checksums into its files but does not look at them; what it looks at beside them is tried too.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            return f"{wrong} in it is not what was written"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads no tensors
    except pickle.UnpicklingError:  # torch advises to trust the file
        return "it holds something else than tensors and plain values, and that is not executed"
    except Exception as error:  # a flipped bit can make anything of it
        return (str(error) or "it ends too early").splitlines()[0]
    return None


def read_checkpoint(path: Path) -> dict:
    """A checkpoint on the CPU, of which only what is used comes into memory: Adam's states are twice the weights.

    Raises UserError for a damaged one.
    """
    wrong = damage(path)
    if wrong:
        raise UserError(f"{path} is damaged ({wrong}); use another run, or train this one again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}).") from error


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
