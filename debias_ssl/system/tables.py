"""Reads text files of rows and columns (CSV, TSV), as programs and spreadsheets write them."""

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.outputs import check_whole

# In this order where several fit.
DELIMITERS = (",", ";", "\t", "|")
# The first bytes of files in UTF-16, which spreadsheets call Unicode text.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Rows that are looked at to find the delimiter.
LOOKED_AT = 20
# Rows of a Parquet file that are in memory at a time.
ROWS_READ = 1024
# What columns are by their names, without blanks, dots, dashes and underscores, the more exact ones first: the file
# that a row is of, or its number, and its class.
PATHS = ("path", "filepath", "imagepath", "imgpath", "file", "filename", "imagefile", "image", "imagename", "img")
PATHS += ("imgname", "photo", "picture", "imageurl", "url", "uri", "name", "key", "id", "imageid", "imgid", "fileid")
PATHS += ("sampleid", "exampleid", "itemid", "sample", "uid", "uuid")
ROWS = ("row", "rownumber", "rowid", "index", "idx", "unnamed:0", "")
LABELS = ("label", "labels", "class", "classname", "labelname", "classlabel", "category", "categoryname", "target")
LABELS += ("targets", "y", "truth", "groundtruth", "gt", "truelabel", "ytrue")
# Beside such a column, one that is called name is of what is seen, and not of the file.
NAMED = "nameconfidence"


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Bytes that are no text become surrogates, as names of files with such bytes do in Python: a list of such names is
    read as it was written. What must be text is held to it by `is_text`.

    Args:
        path: the file.
        most: bytes to read; of a longer file, the whole lines in so many of them.

    Raises:
        InputError: the file cannot be read, or is not text, or a job that wrote it has not come to its end.
    """
    check_whole(path)
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
        raise _no_text(path, data)
    return text[: text.rfind("\n") + 1] or text if is_cut else text


def is_text(value: str) -> bool:
    """Whether a string has no bytes that `read_text` could not take for text."""
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def check_text(value: str, path: Path, line: int | None = None) -> None:
    """Raises InputError where what must be text is not."""
    if not is_text(value):
        found, where = value.encode("utf-8", "surrogateescape")[:60], "" if line is None else f", line {line}"
        raise InputError(
            f"{path}{where}: {found} is not UTF-8 text: save the file as UTF-8 (in a spreadsheet, CSV UTF-8)"
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a text file whose first line names the columns."""

    path: Path
    lines: Callable[[], Iterable[str]] = field(repr=False)
    """Returns an iterator over the lines at each call, without a line `sep=`; lines are not kept in memory."""
    delimiter: str
    has_blanks: bool
    """Whether a space follows each delimiter; it is not part of the cell."""
    header: tuple[str, ...]
    """Names of the columns, without spaces around them."""
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
                        f"{self.path}, line {number}: {len(cells)} cells for {width} columns; put cells that "
                        f"contain a {_called(self.delimiter)} into quotes"
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

    @cached_property
    def num_empty(self) -> int:
        """How many rows are left out because their cells are all empty; lines without any cell do not count."""
        return sum(1 for cells in self._reader() if cells and not any(map(str.strip, cells)))

    def column(self, usual: Sequence[str]) -> int | None:
        """The place of the first of some usual names among the columns, as `File Name` is `filename`."""
        found = self._usual_names()
        return next((found.index(name) for name in usual if name in found), None)

    def number(self, cell: str) -> float:
        """A number; where no comma divides cells, it may have a decimal comma.

        Raises:
            ValueError: the cell is not a number.
        """
        return float(cell if self.delimiter == "," or "." in cell else cell.replace(",", "."))

    def notes(self, *kinds: Sequence[str]) -> list[str]:
        """What people should know: which of several columns of a kind is taken, and that rows are empty."""
        told = []
        for usual in kinds:
            place, found = self.column(usual), self._usual_names()
            meant = [name for name, each in zip(self.header, found, strict=True) if each in usual]
            if place is not None and len(meant) > 1:
                listed = ", ".join(map(repr, meant))
                told.append(f"{self.path}: of the columns {listed}, {self.header[place]!r} is used as the {usual[0]}")
        if self.num_empty:
            told.append(f"{self.path}: {self.num_empty} empty rows are left out")
        return told

    def _usual_names(self) -> list[str]:
        """The names of the columns as lists of usual names have them."""
        found = [usual(name) for name in self.header]
        return [NAMED if name == "name" and NAMED in found else name for name in found]

    def _reader(self) -> Any:
        return _cells(self.lines(), self.delimiter, self.has_blanks)


def read_table(path: Path, most: int | None = None) -> Table:
    """Reads a CSV or TSV file; what divides its cells is found, or named by a first line `sep=;`.

    A Parquet file is read as the CSV file of its rows: numbers become text.

    Args:
        path: the file.
        most: bytes to read; of a longer file, the rows in so many of them.

    Raises:
        InputError: the file cannot be read, is not text, or has no first line of names.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    if most is None:
        check_whole(path)
        lines = partial(_lines, path)
    else:
        lines = partial(io.StringIO, read_text(path, most), newline="")
    first_line, start = 1, next(iter(lines()), "").strip(" \r\n").lower()
    if start.startswith("sep=") and len(start) == 5:
        whole, first_line, delimiter = lines, 2, start[4]

        def lines() -> Iterable[str]:
            return islice(whole(), 1, None)

    else:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(lines)
    try:
        has_blanks = any(name.startswith(" ") for name in next(_cells(lines(), delimiter), [])[1:])
        header = next(_cells(lines(), delimiter, has_blanks), [])
    except csv.Error as error:
        raise InputError(f"{path}, line {first_line}: {reason(error)}") from error
    while header and not header[-1].strip():
        header.pop()
    if not header:
        raise InputError(f"{path}: the first line must name the columns; it is empty")
    names = tuple(name.strip() for name in header)
    return Table(
        path=path, lines=lines, delimiter=delimiter, has_blanks=has_blanks, header=names, first_line=first_line
    )


def read_lines(path: Path, newline: str) -> Iterator[str]:
    """The lines of a file as `read_text` reads it, with the `newline` that ends them; none of them stays in memory.

    Raises:
        InputError: the file cannot be read, or is not text, or a job that wrote it has not come to its end.
    """
    check_whole(path)
    return _lines(path, newline)


def _lines(path: Path, newline: str = "") -> Iterator[str]:
    try:
        with path.open("rb") as file:
            data = file.read(2)
        coding, errors = ("utf-16", "strict") if data in UTF_16 else ("utf-8-sig", "surrogateescape")
        with path.open(encoding=coding, errors=errors, newline=newline) as file:
            for line in file:
                if "\0" in line:
                    raise _no_text(path, data)
                yield line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error.reason}") from error


def _no_text(path: Path, start: bytes) -> InputError:
    """The error for a file with bytes of value 0."""
    of_spreadsheet = "; a spreadsheet saves text as CSV UTF-8" if start.startswith(b"PK") else ""
    return InputError(f"{path} is not text: it has bytes of value 0{of_spreadsheet}")


def _read_parquet(path: Path) -> Table:
    check_whole(path)
    lines = partial(_lines_of_parquet, path)
    header = tuple(next(_cells(lines(), ",")))
    return Table(path=path, lines=lines, delimiter=",", has_blanks=False, header=header, first_line=1)


def _lines_of_parquet(path: Path) -> Iterator[str]:
    """The lines of the CSV file that has the rows of a Parquet file."""
    # Slow to import, and few files are such.
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            # Of an index, pandas writes such a name.
            yield from _as_lines([[re.sub(r"^__index_level_\d+__$", "", name) for name in file.schema_arrow.names]])
            for part in file.iter_batches(ROWS_READ):
                columns = (map(_text_of, column.to_pylist()) for column in part.columns)
                yield from _as_lines(zip(*columns, strict=True))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _as_lines(rows: Iterable[Sequence[str]]) -> io.StringIO:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    text.seek(0)
    return text


def _text_of(cell: Any) -> str:
    """A value of a Parquet file as text; bytes that are no text become surrogates, as in `read_text`."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return "" if cell is None else str(cell)


def _cells(lines: Iterable[str], delimiter: str, has_blanks: bool = False) -> Any:
    """A reader of csv; its type has no name."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=has_blanks, strict=True)


def _delimiter(lines: Callable[[], Iterable[str]]) -> str:
    """What divides the cells: of what gives the most rows as many cells as the first, what gives the most cells."""

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            rows = [*islice(_cells(lines(), delimiter), LOOKED_AT)]
        except csv.Error:
            return 0, 0
        width = len(rows[0]) if rows else 0
        return (sum(len(row) == width for row in rows), width) if width > 1 else (0, 0)

    return max(DELIMITERS, key=fit)


def usual(name: str) -> str:
    """A name of a column as lists of usual names have it."""
    return re.sub(r"[\s_.-]", "", name).lower()


def _called(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
