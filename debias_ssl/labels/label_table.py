"""The table of labels: one line for each row, one function for each column."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64

from debias_ssl.labels.debiasing import Labeling
from debias_ssl.labels.several import SeveralLabels
from debias_ssl.labels.truth import RowNumbers

# Rows whose text is held at a time.
ROWS = 2**16

Column = Callable[[slice], Sequence[str]]
"""The cells of some rows."""


def columns_of(labeling: Labeling) -> dict[str, Column]:
    """The columns of labels.csv, by their names in its first line."""
    key = "row" if isinstance(labeling.names, RowNumbers) else "path"
    columns: dict[str, Column] = {
        key: lambda rows: labeling.names[rows],
        "label": _named(labeling.label, labeling.classes),
        "confidence": _fraction(labeling.confidence),
        "top2_gap": _fraction(labeling.top2_gap),
        "plain_label": _named(labeling.plain, labeling.classes),
        "plain_confidence": _fraction(labeling.plain_confidence),
    }
    if labeling.name is not None and labeling.name_confidence is not None:
        # The number -1 is that of the last one.
        names = (*(labeling.hierarchy.names if labeling.hierarchy else labeling.classes), "")
        columns["name"] = _named(labeling.name, names)
        columns["name_confidence"] = _fraction(labeling.name_confidence)
    if labeling.several:
        columns["labels"] = _lists(labeling.several, labeling.classes)
    return columns


def csv_parts(labeling: Labeling) -> Iterator[bytes]:
    """The table as CSV, some rows at a time."""
    columns = columns_of(labeling)
    yield _as_csv([[*columns]])
    for first in range(0, len(labeling.names), ROWS):
        rows = slice(first, first + ROWS)
        yield _as_csv([*zip(*(column(rows) for column in columns.values()), strict=True)])


def _named(numbers: Int64[np.ndarray, " N"], classes: tuple[str, ...]) -> Column:
    return lambda rows: [classes[int(k)] for k in numbers[rows].tolist()]


def _lists(several: SeveralLabels, classes: tuple[str, ...]) -> Column:
    """Names as a JSON list: they may hold any character that could stand between them."""

    def cells(rows: slice) -> list[str]:
        numbers = (several.of_row(row) for row in range(*rows.indices(len(several.starts) - 1)))
        return [json.dumps([classes[k] for k in each.tolist()], ensure_ascii=False) for each in numbers]

    return cells


def _fraction(values: Float[np.ndarray, " N"]) -> Column:
    return lambda rows: ["" if math.isnan(value) else f"{value:.6f}" for value in values[rows].tolist()]


def _as_csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    # Names of files need not be text.
    return text.getvalue().encode(errors="surrogateescape")
