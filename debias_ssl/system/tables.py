"""Text files of rows and columns, as programs and spreadsheets write them."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, reason

# In this order where several fit.
DELIMITERS = (",", ";", "\t", "|")
# The first bytes of files in UTF-16, which spreadsheets call Unicode text.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Rows that are looked at to find the delimiter.
LOOKED_AT = 20


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Bytes that are no text become surrogates, as names of files with such bytes do in Python: a list of such names is
    read as it was written. What must be text is held to it by `is_text`.

    Args:
        path: the file.
        most: bytes to read; of a longer file, the whole lines in so many of them.

    Raises:
        InputError: the file cannot be read, or is not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(-1 if most is None else most)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    is_cut = len(data) == most
    try:
        if data.startswith(UTF_16):
            text = codecs.getincrementaldecoder("utf-16")().decode(data, final=not is_cut)
        else:
            text = data.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error.reason}") from error
    if "\0" in text:
        raise InputError(f"{path} is not text: it has bytes of value 0")
    return text[: text.rfind("\n") + 1] or text if is_cut else text


def is_text(value: str) -> bool:
    """Whether a string has no bytes that `read_text` could not take for text."""
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a text file whose first line names the columns."""

    path: Path
    text: str = field(repr=False)
    """What comes after a line `sep=`, if there is one."""
    delimiter: str
    has_blanks: bool
    """Whether a blank follows each delimiter, which is no part of the cell."""
    header: tuple[str, ...]
    """Without blanks around the names."""
    first_line: int
    """Number of the line that names the columns, from 1."""

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """The number of the line that each row ends in, and its cells as they are: names of files may end in blanks.

        Rows whose cells are all empty are left out. A row with fewer cells than there are columns gets empty ones.

        Raises:
            InputError: a row has more cells than there are columns, or the file is damaged.
        """
        reader = self._reader()
        width, number = len(self.header), self.first_line
        try:
            next(reader)
            for cells in reader:
                number = self.first_line - 1 + reader.line_num
                if not any(map(str.strip, cells)):
                    continue
                if any(map(str.strip, cells[width:])):
                    raise InputError(
                        f"{self.path}, line {number}: {len(cells)} cells for {width} columns; put a cell that has a "
                        f"{_called(self.delimiter)} in it into quotes"
                    )
                yield number, cells[:width] + [""] * (width - len(cells))
        except csv.Error as error:
            raise InputError(f"{self.path}, line {number + 1} or below: {error}") from error

    def cells(self) -> Iterator[list[str]]:
        """The cells of all rows as they are, however many; those of the first line are the first.

        Raises:
            InputError: the file is damaged.
        """
        reader = self._reader()
        try:
            yield from reader
        except csv.Error as error:
            raise InputError(
                f"{self.path}, line {self.first_line + reader.line_num} or below: {reason(error)}"
            ) from error

    @property
    def num_empty(self) -> int:
        """How many rows are left out because their cells are all empty; lines without any cell do not count."""
        return sum(1 for cells in self._reader() if cells and not any(map(str.strip, cells)))

    def column(self, usual: Sequence[str]) -> int | None:
        """The place of the first of some usual names among the columns; upper and lower case are the same."""
        lower = [name.lower() for name in self.header]
        return next((lower.index(name) for name in usual if name in lower), None)

    def _reader(self) -> Any:
        return _cells(self.text, self.delimiter, self.has_blanks)


def read_table(path: Path, most: int | None = None) -> Table:
    """Reads a CSV or TSV file; what divides its cells is found, or named by a first line `sep=;`.

    Args:
        path: the file.
        most: bytes to read; of a longer file, the rows in so many of them.

    Raises:
        InputError: the file cannot be read, is not text, or has no first line of names.
    """
    text, first_line = read_text(path, most), 1
    start, _, rest = text.partition("\n")
    told = start.strip(" \r").lower()
    if told.startswith("sep=") and len(told) == 5:
        text, first_line, delimiter = rest, 2, told[4]
    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(text)
    try:
        has_blanks = any(name.startswith(" ") for name in next(_cells(text, delimiter), [])[1:])
        header = next(_cells(text, delimiter, has_blanks), [])
    except csv.Error as error:
        raise InputError(f"{path}, line {first_line}: {reason(error)}") from error
    while header and not header[-1].strip():
        header.pop()
    if not header:
        raise InputError(f"{path}: the first line must name the columns; it is empty")
    names = tuple(name.strip() for name in header)
    return Table(path=path, text=text, delimiter=delimiter, has_blanks=has_blanks, header=names, first_line=first_line)


def _cells(text: str, delimiter: str, has_blanks: bool = False) -> Any:
    """A reader of csv; its type has no name."""
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=has_blanks, strict=True)


def _delimiter(text: str) -> str:
    """What divides the cells: of what gives the most rows as many cells as the first, what gives the most cells."""

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            rows = [*islice(_cells(text, delimiter), LOOKED_AT)]
        except csv.Error:
            return 0, 0
        width = len(rows[0]) if rows else 0
        return (sum(len(row) == width for row in rows), width) if width > 1 else (0, 0)

    return max(DELIMITERS, key=fit)


def _called(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
