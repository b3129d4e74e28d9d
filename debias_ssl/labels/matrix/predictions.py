"""Reads the predictions of any classifier: an N x C matrix of logits or probabilities, with names of classes."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from debias_ssl.data.sources.label_files import table_beside
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.labels.debiasing.chunks import chunks_of, rows_of_chunk
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.preference import Reference
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.matrix.beside import classes_beside, names_beside
from debias_ssl.labels.matrix.files import Matrix, read_matrix
from debias_ssl.labels.matrix.kinds import WORDS, Asked, Found, Kind, find_kind
from debias_ssl.labels.names.class_names import class_list
from debias_ssl.labels.names.hierarchy import hierarchy_of
from debias_ssl.labels.tables.truth import RowNumbers, read_labels, read_target
from debias_ssl.system.errors import InputError, reason


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A checked matrix: its rows are finite, and each is a prediction."""

    values: Num[np.ndarray, "N C"]
    """Memory-mapped where the file allows it."""
    found: Found
    """What the numbers are."""
    classes: tuple[str, ...]
    names: Sequence[str]
    """Of the rows; their numbers where the file has no names."""
    roles: str = ""
    """What is taken for the names of classes and rows, for people."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The names above the classes, as in `ClassList`."""

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        """The logits in chunks, in fp32; those of probabilities p are log max(p, 1e-8)."""
        for _, values in chunks_of(self.values):
            if self.found.whole != 1:
                values.div_(self.found.whole)
            yield values.clamp_(min=SMALLEST_PROBABILITY).log_() if self.kind == "probs" else values

    def at(self, rows: Int64[np.ndarray, " R"]) -> Iterator[Float[Tensor, "n C"]]:
        """The same of some rows, in their order."""
        step = rows_of_chunk(self.values.shape[1])
        for first in range(0, len(rows), step):
            yield from replace(self, values=self.values[rows[first : first + step]])

    @property
    def kind(self) -> Kind:
        return self.found.kind

    @property
    def has_class_names(self) -> bool:
        return self.classes != _numbered(len(self.classes))

    def told(self) -> str:
        """What was taken for what, for people."""
        num, num_classes = self.values.shape
        return f"{num} x {num_classes} {WORDS[self.kind]} ({self.found.words}){self.roles}"


def read_predictions(
    path: Path, kind: Asked = "auto", classes_file: Path | None = None, columns: Sequence[str] | None = None
) -> Predictions:
    """Reads .npy, .npz, .csv, .tsv, .txt, .json, .jsonl or .parquet; a matrix in .npy stays on the disk.

    Args:
        path: the file. The classes of a table are its columns p_CLASS, or else those of numbers that are no names of
            rows and no labels; a text file without a first line of names has classes only.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 but for rounding for probabilities.
        classes_file: names of the classes, or of the columns that are classes, or `imagenet`; else those of a
            classes.json beside a file without names, or numbers.
        columns: names of the columns of a table that are classes.

    Raises:
        InputError: the file or the matrix in it cannot be used.
    """
    listed = None if classes_file is None else class_list(str(classes_file))
    given = None if listed is None else listed.names
    matrix = read_matrix(path, columns, given)
    check_shape(matrix.values, str(path))
    classes, of_classes = _class_names(path, matrix, given, classes_file)
    names, of_rows = matrix.names, matrix.of_rows
    if not of_rows:
        own = classes_beside(path, None)
        names = names_beside(path, matrix.values, own)
        of_rows = "names of rows: " + ("their numbers" if names is None else f"{table_beside(path).name} beside it")
    predictions = predictions_of(matrix.values, kind, classes, names, str(path))
    parents = {} if listed is None else listed.parents
    if parents:
        of_classes += f", with {len({*parents.values()})} names above them"
    return replace(predictions, roles=f"; {of_classes}; {of_rows}", parents=parents)


def predictions_of(
    values: Num[np.ndarray, "N C"], kind: Asked, classes: tuple[str, ...], names: Sequence[str] | None, source: str
) -> Predictions:
    """A matrix whose numbers are checked, and taken for what they are.

    Args:
        values: the matrix.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 but for rounding for probabilities.
        classes: names of the columns.
        names: of the rows; None where they have none.
        source: what errors call the matrix.

    Raises:
        InputError: the matrix cannot be used.
    """
    found = find_kind(values, classes, kind, source)
    names = RowNumbers(len(values)) if names is None else names
    return Predictions(values=values, found=found, classes=classes, names=names)


def column_names(text: str) -> list[str]:
    """The names in a flag `--columns a,b,c`; one with a comma stands in quotes.

    Raises:
        InputError: there are fewer than two.
    """
    try:
        names = next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise InputError(f"--columns is {text!r}: {reason(error)}") from error
    if len(names) < 2:
        raise InputError(f"--columns is {text!r}; it must name two or more columns, divided by commas")
    return names


def rows_of(
    predictions: Predictions,
    config: DebiasConfig,
    path: Path,
    blank: Predictions | None,
    reference: Reference | None = None,
) -> Rows:
    """The rows of a matrix with what files say of them.

    Args:
        predictions: the matrix.
        config: names the files of the truth, of the rows to tune on and of the target.
        path: the file of the matrix, for errors.
        blank: such a matrix of images that show nothing.
        reference: what the prior is measured on, if not on these rows.

    Raises:
        InputError: a file does not fit the matrix, or rows have not the score that is asked for.
    """
    classes = predictions.classes
    config.check_kind(predictions.kind)
    known = [read_labels(Path(f), predictions.names, classes) if f else None for f in (config.truth, config.tune_on)]
    truth, tuning = (each and each.labels for each in known)
    return Rows(
        chunks=predictions,
        names=predictions.names,
        classes=classes,
        target=read_target(config.target_prior, classes, has_reference=reference is not None),
        truth=truth,
        tuning=tuning,
        blank=None if blank is None else logits_of_blank(blank, predictions, "--blank", str(path)),
        reference=reference,
        said=tuple(line for each in known if each for line in each.said),
        hierarchy=hierarchy_of(classes, predictions.parents),
    )


def logits_of_blank(blank: Predictions, predictions: Predictions, blank_name: str, name: str) -> Float[Tensor, "K C"]:
    """The logits of images that show nothing, in the order of the classes of a matrix; see `column_order`."""
    order = column_order(blank, predictions, blank_name, name)
    logits = torch.cat([*blank])
    return logits if order is None else logits[:, order]


def column_order(others: Predictions, predictions: Predictions, others_name: str, name: str) -> list[int] | None:
    """The columns of a matrix in the order of the classes of another one; None where they have that order.

    Args:
        others: the matrix.
        predictions: the other one.
        others_name, name: what errors call the two.

    Raises:
        InputError: it has other classes, or numbers of another kind.
    """
    num, num_classes = len(others.classes), len(predictions.classes)
    if num != num_classes:
        raise InputError(f"{others_name} has {num} classes, {name} has {num_classes}")
    kinds = [WORDS[each.kind] for each in (others, predictions)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{others_name} has {kinds[0]} ({others.found.words}), {name} has {kinds[1]}: pass numbers of the "
            "same kind, or set --kind"
        )
    if others.classes == predictions.classes or not others.has_class_names or not predictions.has_class_names:
        return None
    missing = next((name for name in predictions.classes if name not in others.classes), None)
    if missing is not None:
        raise InputError(f"{others_name} has no class {missing!r}, which {name} has: both need the same classes")
    return [others.classes.index(name) for name in predictions.classes]


def _class_names(
    path: Path, matrix: Matrix, given: tuple[str, ...] | None, classes_file: Path | None
) -> tuple[tuple[str, ...], str]:
    """Names of the classes, and where they are from."""
    num_classes, told = matrix.values.shape[1], matrix.of_classes
    if matrix.classes is not None and (given is None or {*given} == {*matrix.classes}):
        return matrix.classes, told if told.startswith("classes") else f"classes: {told}"
    beside = classes_beside(path, given) if matrix.classes is None else None
    names, file = (given, classes_file) if given is not None else (beside, path.parent / "classes.json")
    if names is None:
        return _numbered(num_classes), told or "classes: their numbers"
    if len(names) != num_classes:
        raise InputError(f"{path} has {num_classes} classes, {file} names {len(names)}: pass the right --classes")
    if matrix.classes is not None and {*names} & {*matrix.classes}:
        raise InputError(f"{path} has other classes than {file}, such as {min({*matrix.classes} - {*names})!r}")
    return names, f"classes: {file}" + (f" for {told}" if told else "")


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


def check_shape(values: np.ndarray, source: str) -> None:
    """Raises InputError where an array is not a matrix of numbers, or too small a one."""
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        hint = ""
        if values.ndim == 1 and values.dtype.kind == "f":
            hint = "; of two classes, np.stack([0 * f, f], 1) is one for scores f, np.stack([1 - p, p], 1) for shares p"
        raise InputError(
            f"{source} holds {values.dtype} of shape {values.shape}; a matrix of numbers is needed, a row for each "
            f"image{hint}"
        )
    num_rows, num_classes = values.shape
    if num_rows == 0 or num_classes < 2:
        raise InputError(
            f"{source} has {num_rows} rows and {num_classes} classes; at least one row and two classes are needed"
        )
