"""Label files: which image has which class, how confidently, and the probabilities of all classes."""

import json
import os.path
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float64, Int64, Num

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.shards import member_named
from debias_ssl.data.sources.spellings import spellings
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.outputs import check_whole
from debias_ssl.system.tables import LABELS, PATHS, check_text, read_table, read_text

# What programs write where there is no label, in any case of its letters; -1 is scikit-learn's.
UNKNOWN_WORDS = {"", "nan", "none", "null", "na", "<na>", "n/a", "#n/a", "-1"}
# By what part of itself float16 rounds a probability at most, or decides a tie; and what six decimals leave out.
ROUNDING, DECIMALS = 2**-9, 1e-6
# What `--probs top5` writes: the largest probabilities of each row, and the numbers of their classes.
TOP5 = ("top5_probs.npy", "top5_classes.npy")
# How all probabilities come to be there.
FULL = "run that job again with --probs full"
# Rows of probabilities that are in memory at a time.
ROWS_CHECKED = 2**14


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """The rows of a label file, or the lines of a list."""

    paths: list[Path]
    labels: list[str]
    """Names of classes; empty where unknown."""
    lines: list[int]
    """Numbers of the lines that the rows end in."""
    notes: tuple[str, ...]
    """What people should know of how it was read."""


def read_label_file(
    path: Path,
    root: Path | None,
    classes: Collection[str] = (),
    *,
    root_setting: str = "data.root",
    needs_labels: bool = False,
) -> LabelFile:
    """Paths and class names from a CSV, TSV or Parquet file, which has more of them under usual names of columns.

    Further columns are ignored. Relative paths are relative to `root`, or to the file's folder, absolute ones must lie
    below it, and none leaves it. They may go on into tar files.

    Args:
        path: the file.
        root: the folder that a user named.
        classes: names that are classes even if they are words for an unknown one, such as "None".
        root_setting: by which users name the folder.
        needs_labels: whether an unknown label is an error.

    Raises:
        InputError: the file or a row cannot be used.
    """
    table = read_table(path)
    key, label = table.column(PATHS), table.column(LABELS)
    if key is None or (label is None and needs_labels):
        raise InputError(f"{path}: the first line must name the columns, path and label; it is {[*table.header]}")
    names, labels, words = [], [], []
    for line, cells in table:
        name, word = cells[key], "" if label is None else cells[label].strip()
        check_text(word, path, line)
        if not name.strip():
            raise InputError(f"{path}, line {line}: there is no path")
        # "None" may be a class.
        if is_unknown(word, classes) and not (word and word in read_classes(path)):
            if needs_labels:
                meant = f": {word!r} says that it is unknown, unless a classes.json beside the file lists it"
                mend = "; with data.min_confidence 0, such rows are unlabeled" if has_confidence(path) else ""
                raise InputError(f"{path}, line {line}: {name} has no label{meant if word else mend}")
            words += [word] if word else []
            word = ""
        names.append((line, name))
        labels.append(word)
    if not names:
        raise InputError(f"{path} lists no images")
    notes = table.notes(PATHS, LABELS)
    if words:
        notes.append(f"{path}: {len(words)} labels, such as {words[0]!r}, say that the class is unknown")
    return _found(path, root, root_setting, names, labels, notes)


def read_list(path: Path, root: Path | None, root_setting: str = "data.root") -> LabelFile:
    """Paths from a text file of one a line, as `read_label_file` takes them.

    Raises:
        InputError: the file or a line cannot be used.
    """
    lines = enumerate(read_text(path).replace("\r\n", "\n").split("\n"), start=1)
    names = [(line, name) for line, name in lines if name.strip()]
    if not names:
        raise InputError(f"{path} lists no images")
    return _found(path, root, root_setting, names, [""] * len(names), [])


def is_unknown(label: str, classes: Collection[str]) -> bool:
    """Whether a label is a word for an unknown one, and not the name of a class."""
    return label.lower() in UNKNOWN_WORDS and label not in classes


def _found(
    path: Path, root: Path | None, root_setting: str, names: list[tuple[int, str]], labels: list[str], notes: list[str]
) -> LabelFile:
    """The files that have these names."""
    places = _Places(listed_in=path, root=path.parent if root is None else root)
    paths, respelled = [], []
    for line, name in names:
        found = places.find(name)
        if found is None:
            raise InputError(f"{path}, line {line}: {_what_is_wrong(places, name, names, root, root_setting)}")
        paths.append(found[0])
        respelled += [(name, found[1])] if found[1] != name else []
    if respelled:
        told = " is found as ".join(map(repr, respelled[0]))
        notes.append(f"{path}: {len(respelled)} paths are spelled otherwise than their files: {told}")
    return LabelFile(paths=paths, labels=labels, lines=[line for line, _ in names], notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where the files of a list may be."""

    listed_in: Path
    root: Path
    """The folder below which they must lie."""

    def find(self, name: str) -> tuple[Path, str] | None:
        """The file that a name means, and the spelling that it was found by."""
        for spelled in spellings(name):
            for path in self.below(spelled):
                if os.path.isfile(path) or member_named(path) is not None:
                    return Path(path), spelled
        return None

    def below(self, name: str) -> Iterator[str]:
        """Paths that a name may mean, of those that lie below the root: relative to the root, then to the list."""
        for folder in dict.fromkeys((self.root, self.listed_in.parent)):
            path = os.path.normpath(folder / name)
            if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.root)):
                yield path
        if os.path.isabs(name):
            # The root, or a folder above it, may be a link.
            inner = os.path.relpath(os.path.realpath(name), os.path.realpath(self.root))
            if inner.split(os.sep)[0] != os.pardir:
                yield str(self.root / inner)


def _what_is_wrong(
    places: _Places, name: str, names: list[tuple[int, str]], root: Path | None, root_setting: str
) -> str:
    """Why a name means no file, and how to mend it."""
    folder, verb = str(places.root), f"set {root_setting} to"
    if root_setting.startswith("--"):
        verb = f"pass {root_setting}"
    path = next(places.below(name), None)
    if path is None:
        folders = {os.path.dirname(os.path.abspath(places.listed_in.parent / each)) for _, each in names}
        common = os.path.commonpath(folders)
        hint = repr(common) if common != os.sep else "a folder that holds it"
        return f"{name!r} lies outside {folder!r}; to read files there, {verb} {hint}"
    hint = f"is {root_setting} right?" if root else f"where paths are not relative to {folder!r}, {verb} their folder"
    return f"there is no file {path!r}; {hint}"


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
    values = []
    for line, cells in table:
        try:
            values.append(table.number(cells[column]))
        except ValueError as error:
            raise InputError(f"{path}, line {line}: the confidence {cells[column]!r} is not a number") from error
        if not 0 <= values[-1] <= 1:
            raise InputError(f"{path}, line {line}: the confidence {cells[column]} is outside [0, 1]")
    return np.array(values, dtype=np.float64)


def has_confidence(path: Path) -> bool:
    """Whether labels are a model's, which says how confident it is, and not what people have seen."""
    return path.is_file() and read_table(path).column(("confidence",)) is not None


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of the folder that a label file lies in, some of which no row may have; none where unknown."""
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
    """Rows whose confidence is `at_least` so high, or else the `per_class` most confident rows of each class."""
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
        folder: written by `debias-ssl label` or `debias`.
        root: what the paths in the table are relative to; None is the folder.
        names: paths of the images; one that is not listed gets zeros.
        classes: the order of the columns.

    Raises:
        InputError: files are missing or do not fit together, or none of the images is listed. Where somebody has sorted
            the table, its rows are no longer those of the probabilities.
    """
    check_whole(folder / "probs.npy")
    if not (folder / "probs.npy").is_file():
        cut = ", but the five largest of each row alone" if (folder / TOP5[0]).is_file() else ""
        raise InputError(f"data.probs: {str(folder)!r} has no probs.npy{cut}; where label or debias made it, {FULL}")
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
    if probs.shape != (len(listed.paths), len(own)):
        raise InputError(f"{str(folder / 'probs.npy')!r} is {probs.shape}, {table.name} and classes.json say otherwise")
    _check_rows(table, listed, own, probs)
    row = {os.path.abspath(path): i for i, path in enumerate(listed.paths)}
    found = np.array([row.get(os.path.abspath(name), -1) for name in names])
    if (found < 0).all():
        raise InputError(
            f"data.probs: {str(folder)!r} lists none of the images, such as {names[0]!r}; is data.root right?"
        )
    given = np.zeros((len(names), len(classes)), dtype=np.float16)
    columns = [own.index(name) for name in classes]
    given[found >= 0] = probs[found[found >= 0]][:, columns]
    return given


def _check_rows(path: Path, listed: LabelFile, classes: tuple[str, ...], probs: Float16[np.ndarray, "N C"]) -> None:
    """Raises InputError where a row of a table has not the label or the confidence of its row of probs.npy."""
    number = {name: k for k, name in enumerate(classes)} | {"": UNKNOWN}
    labels = np.array([number.get(label, len(classes)) for label in listed.labels])
    confidence = read_confidence(path) if has_confidence(path) else None
    i = contradicting_row(probs, labels, confidence)
    if i is not None:
        told = "" if confidence is None else f" with confidence {confidence[i]:.3f}"
        raise InputError(
            f"{path}, line {listed.lines[i]}: {listed.labels[i]!r}{told}, but row {i} of probs.npy has "
            f"{classes[int(probs[i].argmax())]!r} with {probs[i].max():.3f}: {path.name} was sorted or changed; put it "
            "back as it was written, or make the folder anew"
        )


def contradicting_row(
    probs: Num[np.ndarray, "N C"], labels: Int64[np.ndarray, " N"], confidence: Float64[np.ndarray, " N"] | None
) -> int | None:
    """The first row whose label or confidence is not that of its probabilities; None where all rows agree.

    Of two classes whose probabilities differ by the rounding of float16 alone, either may be the label.

    Args:
        probs: probabilities, or logits if there are no confidences.
        labels: class numbers, negative where unknown; C is no class.
        confidence: of the labels; None is not compared.
    """
    for first in range(0, len(labels), ROWS_CHECKED):
        rows = np.arange(first, min(first + ROWS_CHECKED, len(labels)))
        part, label = np.asarray(probs[rows], dtype=np.float64), labels[rows]
        highest, known = part.max(1), (label >= 0) & (label < probs.shape[1])
        own = part[np.arange(len(rows)), np.where(known, label, 0)]
        rounding = ROUNDING * highest + DECIMALS
        wrong = (label == probs.shape[1]) | known & (own < highest - rounding)
        if confidence is not None:
            # What is not a number is wrong too.
            wrong |= ~(np.abs(confidence[rows] - highest) <= rounding)
        if wrong.any():
            return int(rows[wrong.argmax()])
    return None
