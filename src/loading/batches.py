"""From examples to batches: how pictures and captions become tensors, and the loaders that hand them out."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src.contracts import Batch, Contradicting, Example, Line, Source, Text, Tokenizer, Visual, present
from src.data.base import stable_number
from src.data.order import AGAIN, EpochBatchSampler, Pick, draw_captions
from src.errors import UserError
from src.loading.rows import Rows, with_views
from src.objectives.base import Chance, Objective
from src.text.normalise import normalise_caption


def token_row(caption: list[int], tokenizer: Tokenizer, max_tokens: int) -> list[int]:
    """[bos] + caption + [eos]. A caption that is too long for ``max_tokens`` is cut and gets no eos.

    An eos after a cut would teach the model to stop in the middle of a sentence.
    """
    row = [tokenizer.bos, *caption, tokenizer.eos]
    return row if len(row) <= max_tokens else row[:max_tokens]


def text_rows(lines: Sequence[Line], tokenizer: Tokenizer, max_tokens: int, picture: int, image_tag: bool) -> Text:
    """Lines as their authors wrote them, one a row: [bos] + given + said + [eos], of which what is said is learnt.

    ``picture``: what tokens look at, see ``pad_rows``.
    """
    given = [normalise_caption(line.given) for line in lines]
    whole = [f"{g} {normalise_caption(line.said)}".lstrip() for g, line in zip(given, lines, strict=True)]
    rows = [token_row(ids, tokenizer, max_tokens) for ids in tokenizer.encode(whole)]
    text = pad_rows(rows, tokenizer.pad, picture)
    if any(given):  # words are encoded one by one, so that what is given is the beginning of the whole
        said_B1 = torch.tensor([[1 + len(ids)] for ids in tokenizer.encode(given)])
        text.target_BT = text.valid_BT & (torch.arange(text.ids_BT.shape[1]) >= said_B1)
    return tagged(text, tokenizer.image_tag) if image_tag else text


def prompt_rows(given: Sequence[str], tokenizer: Tokenizer, picture: int, image_tag: bool) -> Text:
    """The beginnings of ``text_rows``, [bos] + given, padded on the left: what is to be said goes on behind them."""
    rows = [[tokenizer.bos, *ids] for ids in tokenizer.encode([normalise_caption(one) for one in given])]
    text = pad_rows(rows, tokenizer.pad, picture)
    text = tagged(text, tokenizer.image_tag) if image_tag else text
    T = text.ids_BT.shape[1]
    length_B1 = text.valid_BT.sum(1, keepdim=True)
    from_BT = (torch.arange(T) - (T - length_B1)) % T  # the padding behind a row comes before it
    moved = (x_BT.gather(1, from_BT) for x_BT in (text.ids_BT, text.valid_BT, text.phi_BT))
    return Text(*moved, ragged=bool((length_B1 < T).any()))


def tagged(text: Text, tag: Sequence[int]) -> Text:
    """``text`` with the image tag after the start token, as a document of one picture has it."""
    first, rest = text.columns(0, 1), text.columns(1, None)
    ids_BX = torch.tensor(tag).expand(len(text.ids_BT), -1)
    ones_BX = torch.ones_like(ids_BX)
    return Text(
        torch.cat([first.ids_BT, ids_BX, rest.ids_BT], 1),
        torch.cat([first.valid_BT, ones_BX.bool(), rest.valid_BT], 1),
        torch.cat([torch.zeros_like(first.phi_BT), ones_BX, rest.phi_BT], 1),
        target_BT=torch.cat([torch.zeros_like(first.valid_BT), ~ones_BX.bool(), rest.targets()], 1),
    )


def pad_rows(rows: Sequence[list[int]], pad: int, picture: int) -> Text:
    """Rows to the length of the longest, padded on the right; ``picture``: what all real tokens look at (0 = none)."""
    length = max(map(len, rows))
    ids_BT = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    valid_BT = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return Text(ids_BT, valid_BT, valid_BT.long() * picture)


def chance(seed: int, epoch: int | None, batch: Batch) -> Chance:
    """What objectives draw for row b: a function of seed, epoch (None: not training), its picture's id, and which of
    the picture's rows it is."""
    G = len(batch.text.ids_BT) // len(batch.ids)

    def of_row(row: int) -> random.Random:
        return random.Random(stable_number(seed, "view", epoch, batch.ids[row // G], row % G))

    return of_row


class PinnableBatch(Batch):
    """A Batch that the loader can put into page-locked memory, from which it is copied to a GPU beside other work."""

    def pin_memory(self) -> PinnableBatch:
        return apply_to_collection(self, Tensor, Tensor.pin_memory)


class Batches(Dataset, ABC):
    """Whole batches by ``Pick``, made in the processes that load."""

    def __getitem__(self, pick: Pick) -> PinnableBatch | Tensor | UserError:
        # Raised in a worker, an error would reach the user wrapped in the worker's traceback; the loader raises it.
        epoch, indices = pick
        try:
            batch = self._batch(None if epoch == AGAIN else epoch, indices)
        except UserError as error:
            return error
        return replace(batch, counts=False) if epoch == AGAIN and isinstance(batch, Batch) else batch

    @abstractmethod
    def _batch(self, epoch: int | None, indices: list[int]) -> PinnableBatch | Tensor:
        """The batch of the examples at ``indices``; ``epoch``: None outside of training."""


class CaptionBatches(Batches):
    """The rows of one picture are neighbours.

    Pixels come from ``source`` at ``image_size`` (None: no pictures), or encoded pictures from ``features`` by position
    in ``examples``. Outside training, the first captions are used. ``image_tag``: captions begin with the image tag.
    ``objectives``: what makes views of the batch, ``rows``: how they are laid. ``tokenizer``: None for pictures without
    any text.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        source: Source,
        tokenizer: Tokenizer | None,
        captions_per_image: int,
        max_tokens: int,
        seed: int,
        image_size: int | None,
        features,
        image_tag: bool,
        objectives: Mapping[str, Objective],
        rows: Rows,
    ):
        self.examples, self.source, self.tokenizer = examples, source, tokenizer
        self.captions_per_image, self.max_tokens, self.seed = captions_per_image, max_tokens, seed
        self.image_size, self.features, self.image_tag = image_size, features, image_tag
        self.objectives, self.rows = objectives, rows

    def _batch(self, epoch: int | None, indices: list[int]) -> PinnableBatch:
        examples = [self.examples[i] for i in indices]
        ids, (pixels, visual) = [e.id for e in examples], self.pictures(indices)
        if self.tokenizer is None:
            return PinnableBatch(ids, None, pixels, visual, image_valid_IM=self._no_picture(len(ids)))
        lines = [line for i, e in zip(indices, examples, strict=True) for line in self._lines(epoch, i, e)]
        text = text_rows(lines, self.tokenizer, self.max_tokens, int(self.source.has_images), self.image_tag)
        absent_I0, captions = self._no_picture(len(ids)), [e.captions for e in examples]
        batch = PinnableBatch(ids, text, pixels, visual, image_valid_IM=absent_I0, captions=captions)
        batch.foils = self._foils(epoch, examples, lines)
        return with_views(batch, self.objectives, chance(self.seed, epoch, batch), self.rows)

    def _no_picture(self, contexts: int) -> Tensor | None:
        """Which of no pictures are there, (I, 0), where somebody looks and the source has none; else None."""
        blank = self.image_size is not None and not self.source.has_images
        return torch.zeros(contexts, 0, dtype=torch.bool) if blank else None

    def _lines(self, epoch: int | None, index: int, example: Example) -> list[Line]:
        """G captions of one example, or answers to its question."""
        lines = example.lines
        if epoch is None:
            return list(islice(cycle(lines), self.captions_per_image))
        chosen = draw_captions(self.seed, epoch, index, len(lines), self.captions_per_image)
        return [lines[k] for k in chosen]

    def _foils(self, epoch: int | None, examples: list[Example], lines: list[Line]) -> Text | None:
        """A false line for each one, where some objective asks for it and the source knows any."""
        if not (isinstance(self.source, Contradicting) and any(one.foils for one in self.objectives.values())):
            return None
        G = len(lines) // len(examples)
        found = []
        for row, line in enumerate(lines):
            chance = random.Random(stable_number(self.seed, "foil", epoch, examples[row // G].id, row % G))
            found.append(self.source.foil(examples[row // G], line.said, chance))
        text = text_rows([Line(one or "") for one in found], self.tokenizer, self.max_tokens, 1, self.image_tag)
        text.valid_BT &= torch.tensor([[one is not None] for one in found])
        return text

    def pictures(self, indices: list[int]) -> tuple[Tensor | None, Visual | None]:
        """Pixels (I, 1, 3, h, w), or what is known of them encoded, or neither where none are read."""
        if self.features is not None:
            return None, self.features.visual(indices)
        if not self.source.has_images or self.image_size is None:
            return None, None
        return torch.stack([self.source.pixels(self.examples[i], self.image_size) for i in indices])[:, None], None


class QuestionBatches(Batches):
    """The questions of ``batches`` as prompts. ``shown``: whose picture each is asked about; None: its own."""

    def __init__(self, batches: CaptionBatches, shown: Sequence[int] | None):
        self.batches, self.shown = batches, shown

    def _batch(self, epoch: int | None, indices: list[int]) -> PinnableBatch:
        own, tokenizer = self.batches, present(self.batches.tokenizer, "tokenizer")
        examples = [own.examples[i] for i in indices]
        text = prompt_rows([e.question for e in examples], tokenizer, int(own.source.has_images), own.image_tag)
        seen = indices if self.shown is None else [self.shown[i] for i in indices]
        return PinnableBatch([e.id for e in examples], text, *own.pictures(seen))


def _outlive_signals(worker: int) -> None:
    """A forked worker leaves what it shares with the main process to it, garbage and signals.

    Garbage collection would copy the memory, and would try to shut down workers of other loaders.
    """
    gc.freeze()
    # What asks a training to stop often goes to all of its processes, and the step under way still needs this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_loader_says, daemon=True).start()


def _end_when_the_loader_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Loader:
    """Iterates over Batches.

    It holds a DataLoader instead of being one, so that Lightning does not rebuild it with a sampler of its own. The
    workers end with the iteration unless they are ``kept`` for the next one.
    """

    def __init__(self, batches: Batches, order: Sampler[Pick] | Sequence[Pick], workers: int, kept: bool = False):
        self.order = order
        self._loader = DataLoader(
            batches,
            sampler=order,
            batch_size=None,  # one pick is one batch
            num_workers=workers,
            persistent_workers=kept and workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # its own: otherwise every start would draw from the global generator
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise UserError(str(batch))  # not the object that this frame holds: that would keep the workers alive
            yield batch


class TrainLoader(Loader):
    """Training batches, epoch after epoch, resumable after any batch.

    It counts its epochs itself: an iteration that was left early is taken up where it stopped by the next one. Its
    state is written before a batch is handed out, so that it is right whenever that batch has been trained on.
    """

    def __init__(self, batches: Batches, order: EpochBatchSampler, workers: int):
        super().__init__(batches, order, workers, kept=True)  # an epoch can be a second short
        self.epoch = self.done = 0

    def __iter__(self) -> Iterator[Batch]:
        self.order.epoch, self.order.start = self.epoch, self.done
        for batch in super().__iter__():
            self.done += 1
            if self.done == len(self):  # the end of an epoch is the start of the next
                self.epoch, self.done = self.epoch + 1, 0
            yield batch

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "done": self.done, **self.order.identity()}

    def load_state_dict(self, state: dict) -> None:
        """Raises UserError when the position belongs to other batches than these."""
        for name, here in self.order.identity().items():
            if state.get(name) != here:
                raise UserError(
                    f"The run to resume had {name} = {state.get(name)} and this one has {here}; resume with the same "
                    "data, batch size, seed and number of processes."
                )
        self.epoch, self.done = state["epoch"], state["done"]
