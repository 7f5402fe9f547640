"""A training's frozen language model reads every caption once; see ``language.states``."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from src.language.base import LanguageModel
from src.language.states import States


class FrozenStates(Callback):
    """From the start of training to its end, in whatever way; ``folder``: whose disk holds the states.

    On a CPU alone: a GPU is faster with the model than with the disk.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._language: LanguageModel | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        language = pl_module.language
        learns = any(parameter.requires_grad for parameter in language.parameters())
        if isinstance(language, LanguageModel) and not learns and pl_module.device.type == "cpu":
            self._language, language.states = language, States(self.folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._language is not None and self._language.states is not None:
            self._language.states.close()
            self._language.states = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_fit_end(trainer, pl_module)
