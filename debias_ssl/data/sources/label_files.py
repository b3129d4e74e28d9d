"""Reads label files: the class of each image, its confidence, and the probabilities of all classes."""

import json
import os.path
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float64, Int64, Num

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.listed_files import ListedFiles, find_listed
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.outputs import check_whole
from debias_ssl.system.tables import LABELS, PATHS, check_text, read_lines, read_table, read_text
from debias_ssl.system.texts import places_in, texts_of

# Words that programs write for an unknown label, in upper or lower case; scikit-learn writes -1.
UNKNOWN_WORDS = {"", "nan", "none", "null", "na", "<na>", "n/a", "#n/a", "-1"}
# Largest relative rounding error of float16, with the step that decides ties; and the precision of six decimals.
ROUNDING, DECIMALS = 2**-9, 1e-6
# The files of `--probs top5`: the largest probabilities of each row, and the numbers of their classes.
TOP5 = ("top5_probs.npy", "top5_classes.npy")
# How to get the file of all probabilities.
FULL = "run that job again with --probs full"
# Number of rows of probabilities in memory at a time.
ROWS_CHECKED = 2**14


@dataclass(frozen=True, kw_only=True)
class LabelFile(ListedFiles):
    """The rows of a label file, or the lines of a list."""

    labels: list[str]
    """Names of classes, empty if unknown. All rows of a class share one string."""


def read_label_file(
    path: Path,
    root: Path | None,
    classes: Collection[str] = (),
    *,
    root_setting: str = "data.root",
    needs_labels: bool = False,
) -> LabelFile:
    """Paths and class names from a CSV, TSV or Parquet file with usual names of columns; other columns are ignored.

    Relative paths are relative to `root`, or to the folder of the file. All files must lie below this folder. Paths may
    lead into tar files.

    Args:
        path: the file.
        root: the folder that the user has set; None is the folder of the file.
        classes: names that are classes, even if they are words for an unknown label such as "None".
        root_setting: the setting with which users set the root.
        needs_labels: whether an unknown label is an error.

    Raises:
        InputError: the file or a row cannot be used.
    """
    table = read_table(path)
    key, label = table.column(PATHS), table.column(LABELS)
    if key is None or (label is None and needs_labels):
        raise InputError(f"{path}: the first line must name the columns, path and label; it is {[*table.header]}")
    labels, words, beside = [], [], cache(partial(read_classes, path))
    # All rows of a class share one string.
    known: dict[str, str] = {}

    def rows() -> Iterator[tuple[int, str]]:
        return ((line, cells[key]) for line, cells in table)

    def labeled_rows() -> Iterator[tuple[int, str]]:
        for line, cells in table:
            name, word = cells[key], "" if label is None else cells[label].strip()
            check_text(word, path, line)
            if not name.strip():
                raise InputError(f"{path}, line {line}: there is no path")
            # "None" may be a class.
            if is_unknown(word, classes) and not (word and word in beside()):
                if needs_labels:
                    meant = f": {word!r} means unknown, unless a classes.json beside the file lists it as a class"
                    mend = "; with data.min_confidence 0, such rows are unlabeled" if has_confidence(path) else ""
                    raise InputError(f"{path}, line {line}: {name} has no label{meant if word else mend}")
                if word:
                    words.append(known.setdefault(word, word))
                word = ""
            labels.append(known.setdefault(word, word))
            yield line, name

    listed = find_listed(path, root, root_setting, labeled_rows(), rows)
    notes = table.notes(PATHS, LABELS)
    if words:
        notes.append(f"{path}: {len(words)} labels, such as {words[0]!r}, mean that the class is unknown")
    return LabelFile(files=listed.files, labels=labels, lines=listed.lines, notes=(*notes, *listed.notes))


def read_list(path: Path, root: Path | None, root_setting: str = "data.root") -> LabelFile:
    """Paths from a text file with one path in each line, as in `read_label_file`.

    Raises:
        InputError: the file or a line cannot be used.
    """

    def rows() -> Iterator[tuple[int, str]]:
        lines = (line.removesuffix("\r\n").removesuffix("\n") for line in read_lines(path, "\n"))
        return ((number, name) for number, name in enumerate(lines, start=1) if name.strip())

    listed = find_listed(path, root, root_setting, rows(), rows)
    return LabelFile(files=listed.files, labels=[""] * len(listed.files), lines=listed.lines, notes=listed.notes)


def is_unknown(label: str, classes: Collection[str]) -> bool:
    """Whether a label is a word for an unknown label, and not the name of a class."""
    return label.lower() in UNKNOWN_WORDS and label not in classes


def read_confidence(path: Path) -> Float64[np.ndarray, " N"]:
    """The confidence column of a label file.

    Raises:
        InputError: it has none, or a confidence is not a number in [0, 1].
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a CSV file with a confidence column, as debias-ssl label writes one")
    table = read_table(path)
    column = table.column(("confidence",))
    if column is None:
        raise InputError(f"{path} has no confidence column; its columns are {[*table.header]}")
    values = array("d")
    for line, cells in table:
        try:
            values.append(table.number(cells[column]))
        except ValueError as error:
            raise InputError(f"{path}, line {line}: the confidence {cells[column]!r} is not a number") from error
        if not 0 <= values[-1] <= 1:
            raise InputError(f"{path}, line {line}: the confidence {cells[column]} is outside [0, 1]")
    return np.frombuffer(values, dtype=np.float64)


def has_confidence(path: Path) -> bool:
    """Whether a model gave the labels, because the file has confidences; else people gave them."""
    return path.is_file() and read_table(path).column(("confidence",)) is not None


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names in the folder of a label file, including classes without rows; empty if unknown."""
    names = path.parent / "classes.json"
    if not names.is_file():
        return ()
    try:
        classes = json.loads(read_text(names))
    except ValueError as error:
        raise InputError(f"{names} is not a list of class names: {reason(error)}") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise InputError(f"{names} is not a list of class names")
    for name in classes:
        check_text(name, names)
    return tuple(classes)


def confident(
    labels: Int64[np.ndarray, " N"],
    confidence: Float64[np.ndarray, " N"],
    num_classes: int,
    at_least: float | None,
    per_class: int | None,
) -> Bool[np.ndarray, " N"]:
    """Rows with a confidence of at least `at_least`, or else the `per_class` most confident rows of each class."""
    if at_least is not None:
        return (confidence >= at_least) & (labels >= 0)
    chosen = np.zeros(len(labels), dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    for k in range(num_classes):
        chosen[order[labels[order] == k][:per_class]] = True
    return chosen


def table_beside(path: Path) -> Path:
    """The table of labels beside a file that `label` or `debias` wrote."""
    table = path.with_name("labels.parquet")
    return table if table.is_file() else path.with_name("labels.csv")


def read_probs(
    folder: Path, root: Path | None, names: Sequence[str], classes: tuple[str, ...]
) -> Float16[np.ndarray, "N C"]:
    """Class probabilities of images, from the table of labels, probs.npy and classes.json of a folder.

    Args:
        folder: a folder of `debias-ssl label` or `debias`.
        root: the folder that the paths in the table are relative to; None is `folder`.
        names: paths of the images; images that are not listed get zeros.
        classes: the order of the columns.

    Raises:
        InputError: files are missing or do not fit together (for example because the table was sorted), or no image is
            listed.
    """
    check_whole(folder / "probs.npy")
    if not (folder / "probs.npy").is_file():
        cut = ", only the five largest of each row" if (folder / TOP5[0]).is_file() else ""
        raise InputError(f"data.probs: {str(folder)!r} has no probs.npy{cut}; if label or debias wrote it, {FULL}")
    table = table_beside(folder / "probs.npy")
    own = read_classes(table)
    if set(own) != set(classes):
        differing = sorted(set(own) ^ set(classes))
        raise InputError(f"data.probs: the classes of {str(folder)!r} are others, such as {differing[:1] or 'none'}")
    listed = read_label_file(table, root, own)
    try:
        probs = read_array(folder / "probs.npy", "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(folder / 'probs.npy')!r}: {reason(error)}") from error
    if probs.shape != (len(listed.files), len(own)):
        raise InputError(f"{str(folder / 'probs.npy')!r} is {probs.shape}, {table.name} and classes.json say otherwise")
    _check_rows(table, listed, own, probs)
    found = places_in(*(texts_of(map(os.path.abspath, each)) for each in (names, listed.files)))
    if (found < 0).all():
        raise InputError(
            f"data.probs: {str(folder)!r} lists none of the images, such as {names[0]!r}; is data.root right?"
        )
    given = np.zeros((len(names), len(classes)), dtype=np.float16)
    columns = [own.index(name) for name in classes]
    given[found >= 0] = probs[found[found >= 0]][:, columns]
    return given


def _check_rows(path: Path, listed: LabelFile, classes: tuple[str, ...], probs: Float16[np.ndarray, "N C"]) -> None:
    """Raises InputError if a row of a table has another label or confidence than its row of probs.npy."""
    number = {name: k for k, name in enumerate(classes)} | {"": UNKNOWN}
    labels = np.array([number.get(label, len(classes)) for label in listed.labels])
    confidence = read_confidence(path) if has_confidence(path) else None
    i = contradicting_row(probs, labels, confidence)
    if i is not None:
        told = "" if confidence is None else f" with confidence {confidence[i]:.3f}"
        raise InputError(
            f"{path}, line {listed.lines[i]}: {listed.labels[i]!r}{told}, but row {i} of probs.npy has "
            f"{classes[int(probs[i].argmax())]!r} with {probs[i].max():.3f}: {path.name} was sorted or changed; "
            "restore the file, or write the folder again"
        )


def contradicting_row(
    probs: Num[np.ndarray, "N C"], labels: Int64[np.ndarray, " N"], confidence: Float64[np.ndarray, " N"] | None
) -> int | None:
    """The first row whose label or confidence contradicts its probabilities; None if all rows agree.

    If two probabilities differ only by the rounding of float16, either class may be the label.

    Args:
        probs: probabilities, or logits if there are no confidences.
        labels: class numbers, negative if unknown; C is not a class.
        confidence: confidences of the labels; None compares only labels.
    """
    for first in range(0, len(labels), ROWS_CHECKED):
        rows = np.arange(first, min(first + ROWS_CHECKED, len(labels)))
        part, label = np.asarray(probs[rows], dtype=np.float64), labels[rows]
        highest, known = part.max(1), (label >= 0) & (label < probs.shape[1])
        own = part[np.arange(len(rows)), np.where(known, label, 0)]
        rounding = ROUNDING * highest + DECIMALS
        wrong = (label == probs.shape[1]) | known & (own < highest - rounding)
        if confidence is not None:
            # The negation counts NaN as wrong too.
            wrong |= ~(np.abs(confidence[rows] - highest) <= rounding)
        if wrong.any():
            return int(rows[wrong.argmax()])
    return None
