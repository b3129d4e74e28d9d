"""The table of labels: one line for each row, one function for each column."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.labels.debiasing import Labeling
from debias_ssl.labels.truth import RowNumbers

# Rows whose text is held at a time.
ROWS = 2**16

Column = Callable[[slice], Sequence[str]]
"""The cells of some rows."""


def columns_of(labeling: Labeling) -> dict[str, Column]:
    """The columns of labels.csv, by their names in its first line."""
    key = "row" if isinstance(labeling.names, RowNumbers) else "path"
    columns = {
        key: lambda rows: labeling.names[rows],
        "label": _named(_written_labels(labeling), labeling.classes),
        "confidence": _fraction(labeling.confidence),
        "top2_gap": _fraction(labeling.top2_gap),
        "plain_label": _named(labeling.plain, labeling.classes),
        "plain_confidence": _fraction(labeling.plain_confidence),
    }
    score, abstained = labeling.score, labeling.abstained
    if score is None or abstained is None:
        return columns
    return columns | {
        "score": _fraction(score),
        "abstained": lambda rows: ["true" if each else "false" for each in abstained[rows].tolist()],
    }


def csv_parts(labeling: Labeling) -> Iterator[bytes]:
    """The table as CSV, some rows at a time."""
    columns = columns_of(labeling)
    yield _as_csv([[*columns]])
    for first in range(0, len(labeling.names), ROWS):
        rows = slice(first, first + ROWS)
        yield _as_csv([*zip(*(column(rows) for column in columns.values()), strict=True)])


def _written_labels(labeling: Labeling) -> Int64[np.ndarray, " N"]:
    """Class numbers as they are written: negative where a row has no label."""
    return labeling.label if labeling.abstained is None else np.where(labeling.abstained, UNKNOWN, labeling.label)


def _named(numbers: Int64[np.ndarray, " N"], classes: tuple[str, ...]) -> Column:
    return lambda rows: [classes[int(k)] if k >= 0 else "" for k in numbers[rows].tolist()]


def _fraction(values: Float[np.ndarray, " N"]) -> Column:
    return lambda rows: [f"{value:.6f}" for value in values[rows].tolist()]


def _as_csv(lines: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    # Names of files need not be text.
    return text.getvalue().encode(errors="surrogateescape")
