"""Arguments of the Python functions: arrays are allowed where the flags of jobs name files."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.formulas.selective import ScoreName
from debias_ssl.labels.debiasing.config import LABEL_FILES, DebiasConfig, EstimateName, Refine
from debias_ssl.labels.tables.truth import read_labels, read_target
from debias_ssl.system.errors import InputError

Numbers = np.ndarray | Tensor | Sequence[int] | Sequence[float]
LabelsOfRows = np.ndarray | Tensor | Sequence[int] | str | Path
"""Class numbers of rows, negative where unknown; or a CSV file of path,label or row,label, or a .npy file of them."""
TargetPrior = np.ndarray | Tensor | Sequence[float] | str | Path
"""`auto`, `uniform`, `em`, `present`, weights of the classes, or a file of class and weight."""


class DebiasSettings(TypedDict, total=False):
    """The settings of `DebiasConfig` as arguments: arrays are allowed where flags name files."""

    prior: EstimateName
    reference: np.ndarray | Tensor | str | Path | Sequence[str | Path] | None
    strength: float | None
    temperature: float | None
    target_prior: TargetPrior
    momentum: float
    truth: LabelsOfRows | None
    tune_on: LabelsOfRows | None
    floor: float | None
    refine: Refine
    unknown: ScoreName | None
    coverage: float | None
    min_precision: float | None
    min_score: float | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that were passed as arguments."""

    given: DebiasSettings

    def config(self) -> DebiasConfig:
        """The settings of a job, in which arrays are called so.

        Raises:
            InputError: there is no such setting.
        """
        known = {setting.name for setting in fields(DebiasConfig)}
        if unknown := [name for name in self.given if name not in known]:
            raise InputError(f"there is no argument {unknown[0]!r}")
        arguments: dict[str, Any] = {
            name: _told(value) if name in LABEL_FILES else _number(value) for name, value in self.given.items()
        }
        return DebiasConfig(**arguments)

    def target(self, classes: tuple[str, ...]) -> Float[Tensor, " C"] | None:
        """The shares of the classes; None where they are to be estimated."""
        target_prior = self.given.get("target_prior", "auto")
        if isinstance(target_prior, str | Path):
            return read_target(str(target_prior), classes, has_reference=self.given.get("reference") is not None)
        weights = array(target_prior)
        if weights.shape != (len(classes),) or weights.dtype.kind not in "fiu":
            raise InputError(
                f"target_prior is of shape {weights.shape}, must be {len(classes)} weights, one for each class"
            )
        if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
            raise InputError("target_prior must be weights of at least 0, and not all 0")
        target = torch.from_numpy(weights.astype(np.float64))
        return target / target.sum()

    def labels(
        self, names: Sequence[str], classes: tuple[str, ...]
    ) -> tuple[Int64[np.ndarray, " N"] | None, Int64[np.ndarray, " N"] | None]:
        """Class numbers of the truth, and of the rows to tune on."""
        given = {"truth": self.given.get("truth"), "tune_on": self.given.get("tune_on")}
        truth, tuning = (_class_numbers(name, labels, names, classes) for name, labels in given.items())
        return truth, tuning


@contextmanager
def flags_are_arguments() -> Iterator[None]:
    """Names in errors are those of arguments, which the jobs have as flags."""
    try:
        yield
    except InputError as error:
        raise InputError(re.sub(r"(?<![\w-])--(?=[a-z])", "", str(error))) from error


@contextmanager
def named(argument: str) -> Iterator[None]:
    """Says of what argument an error is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{argument}: {error}") from error


def array(values: Numbers) -> np.ndarray:
    """An array of numbers, which shares memory where it can."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no such numbers.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def text(value: Any) -> Any:
    """A path as text; other values as they are."""
    return str(value) if isinstance(value, Path) else value


def _number(value: Any) -> Any:
    """A number of NumPy or torch as Python's; other values as they are."""
    return value.item() if isinstance(value, np.generic | Tensor) else value


def _told(value: Any) -> str | None:
    """What is said of an argument: its file or its word, or that it is an array."""
    return None if value is None else str(value) if isinstance(value, str | Path) else "an array"


def _class_numbers(
    name: str, labels: LabelsOfRows | None, names: Sequence[str], classes: tuple[str, ...]
) -> Int64[np.ndarray, " N"] | None:
    if labels is None:
        return None
    if isinstance(labels, str | Path):
        with named(name):
            found = read_labels(Path(labels), names, classes)
        for note in found.notes:
            warnings.warn(note, stacklevel=2)
        return found.labels
    numbers = array(labels)
    if numbers.shape != (len(names),) or numbers.dtype.kind not in "iu":
        raise InputError(
            f"{name} is {numbers.dtype} of shape {numbers.shape}, must be {len(names)} class numbers, one for each row"
        )
    if numbers.max() >= len(classes):
        raise InputError(f"{name}: row {int(numbers.argmax())} has class {numbers.max()}, but there are {len(classes)}")
    return np.maximum(numbers.astype(np.int64), UNKNOWN)
