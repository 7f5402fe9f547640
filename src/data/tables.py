"""Tables of captions as people have them: text with a header, or lines of JSON.

Known by their columns: image and caption (Kaggle's captions.txt too), file_name and text (metadata of Hugging Face's
imagefolder), image_name and comment (Flickr30k's results.csv), filepath and title (OpenCLIP). Others are read where the
columns are named.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from src.data.base import captions_of, lines_of, refuse_utf16
from src.data.faults import LONGEST_CAPTION, items, parsed, text
from src.data.images import shown
from src.errors import UserError

COLUMNS = (("image", "caption"), ("file_name", "text"), ("image_name", "comment"), ("filepath", "title"))
FLICKR30K = ["image_name", "comment_number", "comment"]
SEPARATORS = (",", "|", "\t", ";")
MOST_LINES = 100  # of one row: a quote that is open for longer has been forgotten


class Columns:
    """What the columns are called; None: as in one of ``COLUMNS``. ``separator``: of cells; None: as the header shows.

    Raises UserError for a separator of several characters.
    """

    def __init__(self, image: str | None, caption: str | None, separator: str | None):
        separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
        if separator is not None and (len(separator) != 1 or separator in '\r\n"'):
            raise UserError(f"data.source.separator must be one character, or \\t; got {separator!r}.")
        self.pairs = tuple(dict.fromkeys((image or pair[0], caption or pair[1]) for pair in COLUMNS))
        self.separators = SEPARATORS if separator is None else (separator,)
        self.one_caption = caption is not None  # in a column, not in the list "captions" of an object

    def among(self, names) -> tuple[str, str] | None:
        """The columns of pictures and captions, if they are there."""
        return next((pair for pair in self.pairs if set(pair) <= set(names)), None)


class Table:
    """Rows of cells below a header: iteration gives where each stands, and what ``read`` makes captions of.

    A row is a line; lines that a quoted cell goes on over belong to it. Where a quote is broken, its line alone is.
    Raises UserError when the file cannot be read, is no UTF-8, or has no header with the columns.
    """

    layout = "a row of UTF-8 text with image and caption"

    def __init__(self, path: Path, columns: Columns):
        self.path = path
        try:
            # Bytes that are no UTF-8 become surrogates, which ``text`` refuses.
            with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                self.lines = list(file)
        except OSError as error:
            raise UserError(f"The file {path} cannot be read ({error.strerror}).") from error
        refuse_utf16(path, "".join(self.lines[:1]).encode(errors="surrogateescape"))
        for self.separator in columns.separators:
            self.header, self.begin = self._row(0)
            if isinstance(self.header, list) and (found := columns.among(self.header)):
                self.image, self.caption = found
                return
        image, caption = columns.pairs[0]
        raise UserError(
            f"{path} needs a header with the columns {shown(image)} and {shown(caption)}; it begins with "
            f"'{shown(''.join(self.lines[:1]).rstrip())}'; data.source.image_column and caption_column name others."
        )

    def __iter__(self) -> Iterator[tuple[str, list[str] | csv.Error]]:
        number = self.begin
        while number < len(self.lines):
            row, end = self._row(number)
            if isinstance(row, csv.Error):
                yield f"{self.path}, below line {number}", row
            elif row:
                yield f"{self.path}, line {number + 1}", row
            number = end

    def _row(self, number: int) -> tuple[list[str] | csv.Error, int]:
        """The cells of the row that begins at a line, or what is wrong with it; and where the next begins."""
        piped = self.separator == "|"  # Flickr30k puts spaces around its bars, and quotes anywhere
        how = {"delimiter": self.separator, "skipinitialspace": not piped, "strict": True}
        reader = csv.reader(self.lines[number : number + MOST_LINES], **how)
        try:
            row = next(reader, [])
        except csv.Error as error:
            return error, number + 1
        return [cell.strip() for cell in row] if piped else row, number + max(1, reader.line_num)

    def read(self, row: list[str] | csv.Error) -> tuple[dict, str, list[str]]:
        """The cells by column, the picture and its captions. Raises ValueError or UserError for what is no such row."""
        if isinstance(row, csv.Error):
            raise UserError(f"this is no row of a UTF-8 table ({row}).")
        if self.header == FLICKR30K and len(row) == 2:  # of its 158,915 rows, one lacks the second bar
            row = [row[0], *row[1].split(maxsplit=1)]
        if len(row) != len(self.header):
            raise ValueError("other columns than the header has; put captions with commas in quotes")
        record = dict(zip(self.header, row, strict=True))
        return record, text(record, self.image), [text(record, self.caption, longest=LONGEST_CAPTION)]


class JsonLines:
    """Lines of objects, with one caption each or a list of "captions"; else as ``Table``."""

    layout = '{"image": ..., "caption": ...} of strings, or "captions": [...],'

    def __init__(self, path: Path, columns: Columns):
        self.path, self.columns = path, columns

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter(lines_of(self.path))

    def read(self, line: bytes) -> tuple[dict, str, list[str]]:
        record = parsed(line)
        several = isinstance(record, dict) and "captions" in record and not self.columns.one_caption
        names = [*record, *(["caption", "text"] if several else [])] if isinstance(record, dict) else []
        image, caption = self.columns.among(names) or self.columns.pairs[0]
        if several:
            texts = [{"caption": value} for value in items(record, "captions")]
            return record, text(record, image), list(captions_of(texts, "caption"))
        return record, text(record, image), [text(record, caption, longest=LONGEST_CAPTION)]
