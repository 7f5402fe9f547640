"""Compiling the way of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from src.errors import UserError

Given = ParamSpec("Given")
Made = TypeVar("Made")


def compiled(way: Callable[Given, Made]) -> Callable[Given, Made]:
    """``way``, compiled once for all lengths. Where the machine cannot compile, the first call raises UserError."""
    from torch._dynamo.exc import BackendCompilerFailed  # half a second, for few

    fast = torch.compile(way, dynamic=True)

    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        try:
            return fast(*args, **kwargs)
        except BackendCompilerFailed as error:
            raise UserError(
                f"compile=true does not work on this machine ({str(error.inner_exception).splitlines()[0]}); "
                "say compile=false, or install a C++ compiler (on a GPU: Triton)."
            ) from error

    return call
