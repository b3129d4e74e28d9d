"""The table of labels: one line for each row, one function for each column."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64, Num
from pyarrow import parquet

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.debiasing.several import SeveralLabels
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.system.tables import is_text

# Rows whose text is in memory at the same time.
ROWS = 2**16
# Of fractions in CSV.
DECIMALS = 6

Cells = Sequence[str] | np.ndarray
"""Text or numbers."""
Column = Callable[[slice], Cells]
"""The cells of some rows."""


def columns_of(labeling: Labeling) -> dict[str, Column]:
    """The columns of labels.csv, by their names in its first line."""
    key = "row" if isinstance(labeling.names, RowNumbers) else "path"
    columns: dict[str, Column] = {
        key: _numbers(np.arange(len(labeling.names))) if key == "row" else lambda rows: labeling.names[rows],
        "label": _named(_written_labels(labeling), labeling.classes),
        "confidence": _numbers(labeling.confidence),
        "top2_gap": _numbers(labeling.top2_gap),
        "plain_label": _named(labeling.plain, labeling.classes),
        "plain_confidence": _numbers(labeling.plain_confidence),
    }
    if labeling.name is not None and labeling.name_confidence is not None:
        # The number -1 is that of the last one.
        names = (*(labeling.hierarchy.names if labeling.hierarchy else labeling.classes), "")
        columns["name"] = _named(labeling.name, names)
        columns["name_confidence"] = _numbers(labeling.name_confidence)
    if labeling.several:
        columns["labels"] = _lists(labeling.several, labeling.classes)
    score, abstained = labeling.score, labeling.abstained
    if score is not None and abstained is not None:
        columns["score"] = _numbers(score)
        columns["abstained"] = lambda rows: ["true" if each else "false" for each in abstained[rows].tolist()]
    return columns


def _written_labels(labeling: Labeling) -> Int64[np.ndarray, " N"]:
    """Class numbers as they are written: negative where a row has no label."""
    return labeling.label if labeling.abstained is None else np.where(labeling.abstained, UNKNOWN, labeling.label)


def _named(numbers: Int64[np.ndarray, " N"], classes: tuple[str, ...]) -> Column:
    return lambda rows: [classes[int(k)] if k >= 0 else "" for k in numbers[rows].tolist()]


def _lists(several: SeveralLabels, classes: tuple[str, ...]) -> Column:
    """Names as a JSON list: they may hold any character that could stand between them."""

    def cells(rows: slice) -> list[str]:
        numbers = (several.of_row(row) for row in range(*rows.indices(len(several.starts) - 1)))
        return [json.dumps([classes[k] for k in each.tolist()], ensure_ascii=False) for each in numbers]

    return cells


def _numbers(values: Num[np.ndarray, " N"]) -> Column:
    return lambda rows: values[rows]


def csv_parts(labeling: Labeling) -> Iterator[bytes]:
    """The table as CSV, some rows at a time."""
    columns = columns_of(labeling)
    yield _as_csv([[*columns]])
    for rows in _parts(labeling):
        yield _as_csv([*zip(*(_texts(column(rows)) for column in columns.values()), strict=True)])


def parquet_parts(labeling: Labeling) -> Iterator[bytes]:
    """The table as Parquet, a row group at a time: text, integers, and fractions in fp32.

    Paths that are not all text are binary.
    """
    columns = columns_of(labeling)
    schema = pa.schema([(name, _type_of(column(slice(1)))) for name, column in columns.items()])
    if "path" in columns and not all(map(is_text, labeling.names)):
        schema = schema.set(0, pa.field("path", pa.binary()))
    written = Written()
    with parquet.ParquetWriter(written, schema) as writer:
        for rows in _parts(labeling):
            cells: dict[str, Any] = {name: column(rows) for name, column in columns.items()}
            if schema.field(0).type == pa.binary():
                cells["path"] = [path.encode(errors="surrogateescape") for path in cells["path"]]
            writer.write_table(pa.table(cells, schema))
            yield written.taken()
    yield written.taken()


TABLES = {"csv": csv_parts, "parquet": parquet_parts}
"""The formats of the table, which are the suffixes of its file."""


class Written(io.RawIOBase):
    """A file object that returns its parts as they are written."""

    def __init__(self):
        self.parts: list[bytes] = []
        self.place = 0

    def writable(self) -> bool:
        return True

    def write(self, part: Any) -> int:
        self.parts.append(bytes(part))
        self.place += len(part)
        return len(part)

    def tell(self) -> int:
        return self.place

    def taken(self) -> bytes:
        parts, self.parts = self.parts, []
        return b"".join(parts)


def _parts(labeling: Labeling) -> Iterator[slice]:
    return (slice(first, first + ROWS) for first in range(0, len(labeling.names), ROWS))


def _type_of(cells: Cells) -> pa.DataType:
    return pa.from_numpy_dtype(cells.dtype) if isinstance(cells, np.ndarray) else pa.string()


def _texts(cells: Cells) -> Sequence[str]:
    if not isinstance(cells, np.ndarray):
        return cells
    if cells.dtype.kind == "i":
        return [str(number) for number in cells.tolist()]
    is_fraction = bool(((cells >= 0) & (cells <= 1)).all())
    if is_fraction:
        return _fractions(cells)
    return ["" if math.isnan(value) else f"{value:.{DECIMALS}f}" for value in cells.tolist()]


def _fractions(values: Float[np.ndarray, " n"]) -> list[str]:
    """Numbers in [0, 1] with six decimals: f"{value:.6f}", for all of them at once."""
    # Exact: a number of fp32 has 24 bits, and its product with a million no more than the 53 of fp64.
    left = np.rint(values.astype(np.float64) * 10**DECIMALS).astype(np.int64)
    text = np.full((len(left), DECIMALS + 2), ord("."), dtype=np.uint8)
    for place in (*range(DECIMALS + 1, 1, -1), 0):
        left, digit = np.divmod(left, 10)
        text[:, place] = ord("0") + digit
    joined = text.tobytes().decode("ascii")
    return [joined[first : first + DECIMALS + 2] for first in range(0, len(joined), DECIMALS + 2)]


def _as_csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    # Names of files need not be text.
    return text.getvalue().encode(errors="surrogateescape")
