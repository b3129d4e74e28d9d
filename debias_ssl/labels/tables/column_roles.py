"""Finds the role of each column in a table of predictions: a class, the names of the rows, or neither."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from debias_ssl.labels.tables.columns import FRACTION, ROWS, Column, listed
from debias_ssl.labels.tables.ranked_columns import TIMM
from debias_ssl.system.errors import InputError, shortened

# Before the names of classes in the columns of `debias-ssl predict`.
PREFIX = "p_"
# The columns of labels.csv that say it is one.
OF_LABELS = {"label", "confidence", "top2_gap"}
# Names by which a column of whole numbers is not a class, and a column of fractions may not be one.
TRUTHS = {
    *("label", "labels", "target", "targets", "truth", "groundtruth", "gt", "y", "ytrue", "class", "classid", "true"),
    *("truelabel", "split", "fold", "pred", "prediction", "predicted", "predictedlabel", "predictedclass", "argmax"),
}
FIGURES = {
    *("confidence", "conf", "score", "prob", "probability", "maxprob", "entropy", "margin", "loss", "top2gap"),
    *("uncertainty", "weight", "width", "height", "channels", "size", "filesize", "bytes", "count"),
}
MEND = "name the columns that are classes by --columns NAME,NAME,... or by --classes FILE"


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The roles of the columns of a table."""

    classes: Sequence[Column]
    names: Column | None
    """The names of the rows."""
    left_out: Sequence[Column]
    has_prefix: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(column.name.removeprefix(PREFIX) if self.has_prefix else column.name for column in self.classes)


def find_roles(
    columns: Sequence[Column], path: Path, asked: Sequence[str] | None, named: Sequence[str] | None
) -> Roles:
    """Finds the classes and the names of the rows.

    Args:
        columns: of the table.
        path: its file, for errors.
        asked: names of the columns that are classes, in the order of the classes; None finds them.
        named: names of classes, which may be those of columns.

    Raises:
        InputError: it cannot be told, or what was asked for is not there.
    """
    by_name = {column.name: column for column in columns}
    prefixed = [column for column in columns if column.name.startswith(PREFIX) and len(column.name) > len(PREFIX)]
    has_prefix = False
    if asked is not None:
        classes = _asked_for(asked, by_name, path)
        has_prefix = all(column in prefixed for column in classes)
    elif len(prefixed) > 1:
        classes, has_prefix = _all_numbers(prefixed, path), True
        if named is not None and set(named) == {column.name.removeprefix(PREFIX) for column in classes}:
            classes = [by_name[PREFIX + name] for name in named]
    elif named is not None and len({*named} & {*by_name}) > len(named) / 2:
        classes = _asked_for(named, by_name, path)
    else:
        _check_is_matrix(columns, path)
        classes = _found(columns, path)
    taken = {*classes}
    rest = [column for column in columns if column not in taken]
    names = _names(columns, rest)
    left_out = [column for column in rest if column is not names and (column.name or column.kind != "empty")]
    return Roles(classes=classes, names=names, left_out=left_out, has_prefix=has_prefix)


def _asked_for(names: Sequence[str], by_name: dict[str, Column], path: Path) -> list[Column]:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputError(
            f"{path} has no column {shortened(list(map(repr, missing)))}; its columns are {listed([*by_name.values()])}"
        )
    twice = [name for name, num in Counter(names).items() if num > 1]
    if twice:
        raise InputError(f"{twice[0]!r} is named twice as a class of {path}; name each column once")
    return _all_numbers([by_name[name] for name in names], path)


def _all_numbers(columns: list[Column], path: Path) -> list[Column]:
    for column in columns:
        if not column.is_number:
            mixed = column.kind == "text" and column.share_of_numbers() > 0
            kind = "text among its numbers" if mixed else f"no numbers ({column.kind})"
            raise InputError(f"{path}: column {column.name!r} has {kind}; fix it, or leave it out of the classes")
    return columns


def _check_is_matrix(columns: Sequence[Column], path: Path) -> None:
    """Raises InputError for tables that are known and are of something else."""
    names = {column.name for column in columns}
    if names >= OF_LABELS:
        beside = path.parent / "probs.npy"
        where = f"--predictions {beside}" if beside.is_file() else "the probs.npy that was written with it"
        raise InputError(f"{path} has labels, not a number for each class: pass {where}")
    if any(name.startswith("is_") and name.endswith("_issue") for name in names):
        raise InputError(
            f"{path} has issues that cleanlab found, not predictions: pass the pred_probs that it was given"
        )


def _found(columns: Sequence[Column], path: Path) -> list[Column]:
    """The classes, where nothing says which they are."""
    unnamed = next((i for i, column in enumerate(columns) if not column.name and column.kind == "fractions"), None)
    if unnamed is not None:
        raise InputError(f"{path}: column {unnamed + 1} has no name, but numbers as classes have; name it")
    possible = [column for column in columns if column.name and not column.is_index]
    numbers = [column for column in possible if column.is_number]
    fractions = [column for column in numbers if column.kind == "fractions"]
    whole = [column for column in numbers if column.kind != "fractions" and column.key not in ROWS]
    points = [column for column in whole if column.kind == "whole numbers"]
    if fractions:
        # Probabilities that are all 0 or 1 after rounding.
        rounded = [c for c in points if c.key not in TRUTHS and set(np.unique(c.numbers())) <= {0.0, 1.0}]
        rounded = rounded if all(c.is_within_0_and_1 for c in fractions) else []
        accepted = {*fractions, *rounded}
        doubtful, classes = [c for c in whole if c not in accepted], [c for c in numbers if c in accepted]
    else:
        classes = points or whole
        accepted = {*classes}
        doubtful = [c for c in whole if c not in accepted or c.key in TRUTHS | FIGURES]
        doubtful += [c for c in possible if c.key in ROWS and _cannot_be_names(c)]
    if doubtful:
        beside = f", beside {listed(others)[:200]}" if (others := [c for c in classes if c not in doubtful]) else ""
        raise InputError(
            f"{path}: {listed(doubtful)} has whole numbers alone, as labels and counts have{beside}; {MEND}"
        )
    classes = _without_figures(classes, path)
    _check_no_mixture(possible, path)
    if len(classes) < 2:
        raise InputError(_too_few(columns, classes, path))
    return classes


def _cannot_be_names(column: Column) -> bool:
    """Whether whole numbers repeat or are negative, so that a column of a usual name is rather a class."""
    if not column.is_number and not (column.kind == "text" and column.share_of(r"^[+-]?\d+$") == 1):
        return False
    numbers = [float(value or "nan") for value in column.values.to_pylist()]
    return len({*numbers}) < len(numbers) or min(numbers) < 0


def _check_no_mixture(columns: Sequence[Column], path: Path) -> None:
    for column in columns:
        # Names of rows may look like integers, but rarely like fractions.
        if column.kind != "text" or (column.key in ROWS and column.share_of(FRACTION) < 0.5):
            continue
        if share := column.share_of_numbers():
            # Text of digits alone may be names of something.
            if share == 1 and not any("." in value or "," in value for value in column.texts(path)):
                continue
            what = "its numbers as text" if share == 1 else "text among its numbers"
            raise InputError(f"{path}: column {column.name!r} has {what}; fix it, or {MEND}")


def _too_few(columns: Sequence[Column], classes: Sequence[Column], path: Path) -> str:
    lists = [c for c in columns if c.kind == "text" and c.texts(path)[0].lstrip().startswith("[")]
    if lists:
        return (
            f"{path}: column {lists[0].name!r} has lists as text; a column for each class is needed, or lists in "
            f".parquet or .json; {TIMM}"
        )
    hint = f"; {TIMM}" if {"prob", "logit"} & {column.name for column in columns} else ""
    return (
        f"{path} has {len(classes)} columns of numbers that may be classes, of {listed(columns, True)[:300]}; at least "
        f"two are needed, one for each class{hint}"
    )


def _without_figures(classes: list[Column], path: Path) -> list[Column]:
    """Leaves out a confidence or the like of which the sums of rows, or the range of the others, say that it is none.

    Raises:
        InputError: they do not say it for sure.
    """
    figures = [column for column in classes if column.key in FIGURES]
    others = [column for column in classes if column.key not in FIGURES]
    if not figures or len(others) < 2:
        return classes

    def sum_to_one(columns: Sequence[Column]) -> bool:
        return bool(np.median(np.abs(np.sum([column.numbers() for column in columns], axis=0) - 1)) < 0.02)

    if sum_to_one(classes):
        return classes
    if sum_to_one(others):
        return others
    if all(c.is_within_0_and_1 for c in figures) and not all(c.is_within_0_and_1 for c in others):
        raise InputError(f"{path}: {listed(figures)} is in [0, 1], and the other columns are not; {MEND}")
    return classes


def _names(columns: Sequence[Column], rest: Sequence[Column]) -> Column | None:
    """The column of names of rows: one of a usual name, text before numbers; else an index, else files in the first."""
    usual = [c for c in rest if c.key in ROWS and c.kind in ("text", "integers", "whole numbers", "dates")]
    if usual:
        return min(usual, key=lambda column: (column.kind != "text", ROWS.index(column.key)))
    if index := next((c for c in rest if c.is_index and c.kind in ("text", "integers", "whole numbers")), None):
        return index
    first = columns[0]
    if first in rest and first.kind == "text" and first.share_of(r"\.[A-Za-z]{3,4}$|/") == 1:
        return first
    return None
