"""Reads the truth about rows of a matrix: labels of some rows, and class shares."""

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.label_files import is_unknown
from debias_ssl.labels.names.imagenet import WNID, numbers_of
from debias_ssl.labels.tables.row_names import Matched, match, match_numbers
from debias_ssl.system.errors import InputError, reason, shortened
from debias_ssl.system.files import read_array
from debias_ssl.system.tables import LABELS, PATHS, ROWS, check_text, read_table, read_text
from debias_ssl.system.texts import texts_of


class RowNumbers(Sequence[str]):
    """Names of rows without names: "0", "1", ..., computed on access."""

    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(self.num)[index]
        return str(numbers) if isinstance(numbers, int) else [str(number) for number in numbers]


def are_numbers(names: Sequence[str]) -> bool:
    """Whether names of rows are their numbers."""
    return all(name == str(i) for i, name in enumerate(names))


@dataclass(frozen=True, kw_only=True)
class KnownLabels:
    """The classes of rows that a file contains."""

    labels: Int64[np.ndarray, " N"]
    """Class numbers, negative where unknown."""
    matched: str
    """How many of its entries are of rows, in words."""
    notes: tuple[str, ...] = ()
    """What people should know of how they were found."""

    @property
    def said(self) -> tuple[str, ...]:
        """Lines for a terminal."""
        return (self.matched, *(f"note: {note}" for note in self.notes))


def say(lines: Iterable[str]) -> None:
    """Prints lines, of which notes go where errors go."""
    for line in lines:
        print(line, file=sys.stderr if line.startswith("note: ") else sys.stdout)


def read_labels(path: Path, names: Sequence[str], classes: tuple[str, ...]) -> KnownLabels:
    """The classes of rows, for `truth` and `tune_on`.

    Args:
        path: CSV or TSV with the columns path and label, or row and label, or other usual names of these; or .npy of N
            class numbers. In a table labels are class names, or ImageNet's ids of its classes, and beside rows also
            class numbers.
        names: of the rows, which the column path names.
        classes: in the order of the columns.

    Raises:
        InputError: the file does not fit the rows, or a class is unknown.
    """
    if path.suffix == ".npy":
        labels = _read_numbers(path, len(names), len(classes))
        return KnownLabels(labels=labels, matched=f"{path}: {_num_known(labels)}")
    table = read_table(path)
    # Rows without names have numbers.
    kinds = (ROWS, PATHS) if isinstance(names, RowNumbers) else (PATHS, ROWS)
    kind = next((kind for kind in kinds if table.column(kind) is not None), PATHS)
    key, label = table.column(kind), table.column(LABELS)
    if key is None or label is None:
        raise InputError(
            f"{path}: the first line must name the columns path or row, and label; it is {[*table.header]}"
        )
    # A table that pandas wrote may have paths in its index.
    may_be_paths = kind is ROWS and "row" not in table.header[key].lower() and not isinstance(names, RowNumbers)
    if may_be_paths and not all(_is_number(cells[key]) for _, cells in table):
        kind = PATHS
    number = numbers_of(classes)
    if kind is ROWS:
        number = {str(k): k for k in range(len(classes))} | number
    lines, numbers = array("q"), array("q")

    def entries() -> Iterator[str]:
        for line, cells in table:
            lines.append(line)
            numbers.append(_class_of(cells[label].strip(), number, classes, path, line))
            yield cells[key] if kind is PATHS else _row(cells[key], path, line, len(names))

    listed = texts_of(entries())
    if not len(listed):
        raise InputError(f"{path} lists no rows")
    if kind is PATHS:
        found = match(listed, names)
    else:
        found = match_numbers(np.fromiter(map(int, listed), np.int64, len(listed)), len(names))
    if not found.num_matched:
        raise InputError(f"{path} lists none of the rows: {_differing(found)}")
    if found.doubled is not None:
        first, second = found.doubled
        raise InputError(
            f"{path}: lines {lines[first]} and {lines[second]} are both {table.header[key]} {listed[second]!r}: "
            "remove one of them"
        )
    notes = [*table.notes(kind, LABELS), *(f"{path}: {note}" for note in found.notes)]
    return _known_labels(path, found, np.frombuffer(numbers, dtype=np.int64), notes)


def read_label_names(path: Path) -> tuple[str, ...]:
    """The names that a table has in its column of labels, where nothing else says what the classes are.

    Raises:
        InputError: it has no such column.
    """
    table = read_table(path)
    column = table.column(LABELS)
    if column is None:
        raise InputError(f"{path}: the first line must name the columns path and label; it is {[*table.header]}")
    found = {cells[column].strip() for _, cells in table}
    return tuple(sorted(name for name in found if not is_unknown(name, ())))


def _known_labels(path: Path, found: Matched, numbers: Int64[np.ndarray, " E"], notes: list[str]) -> KnownLabels:
    """The classes of rows, by the class numbers of the entries of a file."""
    labels, known = np.full(len(found.entry_of), UNKNOWN), found.entry_of >= 0
    labels[known] = numbers[found.entry_of[known]]
    if found.unmatched is not None:
        notes.append(f"{path}: {len(numbers) - found.num_matched} rows of it match none: {_differing(found)}")
    matched = f"{found.num_matched} of {len(numbers)} rows of {path} matched"
    return KnownLabels(labels=labels, matched=f"{matched}: {_num_known(labels)}", notes=tuple(notes))


def _num_known(labels: Int64[np.ndarray, " N"]) -> str:
    return f"the classes of {(labels >= 0).sum()} of {len(labels)} rows are known"


def _is_number(cell: str) -> bool:
    return cell.strip().removesuffix(".0").isdecimal()


def _row(cell: str, path: Path, line: int, num_rows: int) -> str:
    """The number of a row as `RowNumbers` has it; pandas makes 3.0 of 3 where a number is missing."""
    row = int(cell.strip().removesuffix(".0")) if _is_number(cell) else num_rows
    if row >= num_rows:
        raise InputError(f"{path}, line {line}: there is no row {cell!r}; rows are 0 to {num_rows - 1}")
    return str(row)


def _class_of(label: str, number: dict[str, int], classes: tuple[str, ...], path: Path, line: int) -> int:
    check_text(label, path, line)
    # As for rows.
    found = number.get(label, number.get(label.removesuffix(".0")))
    if found is None and not is_unknown(label, classes):
        hint = "; for ImageNet's ids pass --classes imagenet" if WNID.fullmatch(label) else ""
        raise InputError(f"{path}, line {line}: {label!r} is not a class; the classes are {shortened(classes)}{hint}")
    return UNKNOWN if found is None else found


def _differing(found: Matched) -> str:
    """The first entry and the first row that do not belong together, and why."""
    assert found.unmatched is not None
    entry, row = found.unmatched
    return f"the first is {entry!r}, and the first row without one {row!r}{found.cause and '; ' + found.cause}"


def _read_numbers(path: Path, num_rows: int, num_classes: int) -> Int64[np.ndarray, " N"]:
    try:
        labels = read_array(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} is {labels.dtype} of shape {labels.shape}; {num_rows} class numbers are expected, one for each row"
        )
    if labels.max() >= num_classes:
        raise InputError(f"{path}: row {int(labels.argmax())} has class {labels.max()}, but there are {num_classes}")
    return np.maximum(labels.astype(np.int64), UNKNOWN)


def read_target(
    target_prior: str, classes: tuple[str, ...], *, has_reference: bool = False
) -> Float[Tensor, " C"] | None:
    """The shares that the setting `target_prior` gives to the classes; None where they are to be estimated.

    Raises:
        InputError: the file does not give each class a weight.
    """
    if target_prior in ("em", "present") or (target_prior == "auto" and has_reference):
        return None
    if target_prior in ("auto", "uniform"):
        return torch.full((len(classes),), 1 / len(classes), dtype=torch.float64)
    path = Path(target_prior)
    if not path.is_file():
        raise InputError(f"target_prior is {target_prior!r}: neither auto, uniform, em nor present, nor a file")
    pairs = _read_pairs(path)
    weights, known = dict(pairs), set(classes)
    wrong = [f"has {name!r}, which is not a class" for name in weights if name not in known]
    wrong += [f"does not have the class {name!r}" for name in classes if name not in weights]
    wrong += [f"has {name!r} twice" for name, num in Counter(name for name, _ in pairs).items() if num > 1]
    if wrong:
        raise InputError(f"{path} {wrong[0]}; target_prior needs each of the {len(classes)} classes once")
    for name, weight in pairs:
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"{path}: the weight of {name!r} is {weight!r}, must be a number of at least 0")
    target = torch.tensor([weights[name] for name in classes], dtype=torch.float64)
    if target.sum() == 0:
        raise InputError(f"{path}: all weights are 0; at least one class needs a weight above 0")
    return target / target.sum()


def _read_pairs(path: Path) -> list[tuple[str, Any]]:
    """Classes and weights of a file, as it has them; a weight that is not a number stays text."""
    if path.suffix.lower() == ".json":
        try:
            pairs = json.loads(read_text(path), object_pairs_hook=list)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {reason(error)}") from error
        if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
            raise InputError(f"{path} must be an object of class and weight")
        return pairs
    table = read_table(path)
    # A first line of names is not needed.
    rows = [(table.first_line, [*table.header]), *table]
    if len(table.header) == 2 and table.column(("weight",)) == 1:
        rows = rows[1:]
    pairs = []
    for line, cells in rows:
        check_text(cells[0], path, line)
        if len(cells) != 2:
            raise InputError(f"{path}, line {line}: {table.delimiter.join(cells)!r} is not class,weight")
        try:
            pairs.append((cells[0].strip(), table.number(cells[1])))
        except ValueError:
            pairs.append((cells[0].strip(), cells[1]))
    return pairs
