"""Predictions of any classifier: an N x C matrix of logits or probabilities, with names of classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.labels.class_names import read_class_names
from debias_ssl.labels.debiasing import DebiasConfig, Rows, check_finite, rows_of_chunk
from debias_ssl.labels.matrix_files import Matrix, read_matrix
from debias_ssl.labels.truth import RowNumbers, read_labels, read_target
from debias_ssl.system.errors import InputError

Kind = Literal["logits", "probs"]
# How far a row of probabilities may be off its sum of 1: bf16 rounds by up to 1/256, and its type is lost in a file.
SUM_TOLERANCE = 5e-3


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
            yield values.clamp_(min=SMALLEST_PROBABILITY).log_() if self.kind == "probs" else values


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
    matrix = read_matrix(path)
    check_shape(matrix.values, str(path))
    return predictions_of(matrix.values, kind, _class_names(path, matrix, classes_file), matrix.names, str(path))


def predictions_of(
    values: Num[np.ndarray, "N C"],
    kind: Literal["auto", "logits", "probs"],
    classes: tuple[str, ...],
    names: Sequence[str] | None,
    source: str,
) -> Predictions:
    """A matrix whose numbers are checked, and taken for what they are.

    Args:
        values: the matrix.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 for probabilities.
        classes: names of the columns.
        names: of the rows; None where they have none.
        source: what errors call the matrix.

    Raises:
        InputError: the matrix cannot be used.
    """
    found_kind, found = _check(values, classes, kind, source)
    names = RowNumbers(len(values)) if names is None else names
    return Predictions(values=values, kind=found_kind, found=found, classes=classes, names=names)


def rows_of(predictions: Predictions, config: DebiasConfig, path: Path, blank: Path | None) -> Rows:
    """The rows of a matrix with what files say of them.

    Args:
        predictions: the matrix.
        config: names the files of the truth, of the rows to tune on and of the target.
        path: the file of the matrix, for errors.
        blank: a file of such a matrix of images that show nothing.

    Raises:
        InputError: a file does not fit the matrix.
    """
    classes, of_blank = predictions.classes, None
    if blank is not None:
        read = read_predictions(blank, predictions.kind)
        if read.values.shape[1] != len(classes):
            raise InputError(f"{blank} has {read.values.shape[1]} classes, {path} has {len(classes)}")
        of_blank = torch.cat([*read])
    known = [read_labels(Path(f), predictions.names, classes) if f else None for f in (config.truth, config.tune_on)]
    truth, tuning = (each and each.labels for each in known)
    return Rows(
        chunks=predictions,
        names=predictions.names,
        classes=classes,
        target=read_target(config.target_prior, classes),
        truth=truth,
        tuning=tuning,
        blank=of_blank,
        said=tuple(line for each in known if each for line in each.said),
    )


def _class_names(path: Path, matrix: Matrix, classes_file: Path | None) -> tuple[str, ...]:
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


def check_shape(values: np.ndarray, source: str) -> None:
    """Raises InputError where an array is not a matrix of numbers, or too small a one."""
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise InputError(
            f"{source} holds {values.dtype} of shape {values.shape}; a matrix of numbers is needed, a row for each "
            "image"
        )
    num_rows, num_classes = values.shape
    if num_rows == 0 or num_classes < 2:
        raise InputError(
            f"{source} has {num_rows} rows and {num_classes} classes; at least one row and two classes are needed"
        )


def _check(
    values: Num[np.ndarray, "N C"], classes: tuple[str, ...], kind: Literal["auto", "logits", "probs"], path: str
) -> tuple[Kind, str]:
    """Finds what the numbers are in one pass, and raises InputError where they cannot be used."""
    lowest, highest, off = np.inf, -np.inf, 0.0
    least, largest = np.inf, -np.inf
    for first, chunk in _chunks(values):
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
