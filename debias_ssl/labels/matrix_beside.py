"""What stands beside a matrix, in the folder that `label` and `debias` write: it is checked against the matrix."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num

from debias_ssl.labels.class_names import read_class_names
from debias_ssl.labels.column_roles import OF_LABELS
from debias_ssl.labels.debiasing import rows_of_chunk
from debias_ssl.labels.output import outputs_in
from debias_ssl.labels.truth import RowNumbers
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import read_table

# How far the decimals of labels.csv and float16 in probs.npy are apart: by rounding, and by a tie that it makes.
RELATIVE, ABSOLUTE = 2**-10, 2e-6


def classes_beside(path: Path, given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names in a classes.json beside a matrix; None where there is none.

    Args:
        path: of the matrix.
        given: the names in the file of --classes, or None.

    Raises:
        InputError: they contradict the names that are given: the same ones are other columns.
    """
    beside = path.parent / "classes.json"
    if not beside.is_file():
        return None
    own, _ = read_class_names(beside)
    if given is not None and given != own and {*own} & {*given}:
        k = next((k for k, (a, b) in enumerate(zip(own, given, strict=False)) if a != b), min(len(own), len(given)))
        first, second = (repr(names[k]) if k < len(names) else "not there" for names in (own, given))
        raise InputError(
            f"{beside} says that class {k} (from 0) of {path} is {first}, and --classes that it is {second}: "
            "leave out --classes, or remove what is wrong"
        )
    return own


def check_whole(path: Path) -> None:
    """Raises InputError where probs.npy is in a folder whose labels were being replaced as a job was interrupted."""
    if path.name == "probs.npy" and outputs_in(path.parent).is_incomplete():
        raise InputError(
            f"{str(path.parent)!r} holds parts of labels, as a job that wrote them was interrupted: run that job again"
        )


def names_beside(path: Path, values: Num[np.ndarray, "N C"], classes: tuple[str, ...] | None) -> Sequence[str] | None:
    """The names of the rows of probs.npy in the labels.csv beside it, once its labels are known to be of these rows.

    Args:
        path: of the matrix.
        values: the matrix.
        classes: in the classes.json beside it; None checks confidences alone.

    Returns:
        The names; None where there is no such file, or where its rows have numbers.

    Raises:
        InputError: the label or the confidence of a row is not what the matrix says.
    """
    beside = path.parent / "labels.csv"
    if path.name != "probs.npy" or not beside.is_file():
        return None
    table = read_table(beside)
    if not {*table.header} >= OF_LABELS or (key := table.column(("path", "row"))) is None:
        return None
    label, confidence = table.header.index("label"), table.header.index("confidence")
    lines, rows = [], []
    for line, cells in table:
        lines.append(line)
        rows.append((cells[key], cells[label], cells[confidence]))
    if len(rows) != len(values):
        raise InputError(f"{beside} has {len(rows):,} rows, {path} has {len(values):,}: they are not of one job")
    number = None if classes is None else {name: k for k, name in enumerate(classes)}
    for i, (is_right, found) in enumerate(_agreements(values, rows, number)):
        if not is_right:
            name, told, sure = rows[i]
            raise InputError(
                f"{beside}, line {lines[i]} says {told!r} by {sure} of {name!r}, row {i} (from 0) of {path} {found}: "
                "its rows are in another order, or of another job; sort them back, or move it away"
            )
    names = [name for name, _, _ in rows]
    return None if names == [*RowNumbers(len(names))] else names


def _agreements(
    values: Num[np.ndarray, "N C"], rows: Sequence[tuple[str, str, str]], number: dict[str, int] | None
) -> Iterator[tuple[bool, str]]:
    """Whether the label and the confidence of each row are those of the matrix, and what the matrix says."""
    step = rows_of_chunk(values.shape[1])
    names = None if number is None else [*number]
    for first in range(0, len(values), step):
        chunk = np.array(values[first : first + step], dtype=np.float32)
        best, most = chunk.argmax(1), chunk.max(1)
        told = np.array([_number(confidence) for _, _, confidence in rows[first : first + step]])
        labels = (
            best if number is None else np.array([number.get(name, -1) for _, name, _ in rows[first : first + step]])
        )
        margin = RELATIVE * most + ABSOLUTE
        # A tie in float16 has its largest number twice.
        is_right = (labels >= 0) & (chunk[np.arange(len(chunk)), labels] >= most - margin)
        is_right &= np.abs(told - most) <= margin
        for k in range(len(chunk)):
            yield bool(is_right[k]), f"{best[k] if names is None else repr(names[best[k]])} by {most[k]:.6f}"


def _number(text: str) -> float:
    """A number with a point or, of some spreadsheets, a comma; nan for others."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return float("nan")
