"""Reads columns of .csv, .tsv and .txt files, as programs and spreadsheets write them."""

import csv
import io
import re
from collections.abc import Collection
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from debias_ssl.labels.tables.columns import FRACTION, NUMBER, ROWS, Column, pc
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.tables import DELIMITERS, UTF_16, Table, is_text, read_table

# Bytes, and rows, at the start of a file from which its format is found.
HEAD, LOOKED_AT = 2**22, 20
# The name that pandas gives to columns without one: an index written with the other columns.
UNNAMED = re.compile(r"(Unnamed: \d+|__index_level_\d+__)(\.\d+)*|")


def read_text_columns(path: Path, classes: Collection[str] = ()) -> list[Column] | np.ndarray:
    """The columns of a file; or a matrix, where nothing but blanks divides its numbers.

    Args:
        path: the file.
        classes: names of columns that are known to be classes; others of usual names of rows are kept as text.

    Raises:
        InputError: it cannot be read.
    """
    table = read_table(path, HEAD)
    rows = [row for row in islice(table.cells(), LOOKED_AT) if row]
    first = next((row[0].split() for row in rows if not row[0].startswith("#")), [])
    if all(len(row) == 1 for row in rows) and len(first) > 1 and all(map(_is_number, first)):
        return _of_blanks(path, rows[0][0])
    if (delimiter := _of_decimal_commas(rows)) is not None:
        table = replace(table, delimiter=delimiter)
        rows = [row for row in islice(table.cells(), LOOKED_AT) if row]
    names, has_header = _header(rows, path)
    texts = {i for i, name in enumerate(names) if _may_name_rows(i, name) and name not in classes}
    return _read(path, table, names, texts, has_header, _has_decimal_commas(rows))


def is_unnamed(name: str) -> bool:
    return UNNAMED.fullmatch(name) is not None


def _of_blanks(path: Path, first: str) -> list[Column] | np.ndarray:
    """A matrix as numpy.savetxt writes it: its header is a comment in the first line."""
    try:
        values = np.loadtxt(path, ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    names = first.removeprefix("#").split()
    if not first.startswith("#") or len(names) != values.shape[1]:
        return values
    return [Column(name=name, values=pa.array(values[:, k])) for k, name in enumerate(names)]


def _of_decimal_commas(rows: list[list[str]]) -> str | None:
    """The delimiter, if the first rows contain decimal commas, as in 0,5; None otherwise."""
    for delimiter in DELIMITERS[1:]:
        for row in rows[:2]:
            cells = ",".join(row).split(delimiter)
            if len(cells) > 1 and sum(_is_number(cell) and "," in cell for cell in cells) > len(cells) / 2:
                return delimiter
    return None


def _has_decimal_commas(rows: list[list[str]]) -> bool:
    cells = [cell for row in rows for cell in row if _is_number(cell)]
    return any("," in cell for cell in cells) and not any("." in cell for cell in cells)


def _header(rows: list[list[str]], path: Path) -> tuple[list[str], bool]:
    """Names of the columns, and whether the first row is these: else they are numbers."""
    first, rest = rows[0], rows[1:]
    if not _is_header(first, rest):
        texts = [i for i, cell in enumerate(first) if not _is_number(cell)]
        # The numbers of the columns that hold them; texts before them name the rows.
        numbers = iter(range(len(first)))
        return [f"text {i + 1}" if i in texts else str(next(numbers)) for i in range(len(first))], False
    names = [name.strip() for name in first]
    # numpy.savetxt writes its header as a comment.
    names[0] = names[0].removeprefix("# ")
    widths = {len(row) - len(names) for row in rest}
    if widths == {1}:
        # A delimiter at the end of each row but the first; else R's, whose names of rows have no name.
        names = [*names, ""] if all(not row[-1].strip() for row in rest) else ["", *names]
    wrong = next((name for name in names if not is_text(name)), None)
    if wrong is not None:
        raise InputError(f"{path}: the name of column {names.index(wrong) + 1} is not UTF-8 text; save it as UTF-8")
    return names, True


def _is_header(first: list[str], rest: list[list[str]]) -> bool:
    """Whether a row has names of columns: classes may have numbers as names, but no fractions."""
    numbers = [cell.strip() for cell in first if _is_number(cell)]
    if not numbers:
        return True
    if not all(map(str.isdigit, numbers)):
        return False
    texts = [cell for cell in first if cell.strip() and not _is_number(cell)]
    # A name of a file.
    if texts and all(re.search(r"\.[A-Za-z]{3,4}$", cell.strip()) for cell in texts):
        return False
    if texts or numbers == [str(k) for k in range(len(numbers))]:
        return True
    # Names differ; and 0 and 1 may be shares.
    has_fractions = any(_is_number(cell) and not cell.strip().isdigit() for row in rest for cell in row)
    return has_fractions and len({*numbers}) == len(first) and not {*numbers} <= {"0", "1"}


def _read(
    path: Path, table: Table, names: list[str], texts: set[int], has_header: bool, has_decimal_commas: bool
) -> list[Column]:
    source, skipped = _source(path, table)
    try:
        found = arrow_csv.read_csv(
            source,
            read_options=arrow_csv.ReadOptions(
                column_names=[str(i) for i in range(len(names))],
                skip_rows=skipped,
                skip_rows_after_names=int(has_header),
                # A row must fit into it.
                block_size=2**23,
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=table.delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                check_utf8=False,
                column_types={str(i): pa.binary() for i in texts},
                decimal_point="," if has_decimal_commas else ".",
            ),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(_told(error, path, table, len(names))) from error
    arrays = [_of_fractions(array, has_decimal_commas) for array in _without_empty_rows(found).columns]
    return [
        Column(name="" if is_unnamed(name) else name, values=array, is_index=i == 0 and is_unnamed(name))
        for i, (name, array) in enumerate(zip(names, arrays, strict=True))
    ]


def _may_name_rows(i: int, name: str) -> bool:
    """Such a column stays text: 00001 is no number then."""
    return (i == 0 and is_unnamed(name)) or Column(name=name, values=None).key in ROWS


def _source(path: Path, table: Table) -> tuple[Path | io.BytesIO, int]:
    """What pyarrow reads, and how many lines of it come before the first row: it knows UTF-8 and bare cells alone."""
    with path.open("rb") as file:
        is_utf_16 = file.read(2) in UTF_16
    if not is_utf_16 and not table.has_blanks:
        return path, table.first_line - 1
    # Whole now: the other one is the head of the file.
    table = replace(read_table(path), delimiter=table.delimiter)
    source = io.BytesIO()
    text = io.TextIOWrapper(source, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
    csv.writer(text, delimiter=table.delimiter).writerows(table.cells())
    text.detach()
    source.seek(0)
    return source, 0


def _told(error: Exception, path: Path, table: Table, width: int) -> str:
    """Says of a row of too few or too many cells which one it is, which pyarrow does not."""
    rows = replace(read_table(path), delimiter=table.delimiter).cells()
    for number, row in enumerate((row for row in rows if row), start=1):
        if len(row) != width:
            return f"cannot read {path}: row {number}, the first line counted, has {len(row)} cells where {width} are"
    return f"cannot read {path}: {reason(error)}"


def _without_empty_rows(table: Any) -> Any:
    """A table without rows at its end that have nothing in any cell, as spreadsheets write them."""
    number = table.num_rows
    while number and all(column[number - 1].as_py() in (None, "", b"") for column in table.columns):
        number -= 1
    return table.slice(0, number)


def _of_fractions(array: pa.ChunkedArray, has_decimal_commas: bool) -> pa.ChunkedArray:
    """Numbers instead of text, where it may be names of rows and is fractions: so a class is called."""
    if not pa.types.is_binary(array.type):
        return array
    is_filled = pc.greater(pc.binary_length(array), 0)
    is_number = pc.or_(pc.match_substring_regex(array, f"^{NUMBER}$"), pc.invert(is_filled))
    if not pc.all(is_number).as_py() or not pc.any(pc.match_substring_regex(array, FRACTION)).as_py():
        return array
    text = pc.if_else(is_filled, array.cast(pa.string()), None)
    return pc.utf8_trim_whitespace(pc.replace_substring(text, ",", ".") if has_decimal_commas else text).cast(
        pa.float64()
    )


def _is_number(cell: str) -> bool:
    return re.fullmatch(NUMBER, cell) is not None
