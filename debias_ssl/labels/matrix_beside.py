"""What stands beside a matrix, in the folder that `label` and `debias` write: it is checked against the matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Num

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.label_files import contradicting_row, table_beside
from debias_ssl.labels.class_names import read_class_list
from debias_ssl.labels.column_roles import OF_LABELS
from debias_ssl.labels.truth import RowNumbers
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import read_table


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
    own = read_class_list(beside).names
    if given is not None and given != own and {*own} & {*given}:
        k = next((k for k, (a, b) in enumerate(zip(own, given, strict=False)) if a != b), min(len(own), len(given)))
        first, second = (repr(names[k]) if k < len(names) else "not there" for names in (own, given))
        raise InputError(
            f"{beside} says that class {k} (from 0) of {path} is {first}, and --classes that it is {second}: "
            "leave out --classes, or remove what is wrong"
        )
    return own


def names_beside(path: Path, values: Num[np.ndarray, "N C"], classes: tuple[str, ...] | None) -> Sequence[str] | None:
    """The names of the rows of probs.npy in the table beside it, once its labels are known to be of these rows.

    Args:
        path: of the matrix.
        values: the matrix.
        classes: in the classes.json beside it; None checks confidences alone.

    Returns:
        The names; None where there is no such file, or where its rows have numbers.

    Raises:
        InputError: the label or the confidence of a row is not what the matrix says.
    """
    beside = table_beside(path)
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
    # A row without a label abstained.
    number = None if classes is None else {"": UNKNOWN} | {name: k for k, name in enumerate(classes)}
    labels = [UNKNOWN if number is None else number.get(label, len(number)) for _, label, _ in rows]
    i = contradicting_row(values, np.array(labels), np.array([_number(sure) for _, _, sure in rows]))
    if i is not None:
        (name, told, sure), best = rows[i], int(values[i].argmax())
        raise InputError(
            f"{beside}, line {lines[i]} says {told!r} by {sure} of {name!r}, row {i} (from 0) of {path} "
            f"{best if classes is None else repr(classes[best])} by {values[i].max():.6f}: its rows are in another "
            "order, or of another job; sort them back, or move it away"
        )
    names = [name for name, _, _ in rows]
    return None if names == [*RowNumbers(len(names))] else names


def _number(text: str) -> float:
    """A number with a point or, of some spreadsheets, a comma; nan for others."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return float("nan")
