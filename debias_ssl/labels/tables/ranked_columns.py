"""Reads timm's predictions: one column of lists with the numbers of all classes, or the best classes of each row.

timm's inference.py writes the K largest probabilities (or logits) of each row from the largest to the smallest. On
request it writes their classes beside them. With --topk 0 it writes all numbers in the order of the classes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from debias_ssl.labels.tables.columns import Column, is_list, is_text, pc
from debias_ssl.system.errors import InputError

TIMM = "timm's inference.py writes all with --topk 0 --results-separate-col --fullname"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Columns that hold K values in each row."""

    name: str
    columns: tuple[Column, ...]
    """One of lists, or K of values."""
    values: np.ndarray
    """N x K."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A matrix that several columns hold together."""

    values: np.ndarray
    classes: tuple[str, ...] | None
    columns: tuple[Column, ...]
    told: str


def matrix_of_groups(columns: Sequence[Column], path: Path) -> Ranked | None:
    """The matrix in a column of lists, or in columns of ranks; None where there are neither.

    Raises:
        InputError: there is not a number for each class in each row, or it is not known of which class each is.
    """
    groups = _groups(columns, path)
    numbers = [group for group in groups if group.values.dtype.kind == "f"]
    if len(numbers) != 1:
        return None
    (group,) = numbers
    num_classes = group.values.shape[1]
    beside = [other for other in groups if other is not group and other.values.shape[1] == num_classes]
    indexes = [other for other in beside if other.values.dtype.kind in "iu"]
    texts = [other for other in beside if other.values.dtype.kind == "O"]
    is_list_column = len(group.columns) < num_classes
    if not indexes and not texts:
        _check_order(group, is_list_column, path)
        if not is_list_column:
            return None
        told = f"classes: numbers in the lists of column {group.name}"
        return Ranked(values=group.values, classes=None, columns=group.columns, told=told)
    which, classes = _places(indexes, texts, num_classes, path)
    values = np.empty_like(group.values)
    np.put_along_axis(values, which, group.values, axis=1)
    of = indexes[0] if indexes else texts[0]
    used = tuple(column for each in (group, *indexes[:1], *texts[:1]) for column in each.columns)
    told = f"classes: those that {of.name} gives for the numbers in {group.name}"
    return Ranked(values=values, classes=classes, columns=used, told=told)


def _groups(columns: Sequence[Column], path: Path) -> list[Group]:
    groups = []
    for column in columns:
        if column.kind == "lists":
            values = _of_lists(column, path)
            if values is not None and values.shape[1] > 1:
                groups.append(Group(name=column.name, columns=(column,), values=values))
    stems: dict[str, list[Column]] = {}
    for column in columns:
        # NAME_0, NAME_1, ... in this order; p_0 is the class 0 of `debias-ssl predict`.
        match = re.fullmatch(r"(?!p_)(.+)_(\d+)", column.name)
        if match and int(match[2]) == len(stems.get(match[1], [])):
            stems.setdefault(match[1], []).append(column)
    for stem, members in stems.items():
        if len(members) > 1:
            groups.append(
                Group(name=f"{stem}_0, {stem}_1, ...", columns=tuple(members), values=_stacked(members, path))
            )
    return groups


def _stacked(members: list[Column], path: Path) -> np.ndarray:
    if all(member.kind == "integers" for member in members) and all(not member.values.null_count for member in members):
        return np.stack([member.values.to_numpy() for member in members], axis=1)
    if all(member.is_number for member in members):
        return np.stack([member.numbers() for member in members], axis=1)
    if all(member.kind == "text" for member in members):
        return np.stack([np.array(member.texts(path), dtype=object) for member in members], axis=1)
    return np.zeros((len(members[0].values), len(members)), dtype=bool)


def _of_lists(column: Column, path: Path) -> np.ndarray | None:
    """N x K values; None where they are neither numbers nor text."""
    values = column.values.combine_chunks() if isinstance(column.values, pa.ChunkedArray) else column.values
    lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        length = "no" if np.isnan(lengths[odd[0]]) else f"{lengths[odd[0]]:g}"
        raise InputError(
            f"{path}: column {column.name!r}, row {odd[0]} (from 0) has {length} entries, row 0 has {lengths[0]:g}; "
            "a number for each class is needed in each row"
        )
    flat = values.flatten()
    if is_list(flat.type):
        return None
    flat = Column(name=column.name, values=flat)
    if is_text(flat.values.type):
        entries = np.array(flat.texts(path), dtype=object)
    elif pa.types.is_integer(flat.values.type) and not flat.values.null_count:
        entries = flat.values.to_numpy()
    elif flat.is_number:
        entries = flat.numbers()
    else:
        return None
    return entries.reshape(len(values), -1)


def _places(
    indexes: list[Group], texts: list[Group], num_classes: int, path: Path
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The class of each value, and the names of the classes, if there are any.

    Raises:
        InputError: a row does not have each class once.
    """
    name = (indexes or texts)[0].name
    if indexes:
        which, classes = indexes[0].values.astype(np.int64), None
        found = int(which.max()) + 1
    else:
        names, places = np.unique(texts[0].values.astype(str), return_inverse=True)
        which, found = places.reshape(texts[0].values.shape), len(names)
        classes = tuple(map(str, names))
    if found != num_classes or (np.sort(which, axis=1) != np.arange(num_classes)).any():
        raise InputError(
            f"{path} has the best {num_classes} of {found} or more classes in {name}; a number for each class is "
            f"needed; {TIMM}"
        )
    if indexes and texts:
        by_index = dict(zip(which[0].tolist(), texts[0].values[0].tolist(), strict=True))
        classes = tuple(by_index[k] for k in range(num_classes))
    return which, classes


def _check_order(group: Group, is_list_column: bool, path: Path) -> None:
    """Raises InputError where each row falls, as ranked numbers do; of numbers by class, no seven steps would."""
    num_rows, num_classes = group.values.shape
    if num_rows * (num_classes - 1) > 6 and (group.values[:, 1:] <= group.values[:, :-1]).all():
        mend = "" if is_list_column else "; if they are classes, name them by --columns"
        raise InputError(
            f"{path}: each row of {group.name} falls from its first number to its last, as of the best {num_classes} "
            f"classes; a number for each class is needed, in one order; {TIMM}{mend}"
        )
