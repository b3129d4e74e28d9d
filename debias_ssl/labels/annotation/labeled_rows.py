"""Reads existing labels with the names of their rows: from a folder of labels, or a table of path and label."""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from debias_ssl.data.sources.folder import is_table
from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.label_files import (
    LabelFile,
    is_unknown,
    read_classes,
    read_label_file,
    table_beside,
)
from debias_ssl.data.sources.shards import is_shards
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.tables.column_roles import PREFIX
from debias_ssl.labels.tables.row_names import match
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.outputs import SUMMARY
from debias_ssl.system.tables import LABELS, PATHS, Table, check_text, read_table, read_text
from debias_ssl.system.texts import texts_of

SOURCE = ("source",)


@dataclass(frozen=True, kw_only=True)
class LabeledRows:
    """The rows of a table of labels."""

    table: Path
    """The file."""
    names: Sequence[str]
    """Paths of the images as the table has them; their numbers where it has no paths."""
    classes: tuple[str, ...]
    label: Int64[np.ndarray, " N"]
    """Class numbers, negative where a row has no label."""
    confidence: Float64[np.ndarray, " N"] | None
    """Of the labels; None where the table has none."""
    plain_label: Int64[np.ndarray, " N"] | None
    """Class numbers before debiasing; None where the table has none."""
    plain_confidence: Float64[np.ndarray, " N"] | None
    source: Sequence[str] | None
    """Who gave each label; None where the table does not say it."""
    positions: Int64[np.ndarray, " N"]
    """Which rows of the table these are."""
    notes: tuple[str, ...] = ()
    """Notes for users about how the table was read."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def has_paths(self) -> bool:
        return not isinstance(self.names, RowNumbers)

    def name_of(self, number: int) -> str:
        """The name of a class; empty for a negative number."""
        return self.classes[number] if number >= 0 else ""

    def part(self, positions: Int64[np.ndarray, " P"]) -> "LabeledRows":
        """Some of the rows, in their order."""

        def some(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[positions]

        return replace(
            self,
            names=[self.names[int(i)] for i in positions],
            label=self.label[positions],
            confidence=some(self.confidence),
            plain_label=some(self.plain_label),
            plain_confidence=some(self.plain_confidence),
            source=None if self.source is None else [self.source[int(i)] for i in positions],
            positions=self.positions[positions],
        )

    def files(self, root: Path | None) -> LabelFile:
        """The files of these rows, each of which is there.

        Args:
            root: what the paths are relative to; None is the folder of the table.

        Raises:
            InputError: the rows have no paths, or a file is not there.
        """
        if not self.has_paths:
            raise InputError(
                f"{self.table} has no paths of images, only numbers of rows: --to cleanlab or parquet fits"
            )
        listed = read_label_file(self.table, root, self.classes, root_setting="--root")
        return replace(listed, files=[listed.files[int(i)] for i in self.positions], labels=[])

    def probabilities(self) -> Float32[np.ndarray, "N C"] | None:
        """Of all classes, each row with the sum 1; None where nothing has them.

        Raises:
            InputError: they do not belong to these rows.
        """
        path = self.table if _classes_in_header(read_table(self.table)) else self.table.with_name("probs.npy")
        if not path.is_file():
            return None
        predictions = read_predictions(path)
        if predictions.classes != self.classes or len(predictions.values) <= self.positions.max(initial=0):
            raise InputError(f"{path} has other rows or classes than {self.table}: the two are from different jobs")
        chunks = [chunk.softmax(-1).numpy() for chunk in predictions.at(self.positions)]
        return np.concatenate(chunks).astype(np.float32)


def read_labeled_rows(where: Path) -> LabeledRows:
    """Labels of a folder that `label`, `debias`, `vote` or `import-labels` wrote, or of a table such as `predict`'s.

    Args:
        where: the folder, or a CSV, TSV or Parquet file with the columns path and label.

    Raises:
        InputError: there is none, or a row cannot be used.
    """
    path = table_beside(where / "labels.csv") if where.is_dir() else where
    if not path.is_file():
        mend = "name a folder that label, debias or vote wrote, or a file with the columns path and label"
        raise InputError(f"there is no file {str(path)!r}: {mend}")
    table = read_table(path)
    key, label = table.column(PATHS), table.column(LABELS)
    if label is None or (key is None and table.column(("row",)) is None):
        raise InputError(f"{path}: the first line must name the columns, path and label; it is {[*table.header]}")
    known = _classes_in_header(table) or read_classes(path)
    names, labels = texts_of(cells[key or 0] for _, cells in table), _Labels(table, known)
    label_codes = labels.of(label)
    plain = table.column(("plainlabel",))
    plain_codes = None if plain is None else labels.of(plain)
    classes, order = labels.classes()
    source = table.column(SOURCE)
    return LabeledRows(
        table=path,
        names=RowNumbers(len(names)) if key is None else names,
        classes=classes,
        label=order[label_codes],
        confidence=_fractions(table, "confidence"),
        plain_label=None if plain_codes is None else order[plain_codes],
        plain_confidence=_fractions(table, "plainconfidence"),
        source=None if source is None else texts_of(cells[source] for _, cells in table),
        positions=np.arange(len(names)),
        notes=tuple(table.notes(PATHS, LABELS)),
    )


def known_at(values: Float64[np.ndarray, " N"] | None, row: int) -> float | None:
    """The confidence of a row; None where it has none."""
    return None if values is None or np.isnan(values[row]) else float(values[row])


def root_of(where: Path, given: str | None) -> Path | None:
    """The folder that the paths of labels are relative to: the one that is given, or that the labels' own job had.

    None where neither is known.
    """
    if given is not None:
        return Path(given)
    try:
        made_with = json.loads(read_text((where if where.is_dir() else where.parent) / SUMMARY))
        root, images = made_with.get("root"), made_with.get("images")
    except (InputError, ValueError, AttributeError):
        return None
    if isinstance(root, str):
        return Path(root)
    if not isinstance(images, str):
        return None
    return Path(images) if Path(images).is_dir() and not is_shards(images) else Path(images).parent


def chosen_rows(rows: LabeledRows, path: Path) -> LabeledRows:
    """The rows that a list names, in the order of the list.

    Args:
        rows: all of them.
        path: a table with a column path, such as that of `suggest`, or a text file of one path a line.

    Raises:
        InputError: it cannot be read, or a path of it means no row.
    """
    if is_table(path):
        table = read_table(path)
        if (key := table.column(PATHS)) is None:
            raise InputError(f"{path}: the first line must name a column path; it is {[*table.header]}")
        wanted = [cells[key] for _, cells in table]
    else:
        wanted = [line for line in read_text(path).splitlines() if line.strip()]
    found = match(wanted, rows.names)
    if found.unmatched is not None or found.num_matched < len(wanted):
        entry = found.unmatched[0] if found.unmatched is not None else wanted[-1]
        why = f"; {found.cause}" if found.cause else ""
        raise InputError(f"--only {path} names {entry!r}, of which {rows.table} has no row{why}")
    positions = np.flatnonzero(found.entry_of >= 0)
    return rows.part(positions[np.argsort(found.entry_of[positions], kind="stable")])


def sorted_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes in order: of numbers by value, else of the alphabet."""
    are_numbers = all(name.isdecimal() for name in names)
    return tuple(sorted({*names}, key=lambda name: (int(name) if are_numbers else 0, name)))


class _Labels:
    """Numbers of the labels in the columns of a table, whose classes may be known by their rows alone."""

    def __init__(self, table: Table, known: tuple[str, ...]):
        self.table, self.known = table, known
        self.codes = {name: code for code, name in enumerate(known)}

    def of(self, column: int) -> Int64[np.ndarray, " N"]:
        """Codes of the labels in a column, negative where there is none."""
        codes = array("q")
        for line, cells in self.table:
            word = cells[column].strip()
            check_text(word, self.table.path, line)
            if word not in self.codes and is_unknown(word, self.known):
                codes.append(UNKNOWN)
                continue
            if self.known and word not in self.codes:
                raise InputError(
                    f"{self.table.path}, line {line}: {word!r} is not a class of the classes.json beside it"
                )
            codes.append(self.codes.setdefault(word, len(self.codes)))
        return np.frombuffer(codes, dtype=np.int64)

    def classes(self) -> tuple[tuple[str, ...], Int64[np.ndarray, " K"]]:
        """The classes, and the class number of each code; that of -1 is the last one."""
        classes = self.known or sorted_classes([*self.codes])
        number = {name: k for k, name in enumerate(classes)}
        return classes, np.array([*(number[name] for name in self.codes), UNKNOWN], dtype=np.int64)


def _classes_in_header(table: Table) -> tuple[str, ...]:
    """The classes of a table of `predict`, which has a column p_CLASS for each; of another table, none."""
    names = [name.removeprefix(PREFIX) for name in table.header if name.startswith(PREFIX)]
    return tuple(names) if len(names) > 1 else ()


def _fractions(table: Table, name: str) -> Float64[np.ndarray, " N"] | None:
    """A column of numbers in [0, 1]; nan where a cell is empty, and None where there is no such column."""
    column = table.column((name,))
    if column is None:
        return None
    return np.fromiter(_numbers(table, column), dtype=np.float64)


def _numbers(table: Table, column: int) -> Iterator[float]:
    for line, cells in table:
        text = cells[column].strip()
        try:
            value = table.number(text) if text else float("nan")
        except ValueError as error:
            raise InputError(f"{table.path}, line {line}: {text!r} is not a number: {reason(error)}") from error
        if value < 0 or value > 1:
            raise InputError(f"{table.path}, line {line}: {text} is outside [0, 1]")
        yield value
