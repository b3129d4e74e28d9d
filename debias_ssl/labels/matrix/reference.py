"""A reference for `debias`: a matrix of predictions, a preference.json, or the folder of an earlier `debias`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from debias_ssl.formulas.priors import Chunks
from debias_ssl.labels.debiasing.preference import Reference, is_preference, read_preference, summary_with
from debias_ssl.labels.debiasing.reference import read_reference
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.matrix.kinds import Asked
from debias_ssl.labels.matrix.predictions import Predictions, column_order, read_predictions
from debias_ssl.system.errors import InputError


def matrix_reference(
    path: Path,
    predictions: Predictions,
    kind: Asked,
    classes_file: Path | None,
    columns: Sequence[str] | None,
) -> tuple[Reference, str]:
    """The reference that `--reference` names, and its kind in words.

    Args:
        path: of it.
        predictions: the matrix that it is for.
        kind, classes_file, columns: as in `read_predictions`.

    Raises:
        InputError: it cannot be read, or is of other classes or numbers.
    """
    if path.is_dir():
        path = _predictions_of(path)
    elif is_preference(path):
        found = read_preference(path)
        preference = found.checked(predictions.classes, made_with(predictions), str(path))
        return preference, f"{path}: a preference measured on {found.num_rows:,} rows"
    others = read_predictions(path, kind, classes_file, columns)
    return rows_reference(others, predictions, "--reference", "--predictions"), f"{path}: {others.told()}"


def rows_reference(
    others: Predictions, predictions: Predictions, others_name: str, name: str, *, is_quiet: bool = False
) -> Reference:
    """A matrix as the reference of another one.

    Args:
        others: the reference.
        predictions: what it is for.
        others_name, name: what errors call the two.

    Raises:
        InputError: it has other classes, or numbers of another kind, or a number is not finite.
    """
    order = column_order(others, predictions, others_name, name)
    rows = Rows(
        chunks=others if order is None else _Reordered(chunks=others, order=order),
        names=others.names,
        classes=predictions.classes,
        target=None,
    )
    return read_reference(rows, made_with(predictions), is_quiet)


def made_with(predictions: Predictions) -> Mapping[str, str]:
    """As in `Preference`."""
    return {"kinds of numbers": predictions.kind}


def _predictions_of(folder: Path) -> Path:
    """The matrix whose labels a folder holds."""
    found = Path(summary_with(folder, "predictions", "debias", "a matrix of predictions")["predictions"])
    if not found.is_file():
        raise InputError(
            f"--reference {str(folder)!r}: its predictions {str(found)!r} are missing: pass the file itself"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Reordered:
    chunks: Chunks
    order: Sequence[int]

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        for logits in self.chunks:
            yield logits[:, [*self.order]]
