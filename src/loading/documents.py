"""Documents of text and several pictures: token rows, which picture each token looks at, and batches of them.

    <bos> text_0 <eos>  <image> text_1 <eos>  <image> text_2 <eos> ...

phi(t) is the number of the last picture placed at or before token t, counted from 1, and 0 before the first (Alayrac et
al. 2022, arXiv 2204.14198, section 3.1.3); a tag of several tokens looks at its own picture from its first token on.
The language model's own end token ends every chunk, where the paper has a new token <EOC>: no vocabulary has to grow,
and captioning ends the same way. The tag itself is never a target. Where a mechanism puts visual tokens among the words
(``Fusion.among_words``), columns for them stand in place of the tag.

With probability ``p_next`` a training document is read the other way: text looks at the next picture instead of the one
before (the paper's appendix A.1.2); what follows the last tag then looks at none (our choice, the paper is silent).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from src.contracts import Chunk, Document, Example, Source, Text, Tokenizer
from src.data.base import stable_share
from src.errors import UserError
from src.loading.batches import Batches, PinnableBatch, chance
from src.loading.rows import Rows, with_views
from src.objectives.base import Objective


@dataclass(frozen=True)
class Row:
    """One document as tokens; the four lists are equally long. ``pictures`` are those whose tag is in the row."""

    ids: list[int]
    phi: list[int]
    target: list[bool]
    visual: list[int]
    pictures: list[Example]


@dataclass(frozen=True)
class Mark:
    """What stands for a picture: the tokens ``ids``, or visual tokens: ``visual`` says which; 0: a word."""

    ids: Sequence[int]
    visual: Sequence[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, columns: int) -> Mark:
        """The tag, or ``columns`` for visual tokens where these are among the words."""
        if columns:
            return cls([tokenizer.pad] * columns, range(1, columns + 1))
        return cls(tokenizer.image_tag, [0] * len(tokenizer.image_tag))


def document_row(
    document: Document,
    tokenizer: Tokenizer,
    max_tokens: int,
    max_images: int,
    columns: int = 0,
    open_end: bool = False,
) -> Row:
    """Tokens of a document, cut at ``max_tokens`` and before picture ``max_images`` + 1: text and pictures together.

    ``columns``: as in ``Mark``. ``open_end``: the last chunk gets no end token, so that a model can go on writing it.
    """
    mark = Mark.of(tokenizer, columns)
    ids, phi, target, visual, pictures = [tokenizer.bos], [0], [False], [0], []
    texts = tokenizer.encode([chunk.text for chunk in document.chunks])
    for number, (chunk, text) in enumerate(zip(document.chunks, texts, strict=True), 1):
        tag = mark.ids if chunk.picture else []
        if len(ids) + len(tag) > max_tokens or (tag and len(pictures) == max_images):
            break
        if chunk.picture:
            pictures.append(chunk.picture)
        ended = bool(text) and not (open_end and number == len(document.chunks))
        said = [*text, tokenizer.eos] if ended else text
        ids += [*tag, *said]
        phi += [len(pictures)] * (len(tag) + len(said))
        target += [False] * len(tag) + [True] * len(said)
        visual += [*(mark.visual if chunk.picture else []), *[0] * len(said)]
    return Row(ids[:max_tokens], phi[:max_tokens], target[:max_tokens], visual[:max_tokens], pictures)


def looking_ahead(row: Row) -> Row:
    """The same row with every token looking at the next picture instead of the last one; 0 where there is none."""
    last = len(row.pictures)
    return replace(row, phi=[p + 1 if p < last else 0 for p in row.phi])


def collate(rows: Sequence[Row], pad: int, left: bool = False, columns: int = 0) -> Text:
    """Rows as one Text, padded on the right, or on the left for prompts that are to be continued.

    ``columns``: as in ``Mark``; with any, pages without pictures say so too.
    """
    width = max(len(row.ids) for row in rows)

    def table(values: list[list], filling) -> Tensor:
        fill = ([filling] * (width - len(row)) for row in values)
        return torch.tensor([[*f, *row] if left else [*row, *f] for f, row in zip(fill, values, strict=True)])

    return Text(
        ids_BT=table([row.ids for row in rows], pad),
        valid_BT=table([[True] * len(row.ids) for row in rows], False),
        phi_BT=table([row.phi for row in rows], 0),
        ragged=left and any(len(row.ids) < width for row in rows),
        target_BT=table([row.target for row in rows], False),
        visual_BT=table([row.visual for row in rows], 0) if columns else None,
    )


class DocumentBatches(Batches):
    """Batches of documents, as ``CaptionBatches`` gives batches of captions.

    ``image_size``: None loads no pictures, for a model that does not see.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        source: Source,
        tokenizer: Tokenizer,
        max_tokens: int,
        max_images: int,
        p_next: float,
        seed: int,
        image_size: int | None,
        objectives: Mapping[str, Objective],
        rows: Rows,
        columns: int,
    ):
        self.documents, self.source, self.tokenizer = documents, source, tokenizer
        self.max_tokens, self.max_images, self.p_next, self.seed = max_tokens, max_images, p_next, seed
        self.image_size, self.objectives, self.rows, self.columns = image_size, objectives, rows, columns

    def _batch(self, epoch: int | None, indices: list[int]) -> PinnableBatch:
        documents = [self.documents[i] for i in indices]
        rows = [document_row(d, self.tokenizer, self.max_tokens, self.max_images, self.columns) for d in documents]
        if epoch is not None:
            draws = (stable_share(self.seed, "next", epoch, i) for i in indices)
            rows = [looking_ahead(r) if draw < self.p_next else r for r, draw in zip(rows, draws, strict=True)]
        ids = [document.id for document in documents]
        batch = batch_of(
            ids, rows, collate(rows, self.tokenizer.pad, columns=self.columns), self.source, self.image_size
        )
        return with_views(batch, self.objectives, chance(self.seed, epoch, batch), self.rows)


def batch_of(ids: list[str], rows: Sequence[Row], text: Text, source: Source, size: int | None) -> PinnableBatch:
    """A batch with the pictures of ``rows`` at ``size`` pixels; fewer than M pictures are filled up with blank ones."""
    if size is None or not source.has_images:
        return PinnableBatch(ids, text)
    M = max(1, *(len(row.pictures) for row in rows))
    pixels_IM3hw = torch.zeros(len(rows), M, 3, size, size, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for m, picture in enumerate(row.pictures):
            pixels_IM3hw[i, m] = source.pixels(picture, size)
    counts_I1 = torch.tensor([len(row.pictures) for row in rows])[:, None]
    valid_IM = torch.arange(M) < counts_I1
    return PinnableBatch(ids, text, pixels_IM3hw, image_valid_IM=valid_IM)


def prompts(
    documents: Sequence[Document],
    source: Source,
    tokenizer: Tokenizer,
    size: int | None,
    max_tokens: int,
    columns: int = 0,
) -> PinnableBatch:
    """Documents whose last chunk is to be continued, as a batch of left-padded prompts. ``columns``: as in ``Mark``.

    Raises UserError for a document that is longer than ``max_tokens``: cut, it would ask something else.
    """
    rows = [document_row(d, tokenizer, max_tokens + 1, len(d.chunks), columns, open_end=True) for d in documents]
    for document, row in zip(documents, rows, strict=True):
        if len(row.ids) > max_tokens:
            raise UserError(
                f"The prompt {document.id} has more than {max_tokens} tokens; raise data.max_tokens, or use fewer or "
                "shorter examples."
            )
    ids = [document.id for document in documents]
    return batch_of(ids, rows, collate(rows, tokenizer.pad, left=True, columns=columns), source, size)


def few_shot(query: Example, examples: Sequence[Example]) -> Document:
    """``examples`` with their first captions, then the picture to be captioned."""
    shown = (Chunk(example.captions[0], example) for example in examples)
    return Document(query.id, (*shown, Chunk("", query)))
