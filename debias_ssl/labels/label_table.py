"""The table of labels: one line for each row, one function for each column."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64

from debias_ssl.labels.debiasing import Labeling
from debias_ssl.labels.truth import RowNumbers

# Rows whose text is held at a time.
ROWS = 2**16
# Of fractions.
DECIMALS = 6

Column = Callable[[slice], Sequence[str]]
"""The cells of some rows."""


def columns_of(labeling: Labeling) -> dict[str, Column]:
    """The columns of labels.csv, by their names in its first line."""
    key = "row" if isinstance(labeling.names, RowNumbers) else "path"
    return {
        key: lambda rows: labeling.names[rows],
        "label": _named(labeling.label, labeling.classes),
        "confidence": _fraction(labeling.confidence),
        "top2_gap": _fraction(labeling.top2_gap),
        "plain_label": _named(labeling.plain, labeling.classes),
        "plain_confidence": _fraction(labeling.plain_confidence),
    }


def csv_parts(labeling: Labeling) -> Iterator[bytes]:
    """The table as CSV, some rows at a time."""
    columns = columns_of(labeling)
    yield _as_csv([[*columns]])
    for first in range(0, len(labeling.names), ROWS):
        rows = slice(first, first + ROWS)
        yield _as_csv([*zip(*(column(rows) for column in columns.values()), strict=True)])


def _named(numbers: Int64[np.ndarray, " N"], classes: tuple[str, ...]) -> Column:
    return lambda rows: [classes[int(k)] for k in numbers[rows].tolist()]


def _fraction(values: Float[np.ndarray, " N"]) -> Column:
    return lambda rows: _decimals(values[rows])


def _decimals(values: Float[np.ndarray, " n"]) -> list[str]:
    """Numbers in [0, 1] with six decimals: f"{value:.6f}", for all of them at once."""
    # Exact: a number of fp32 has 24 bits, and the product with a million no more than the 53 of fp64.
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
