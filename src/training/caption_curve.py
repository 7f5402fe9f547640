"""Captions and their scores at every validation, so that quality has a learning curve beside the loss."""

from __future__ import annotations

import lightning

from src.loading.module import CaptionData
from src.metrics.online import OnlineCaptionScores


class CaptionValidation(lightning.Callback):
    """Logs "val/CIDEr-D", "val/BLEU-4" and "val/ROUGE-L" of the first ``pictures`` pictures of the split "val".

    Every process captions its share. CIDEr-D weighs words by these pictures' references alone: a curve to look at, not
    a number to report.
    """

    def __init__(self, data: CaptionData, pictures: int):
        self.data, self.pictures = data, pictures
        chosen = data.examples("val")[:pictures]
        self.scores = OnlineCaptionScores({example.id: list(example.captions) for example in chosen})

    def on_validation_epoch_end(self, trainer, module) -> None:
        captions = module.caption(self.data.pictures("val", self.pictures, shared=True))
        self.scores.update(list(captions), list(captions.values()))
        scores = self.scores.compute()
        self.scores.reset()
        module.log_dict({f"val/{name}": value.to(module.device) for name, value in scores.items()}, batch_size=1)
