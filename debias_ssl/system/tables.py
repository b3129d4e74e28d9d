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

# The first one is preferred if several fit.
DELIMITERS = (",", ";", "\t", "|")
# The first bytes of files in UTF-16, which spreadsheets call Unicode text.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Number of rows from which the delimiter is found.
LOOKED_AT = 20
# Number of rows of a Parquet file in memory at a time.
ROWS_READ = 1024
# Usual names of the columns of files, row numbers and classes, without spaces, dots, dashes and underscores. The more
# exact names come first.
PATHS = ("path", "filepath", "imagepath", "imgpath", "file", "filename", "imagefile", "image", "imagename", "img")
PATHS += ("imgname", "photo", "picture", "imageurl", "url", "uri", "name", "key", "id", "imageid", "imgid", "fileid")
PATHS += ("sampleid", "exampleid", "itemid", "sample", "uid", "uuid")
ROWS = ("row", "rownumber", "rowid", "index", "idx", "unnamed:0", "")
LABELS = ("label", "labels", "class", "classname", "labelname", "classlabel", "category", "categoryname", "target")
LABELS += ("targets", "y", "truth", "groundtruth", "gt", "truelabel", "ytrue")
# If a table has this column, its column `name` is the name of a class, not of a file.
NAMED = "nameconfidence"


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a file in UTF-8, with a byte order mark or without, or in UTF-16 with one.

    Bytes that are not text become surrogates, as in Python's names of files, so that a list of such names keeps its
    bytes. Use `is_text` to check values that must be text.

    Args:
        path: the file.
        most: largest number of bytes to read; of a longer file, the complete lines in them.

    Raises:
        InputError: the file cannot be read, is not text, or is from a job that was not finished.
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
    """Whether a string has no surrogates, which `read_text` makes from bytes that are not text."""
    return value.isascii() or not any("\udc80" <= character <= "\udcff" for character in value)


def check_text(value: str, path: Path, line: int | None = None) -> None:
    """Raises InputError if a value that must be text is not text."""
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
        """The number of the last line of each row, and its cells unchanged, because names of files may end in spaces.

        Rows with only empty cells are left out. A row with fewer cells than columns gets empty cells.

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
        """The unchanged cells of all rows, in any number; the row of column names is the first.

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
        """The number of rows that are left out because all their cells are empty; lines without cells do not count."""
        return sum(1 for cells in self._reader() if cells and not any(map(str.strip, cells)))

    def column(self, usual: Sequence[str]) -> int | None:
        """The position of the column with the first of some usual names; `File Name` matches `filename`."""
        found = self._usual_names()
        return next((found.index(name) for name in usual if name in found), None)

    def number(self, cell: str) -> float:
        """The number in a cell; if the delimiter is not a comma, it may have a decimal comma.

        Raises:
            ValueError: the cell is not a number.
        """
        return float(cell if self.delimiter == "," or "." in cell else cell.replace(",", "."))

    def notes(self, *kinds: Sequence[str]) -> list[str]:
        """Notes for users: which of several columns of a kind is used, and the number of empty rows."""
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
        """The names of the columns in the form of the usual names."""
        found = [usual(name) for name in self.header]
        return [NAMED if name == "name" and NAMED in found else name for name in found]

    def _reader(self) -> Any:
        return _cells(self.lines(), self.delimiter, self.has_blanks)


def read_table(path: Path, most: int | None = None) -> Table:
    """Reads a CSV or TSV file. The delimiter is detected, or set by a first line `sep=;`.

    A Parquet file is read as a CSV file with the same rows: numbers become text.

    Args:
        path: the file.
        most: largest number of bytes to read; of a longer file, the complete rows in them.

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
    """The lines of a file, decoded as in `read_text`, with the `newline` at their ends; lines are not kept in memory.

    Raises:
        InputError: the file cannot be read, is not text, or is from a job that was not finished.
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
    """The lines of a CSV file with the rows of a Parquet file."""
    # Imported late: the import is slow, and Parquet files are rare.
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            # pandas gives such a name to an index without a name.
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
    """A value of a Parquet file as text; bytes that are not text become surrogates, as in `read_text`."""
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return "" if cell is None else str(cell)


def _cells(lines: Iterable[str], delimiter: str, has_blanks: bool = False) -> Any:
    """A reader of csv; its type has no name."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=has_blanks, strict=True)


def _delimiter(lines: Callable[[], Iterable[str]]) -> str:
    """The delimiter with which most rows have as many cells as the first row, then the one with the most cells."""

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            rows = [*islice(_cells(lines(), delimiter), LOOKED_AT)]
        except csv.Error:
            return 0, 0
        width = len(rows[0]) if rows else 0
        return (sum(len(row) == width for row in rows), width) if width > 1 else (0, 0)

    return max(DELIMITERS, key=fit)


def usual(name: str) -> str:
    """A name of a column in the form of the usual names."""
    return re.sub(r"[\s_.-]", "", name).lower()


def _called(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
