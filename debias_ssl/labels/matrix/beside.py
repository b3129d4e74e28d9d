"""Reads the files beside a matrix in a folder of `label` or `debias`, and checks them against the matrix."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Num

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.label_files import contradicting_row, table_beside
from debias_ssl.labels.names.class_names import read_class_list
from debias_ssl.labels.tables.column_roles import OF_LABELS
from debias_ssl.labels.tables.truth import are_numbers
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import read_table
from debias_ssl.system.texts import texts_of


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
    # A row without a label abstained.
    number = None if classes is None else {"": UNKNOWN} | {name: k for k, name in enumerate(classes)}
    labels, sureness = array("q"), array("d")

    def rows() -> Iterator[str]:
        for _, cells in table:
            labels.append(UNKNOWN if number is None else number.get(cells[label], len(number)))
            sureness.append(_number(cells[confidence]))
            yield cells[key]

    names = texts_of(rows())
    if len(names) != len(values):
        raise InputError(
            f"{beside} has {len(names):,} rows, {path} has {len(values):,}: the two are from different jobs"
        )
    i = contradicting_row(values, np.frombuffer(labels, np.int64), np.frombuffer(sureness, np.float64))
    if i is not None:
        line, cells = next(islice(table, i, None))
        best = int(values[i].argmax())
        raise InputError(
            f"{beside}, line {line} says {cells[label]!r} by {cells[confidence]} of {names[i]!r}, row {i} (from "
            f"0) of {path} {best if classes is None else repr(classes[best])} by {values[i].max():.6f}: its rows "
            "are in another order, or from another job; restore the order, or move the file away"
        )
    return None if are_numbers(names) else names


def _number(text: str) -> float:
    """A number with a point or, of some spreadsheets, a comma; nan for others."""
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return float("nan")
