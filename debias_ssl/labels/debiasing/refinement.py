"""Refines labels by the positions of the rows: from debiased probabilities to the posterior of an anchored mixture."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Num
from torch import Tensor
from tqdm import tqdm

from debias_ssl.formulas import mixture
from debias_ssl.formulas.priors import supported_share
from debias_ssl.labels.debiasing.chunks import chunks_of
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.rows import Removal, Rows, label_rows
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.training.memory import memory_told

# Bytes that are held of blocks, whatever the number of rows.
BLOCKS = 20 * mixture.BLOCK
# Length of the mean of unit vectors that are equal except for rounding.
ALL_THE_SAME = 1 - 1e-6


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Features of the rows, and an anchor for each class, from arrays or files."""

    features: Num[np.ndarray, "N D"]
    anchors: Float[Tensor, "C D"]

    def chunks(self) -> Iterator[Float[Tensor, "n D"]]:
        for _, values in chunks_of(self.features):
            yield values


def check_given(config: DebiasConfig, has_features: bool, has_anchors: bool) -> None:
    """Raises InputError where what refines is not there, or would not be made use of."""
    if config.refine == "none" and (has_features or has_anchors):
        given = "--features" if has_features else "--anchors"
        raise InputError(f"{given} has an effect only with --refine mixture: pass that too, or leave it out")
    if config.refine != "none" and not (has_features and has_anchors):
        raise InputError(
            f"--refine {config.refine} needs --features, a vector for each row, and --anchors, one for each class in "
            "the same space, such as CLIP's of their prompts or means of a few labeled features"
        )


def read_vectors(path: Path) -> np.ndarray:
    """A .npy file, which stays on the disk.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return read_array(path, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}; numpy.save writes such a file") from error


def vectors_of(
    features: np.ndarray, anchors: np.ndarray, num_rows: int, classes: Sequence[str], names: tuple[str, str]
) -> Vectors:
    """Features and anchors that fit a matrix of predictions, and each other.

    Args:
        features, anchors: the arrays.
        num_rows: of the matrix.
        classes: names of its columns.
        names: what errors call the two.

    Raises:
        InputError: they do not fit, or an anchor has no direction.
    """
    for name, values, number, what in (
        (names[0], features, num_rows, "rows"),
        (names[1], anchors, len(classes), "classes"),
    ):
        if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.shape[1]:
            raise InputError(f"{name} holds {values.dtype} of shape {values.shape}; a vector for each row is needed")
        if len(values) != number:
            raise InputError(
                f"{name} has {len(values):,} vectors, the predictions have {number:,} {what}: pass those of the same "
                f"{what}, in the same order"
            )
    if features.shape[1] != anchors.shape[1]:
        raise InputError(
            f"the vectors of {names[0]} have {features.shape[1]} numbers, those of {names[1]} {anchors.shape[1]}: both "
            "must be of one space, such as means of a few labeled features"
        )
    of_classes = torch.cat([values for _, values in chunks_of(anchors)])
    wrong = ~of_classes.isfinite().all(1) | (of_classes == 0).all(1)
    if wrong.any():
        k = int(wrong.nonzero()[0])
        raise InputError(
            f"{names[1]}, row {k} (from 0), class {classes[k]!r}: its numbers must be finite, and not all 0"
        )
    return Vectors(features=features, anchors=of_classes)


def refined(rows: Rows, config: DebiasConfig, removal: Removal, *, is_quiet: bool = False) -> tuple[Rows, Removal]:
    """Rows with the posterior that their labels are of, where the settings say so, and what is to be known about it.

    Holds the features twice and the probabilities four times in memory, in fp32, and compares all pairs of rows.

    Raises:
        InputError: a number is not finite.
        StoppedError: there is not enough memory.
    """
    if config.refine == "none":
        return rows, removal
    assert rows.features is not None and rows.anchors is not None
    num_rows, num_classes, dim = len(rows.names), len(rows.classes), rows.anchors.shape[1]
    with memory_told("while labels were refined", "leave out --refine, or label the rows in several parts"):
        features = _unit(rows.features, num_rows, dim)
        if float(features.mean(0, dtype=torch.float64).norm()) > ALL_THE_SAME:
            note = "the features of all rows are equal: labels are debiased, but not refined"
            return rows, replace(removal, notes=(*removal.notes, note))
        if not is_quiet:
            held = 4 * num_rows * (2 * dim + 4 * num_classes) + BLOCKS
            told = f"refining needs {held / 1e6:,.0f} MB of memory, and compares {num_rows:,} rows with each other"
            print(f"note: {told}", file=sys.stderr)
        probs = torch.empty(num_rows, num_classes)
        first = 0
        for _, of_chunk in label_rows(rows, removal, is_quiet=is_quiet):
            probs[first : first + len(of_chunk)] = of_chunk
            first += len(of_chunk)
        return replace(rows, posterior=_posterior(features, probs, rows.anchors, is_quiet)), removal


def _posterior(
    features: Float[Tensor, "N D"], probs: Float[Tensor, "N C"], anchors: Float[Tensor, "C D"], is_quiet: bool
) -> Float32[np.ndarray, "N C"]:
    with tqdm(total=len(features), desc="neighbors", unit="rows", disable=is_quiet, leave=False) as bar:
        graph = mixture.graph_of(mixture.nearest(features, progress=bar.update))
    # The nearest of few rows need not be near, and means of few rows say little.
    support = supported_share(*probs.shape)
    return mixture.refine(
        features,
        probs,
        F.normalize(anchors.float(), dim=1),
        graph,
        mixture_spread=support * mixture.MIXTURE_SPREAD,
        neighbor_weight=support * mixture.NEIGHBOR_WEIGHT,
    ).numpy()


def _unit(chunks: Callable[[], Iterable[Float[Tensor, "n D"]]], num_rows: int, dim: int) -> Float[Tensor, "N D"]:
    """All features, of length 1, in fp32."""
    features, first = torch.empty(num_rows, dim), 0
    for chunk in chunks():
        bad = ~chunk.isfinite().all(1)
        if bad.any():
            row = first + int(bad.nonzero()[0])
            raise InputError(f"the features of row {row} (from 0) are not finite: remove the row, or fix what made it")
        features[first : first + len(chunk)] = F.normalize(chunk.float(), dim=1)
        first += len(chunk)
    assert first == num_rows
    return features
