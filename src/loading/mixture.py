"""data=mixture: several data sets in one training.

One update draws a batch of each data set m and follows g = sum_m weight_m * gradient of L_m (Alayrac et al. 2022, arXiv
2204.14198, section 3.2); ``schedule: round_robin`` updates on one data set after the other instead, its ablation.

Batches come one data set at a time. For the sum the trainer accumulates as many of them as there are data sets before
each step, so that mixed precision, clipping (once, after the sum), accumulation over several updates and distributed
training work as for one data set, and only one computation graph is alive at a time. Trainers divide accumulated
losses by their number; the weights handed out undo the part of it that is due to the number of data sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import lightning

from src.config.fit import check_mixture
from src.contracts import Batch
from src.errors import UserError
from src.loading.batches import Loader, TrainLoader
from src.loading.module import CaptionData


class Mixture(lightning.LightningDataModule):
    """``members``: data sets by name; ``weights``: of their losses, by the same names (0 leaves a data set out).

    Raises UserError for names that differ, negative weights, weights that are all 0, and an unknown schedule.
    """

    def __init__(self, members: Mapping[str, CaptionData], weights: Mapping[str, float], schedule: str):
        super().__init__()
        check_mixture(members, weights, schedule)
        self.members, self.schedule = dict(members), schedule
        self.weights = {name: float(weights[name]) for name in members if weights[name] > 0}

    @property
    def batches_per_update(self) -> int:
        """How many batches the trainer has to accumulate for one update."""
        return len(self.weights) if self.schedule == "accumulate" else 1

    def train_dataloader(self) -> MixedLoader:
        loaders = {name: self.members[name].train_dataloader() for name in self.weights}
        scale = self.batches_per_update
        return MixedLoader(loaders, {name: weight * scale for name, weight in self.weights.items()})

    def val_dataloader(self) -> Chain:
        """All validation batches of all members, one member after the other."""
        return Chain({name: member.val_dataloader() for name, member in self.members.items()})


class MixedLoader:
    """Batches of all loaders in turn, until the longest one has been through; shorter ones begin again."""

    def __init__(self, loaders: Mapping[str, TrainLoader], weights: Mapping[str, float]):
        self.loaders, self.weights = dict(loaders), weights
        self.done = 0

    def __len__(self) -> int:
        return len(self.loaders) * max(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[Batch]:
        names = list(self.loaders)
        endless = {name: _endless(loader) for name, loader in self.loaders.items()}
        while True:
            name = names[self.done % len(names)]
            batch = next(endless[name])
            self.done = (self.done + 1) % len(self)
            yield replace(batch, dataset=name, weight=self.weights[name])
            if self.done == 0:
                return

    def state_dict(self) -> dict:
        return {"done": self.done, "members": {name: loader.state_dict() for name, loader in self.loaders.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Raises UserError when the position belongs to other data sets."""
        if list(state["members"]) != list(self.loaders):
            raise UserError(
                f"The run to resume had the data sets {', '.join(state['members'])} and this one has "
                f"{', '.join(self.loaders)}; resume with the same data."
            )
        for name, loader in self.loaders.items():
            loader.load_state_dict(state["members"][name])
        self.done = state["done"]


class Chain:
    """Batches of all loaders, one loader after the other."""

    def __init__(self, loaders: Mapping[str, Loader]):
        self.loaders = dict(loaders)

    def __len__(self) -> int:
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[Batch]:
        for name, loader in self.loaders.items():
            yield from (replace(batch, dataset=name) for batch in loader)


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    while True:
        yield from loader
