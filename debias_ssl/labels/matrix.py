"""Predictions of any classifier: an N x C matrix of logits or probabilities from a file, with names of classes."""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Num
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from torch import Tensor

from debias_ssl.data.sources.label_files import read_text
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.labels.debiasing import check_finite, rows_of_chunk
from debias_ssl.labels.truth import RowNumbers
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

Kind = Literal["logits", "probs"]
# Columns of a table that are no class: those of labels.csv, and names of rows.
NO_CLASSES = {"path", "row", "name", "label", "confidence", "top2_gap", "plain_label", "plain_confidence"}
# How far a row of probabilities may be off its sum of 1: bf16 rounds by up to 1/256, and its type is lost in a file.
SUM_TOLERANCE = 5e-3
# Before the names of classes in the columns of `debias-ssl predict`.
PREFIX = "p_"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A matrix whose rows are known to be finite and to say something."""

    values: Num[np.ndarray, "N C"]
    """Memory-mapped where the file allows it."""
    kind: Kind
    found: str
    """How the kind was found, for people."""
    classes: tuple[str, ...]
    names: Sequence[str]
    """Of the rows; their numbers where the file has no names."""

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        """The logits in chunks, in fp32; those of probabilities p are log max(p, 1e-8)."""
        for _, values in _chunks(self.values):
            yield values.clamp(min=SMALLEST_PROBABILITY).log() if self.kind == "probs" else values


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    values: Num[np.ndarray, "N C"]
    classes: tuple[str, ...] | None
    names: Sequence[str] | None = None


def read_predictions(
    path: Path, kind: Literal["auto", "logits", "probs"] = "auto", classes_file: Path | None = None
) -> Predictions:
    """Reads .npy, .npz, .csv or .parquet; a matrix in .npy stays on the disk.

    Args:
        path: the file. The columns of a table are p_CLASS, or else all columns of numbers that are no column of
            labels.csv; a CSV file without a first line of names has classes only.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 for probabilities.
        classes_file: names of the columns; else those of a classes.json beside .npy or .npz, or of the table, or
            numbers.

    Raises:
        InputError: the file or the matrix in it cannot be used.
    """
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: name a file")
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"{str(path)!r} is none of {', '.join(readers)}; numpy.save writes .npy")
    matrix = readers[path.suffix.lower()](path)
    num_rows, num_classes = matrix.values.shape
    if num_rows == 0 or num_classes < 2:
        raise InputError(
            f"{path} has {num_rows} rows and {num_classes} classes; at least one row and two classes are needed"
        )
    classes = _class_names(path, matrix, classes_file)
    found_kind, found = _check(matrix, classes, kind, path)
    names = RowNumbers(num_rows) if matrix.names is None else matrix.names
    return Predictions(values=matrix.values, kind=found_kind, found=found, classes=classes, names=names)


def read_class_names(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes, and what prompts call them: where nothing else is said, the same.

    Args:
        path: text of one class a line, NAME or NAME<tab>PROMPT NAME, or a JSON list of names.

    Raises:
        InputError: a name is blank or there twice, or there are none.
    """
    text = read_text(path)
    if path.suffix == ".json":
        try:
            lines = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {reason(error)}") from error
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise InputError(f"{path} must be a list of class names")
        pairs, (unit, units) = [(line, line) for line in lines], ("entry", "entries")
    else:
        parts = [line.split("\t", 1) for line in text.rstrip().splitlines()]
        pairs, (unit, units) = [(part[0].strip(), part[-1].strip()) for part in parts], ("line", "lines")
    if not pairs:
        raise InputError(f"{path} has no class names")
    lines_of: dict[str, int] = {}
    for line, (name, prompt) in enumerate(pairs, start=1):
        if not name.strip() or not prompt:
            raise InputError(f"{path}, {unit} {line}: the name of a class is blank; remove it or fill it in")
        if name in lines_of:
            raise InputError(f"{path}: {units} {lines_of[name]} and {line} are both {name!r}; names must differ")
        lines_of[name] = line
    names, prompts = zip(*pairs, strict=True)
    return names, prompts


def _class_names(path: Path, matrix: _Matrix, classes_file: Path | None) -> tuple[str, ...]:
    beside = path.parent / "classes.json"
    if classes_file is None and matrix.classes is None and beside.is_file():
        classes_file = beside
    num_classes = matrix.values.shape[1]
    if classes_file is None:
        return matrix.classes or tuple(map(str, range(num_classes)))
    classes, _ = read_class_names(classes_file)
    if len(classes) != num_classes:
        raise InputError(
            f"{path} has {num_classes} classes, {classes_file} names {len(classes)}: pass the right --classes"
        )
    if matrix.classes not in (None, classes) and set(matrix.classes or ()) == set(classes):
        raise InputError(f"{classes_file} has the classes of {path} in another order: leave out --classes")
    return classes


def _chunks(values: Num[np.ndarray, "N C"]) -> Iterator[tuple[int, Float[Tensor, "n C"]]]:
    """Parts of a matrix in fp32, each with the number of its first row."""
    step = rows_of_chunk(values.shape[1])
    for first in range(0, len(values), step):
        # Too large a number becomes infinite, which is told of as such.
        with np.errstate(over="ignore"):
            yield first, torch.from_numpy(np.array(values[first : first + step], dtype=np.float32))


def _check(
    matrix: _Matrix, classes: tuple[str, ...], kind: Literal["auto", "logits", "probs"], path: Path
) -> tuple[Kind, str]:
    """Finds what the numbers are in one pass, and raises InputError where they cannot be used."""
    lowest, highest, off = np.inf, -np.inf, 0.0
    least, largest = np.inf, -np.inf
    for first, chunk in _chunks(matrix.values):
        check_finite(chunk, first, classes)
        low, high = (float(value) for value in chunk.aminmax())
        if low <= 0 <= high and len(zeros := (chunk == 0).all(-1).nonzero()):
            raise InputError(
                f"{path}: row {first + int(zeros[0])} (from 0) is all zeros, which is not a prediction; "
                "remove the row, or fill it in"
            )
        lowest, highest = min(lowest, low), max(highest, high)
        sums = chunk.sum(-1)
        off = max(off, float((sums - 1).abs().max()))
        least, largest = min(least, float(sums.min())), max(largest, float(sums.max()))
    in_range = lowest >= 0 and highest <= 1 + SUM_TOLERANCE
    if kind == "probs" and not in_range:
        outside = lowest if lowest < 0 else highest
        raise InputError(f"{path} has {outside:g}, which is not a probability: pass --kind logits")
    if kind != "auto":
        return kind, "as told"
    if in_range and off <= SUM_TOLERANCE:
        return "probs", "all rows are in [0, 1] and sum to 1"
    if lowest >= 0 and largest - least <= 0.02 * largest and highest > 1:
        raise InputError(
            f"{path} has rows without a negative number that all sum to {largest:g}, as parts of a whole do: "
            "divide them by that, or pass --kind logits"
        )
    if in_range:
        return "logits", f"in [0, 1], but a row's sum is off 1 by {off:.3g}: if these are probabilities, --kind probs"
    return "logits", "not all rows are in [0, 1] and sum to 1"


def _read_npy(path: Path) -> _Matrix:
    try:
        values = read_array(path, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _Matrix(values=_usable(values, path), classes=None)


def _read_npz(path: Path) -> _Matrix:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it does not hold an array")
    # NumPy and zipfile raise nearly anything for files that are damaged.
    except (OSError, ValueError, EOFError, AttributeError, SyntaxError, TokenError, BadZipFile, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _Matrix(values=_usable(_of_archive(arrays, path), path), classes=None)


def _usable(values: np.ndarray, path: Path) -> Num[np.ndarray, "N C"]:
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InputError(
            f"{path} holds {values.dtype} of shape {values.shape}; a matrix of numbers is needed, a row for each image"
        )
    return values


def _of_archive(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    names = [name for name in ("logits", "probs") if name in arrays]
    names = names or [name for name, array in arrays.items() if array.ndim == 2]
    if len(names) != 1:
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; one matrix is needed, or one named logits or probs"
        )
    return arrays[names[0]]


def _read_csv(path: Path) -> _Matrix:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        head = next(csv.reader(file), [])
    numbered = [str(k) for k in range(len(head))]
    # A line 0,1,2,... are the names that pandas gives to columns without any.
    has_names = head == numbered or not all(map(_is_number, head))
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=None if has_names else numbered),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _from_table(table, path)


def _read_parquet(path: Path) -> _Matrix:
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _from_table(table, path)


def _from_table(table: Any, path: Path) -> _Matrix:
    """The classes' columns of a table, and the column that names its rows."""
    try:
        table.column_names  # noqa: B018 - pyarrow decodes them here
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    blank = next((i for i, name in enumerate(table.column_names) if not name.strip()), None)
    if blank is not None:
        raise InputError(f"{path}: column {blank + 1} has no name; pandas leaves its index out by index=False")
    twice = next((name for name, num in Counter(table.column_names).items() if num > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns {twice!r}; names of classes must differ")
    columns = [name for name in table.column_names if name not in NO_CLASSES]
    prefixed = [name for name in columns if name.startswith(PREFIX)]
    has_prefix = len(prefixed) > 1
    classes, arrays = [], []
    for name in prefixed if has_prefix else columns:
        array = table[name].to_numpy()
        if array.dtype.kind in "fiu":
            classes.append(name.removeprefix(PREFIX) if has_prefix else name)
            arrays.append(array.astype(np.float32))
        elif has_prefix or any(_is_number(str(value)) for value in array):
            raise InputError(f"{path}: column {name!r} has text among its numbers; fix it, or remove the column")
    if table.num_rows and len(classes) < 2:
        raise InputError(
            f"{path} has {len(classes)} columns of numbers, {', '.join(map(repr, table.column_names))[:200]}; at least "
            "two classes are needed, divided by commas, with decimal points"
        )
    key = next((name for name in ("path", "name") if name in table.column_names), None)
    return _Matrix(
        values=np.stack(arrays, axis=1) if arrays else np.zeros((table.num_rows, 0), dtype=np.float32),
        classes=tuple(classes),
        names=None if key is None else [str(name) for name in table[key].to_pylist()],
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
