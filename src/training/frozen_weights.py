"""A training's frozen weights, cast once to the type that it multiplies in."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from src.layers.cast_once import cast_once


class FrozenWeights(Callback):
    """From when the model is where it trains until training ends, in whatever way; see ``layers.cast_once``."""

    def __init__(self) -> None:
        self._within = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():  # where there is no autocast nothing is cast
            device = pl_module.device.type
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                self._within.enter_context(cast_once(pl_module.modules(), dtype))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._within.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._within.close()
