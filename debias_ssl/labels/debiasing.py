"""Labels of rows of logits, before and after a class prior is removed. Nothing here reads or writes a file.

`Rows` are logits and what is known of them, `find_removal` says what is subtracted from them, and `label_rows` gives
their labels chunk by chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.formulas import priors
from debias_ssl.formulas.calibration import fit_temperature, negative_log_likelihood
from debias_ssl.formulas.logits import finite_log, floored_log
from debias_ssl.formulas.priors import Chunks
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import BelowOne, NotNegative, Positive, check_ranges

PriorName = Literal[
    "none",
    "marginal",
    "fixed_point",
    "momentum",
    "confidence",
    "stationary",
    "transport",
    "centering",
    "content_free",
]
# Numbers that are held of a matrix at a time.
CHUNK_NUMBERS = 2**22
# The settings that may name files.
LABEL_FILES = ("truth", "tune_on", "target_prior")
# What `tune_on` chooses the strength among.
STRENGTHS = tuple(step / 10 for step in range(21))


@dataclass(frozen=True, kw_only=True)
class DebiasConfig:
    """Which class prior is removed from predictions, and how.

    Args:
        prior: what the classifier prefers: `marginal` is the mean of its probabilities, `fixed_point` and `transport`
            are what must be removed for the probabilities, or the counts, to follow `target_prior`, `momentum` is the
            running mean over batches, `confidence` the mean with sure rows counting more, `stationary` of the chain
            from predicted class to probabilities, `centering` of the mean logits, `content_free` of blank images, and
            `none` removes nothing.
        strength: tau, how much of it is removed; null is 1, or is chosen on `tune_on`.
        temperature: logits are divided by it first; null is 1, or is fitted on `tune_on`.
        target_prior: shares of the classes that the rows truly have: `uniform`, `em` to estimate them, or a JSON or CSV
            file of class and weight.
        momentum: of the prior `momentum`, for each batch of 64 rows.
        truth: for figures only: CSV of path,label or row,label, or .npy of class numbers.
        tune_on: labels of a few rows in the same formats, to choose strength and temperature; those rows are left out
            of all figures.
    """

    prior: PriorName = "stationary"
    strength: NotNegative | None = None
    temperature: Positive | None = None
    target_prior: str = "uniform"
    momentum: BelowOne = 0.99
    truth: str | None = None
    tune_on: str | None = None

    def __post_init__(self):
        check_settings(
            self,
            "",
            prior=(self.prior in get_args(PriorName), f"one of {', '.join(get_args(PriorName))}"),
        )
        check_ranges(self, "")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Logits, and what is known of the rows that they are of."""

    chunks: Chunks
    """The logits in row order, which can be gone through again and again."""
    names: Sequence[str]
    """Paths, or `RowNumbers`."""
    classes: tuple[str, ...]
    target: Float[Tensor, " C"] | None
    """Shares that the classes truly have among the rows; None where they are to be estimated."""
    truth: Int64[np.ndarray, " N"] | None = None
    """Class numbers, negative where unknown, for figures alone."""
    tuning: Int64[np.ndarray, " N"] | None = None
    """Class numbers of the rows of `tune_on`, negative elsewhere."""
    blank: Float[Tensor, "K C"] | None = None
    """Logits of images that show nothing."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is subtracted from logits."""

    prior: Float[Tensor, " C"]
    """What the classifier prefers."""
    shift: Float[Tensor, " C"]
    """What is subtracted from f / T."""
    strength: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """What becomes of each of some rows."""

    plain: Int64[np.ndarray, " N"]
    plain_confidence: Float32[np.ndarray, " N"]
    """Of softmax(f / T)."""
    label: Int64[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    top2_gap: Float32[np.ndarray, " N"]
    """Of softmax(f / T - shift)."""


@dataclass(frozen=True, kw_only=True)
class Labeling(RowLabels):
    """What became of all rows: arrays of N, however large the matrix was."""

    classes: tuple[str, ...]
    names: Sequence[str]
    """Paths, or row numbers as text."""
    truth: Int64[np.ndarray, " N"]
    """Negative where unknown."""
    reported: Bool[np.ndarray, " N"]
    """False for rows of `tune_on`."""
    prior: Float[np.ndarray, " C"]
    shift: Float[np.ndarray, " C"]
    """What is subtracted from the logits."""
    config: DebiasConfig
    strength: float
    temperature: float

    def counts(self, which: Literal["plain", "label"]) -> Int64[np.ndarray, " C"]:
        """Predictions of each class, of the reported rows."""
        return np.bincount(getattr(self, which)[self.reported], minlength=len(self.classes))


def rows_of_chunk(num_classes: int) -> int:
    return max(1, CHUNK_NUMBERS // num_classes)


def check_finite(logits: Float[Tensor, "n C"], first_row: int, classes: Sequence[str]) -> None:
    """Raises InputError where a number is infinite or none; the first of these rows is the `first_row` of all."""
    # The sum of finite numbers may overflow, that of others is never finite.
    if not logits.sum().isfinite() and len(bad := (~logits.isfinite()).nonzero()):
        row, k = bad[0].tolist()
        raise InputError(
            f"row {first_row + row} (from 0), class {classes[k]!r}: {logits[row, k].item()} is not a finite number; "
            "remove the row, or fix what made it"
        )


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """f / T of all rows, checked, with a progress bar each time that they are gone through."""

    chunks: Chunks
    temperature: float
    num_rows: int
    classes: tuple[str, ...]
    title: str
    is_quiet: bool

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        first = 0
        with tqdm(
            total=self.num_rows, desc=self.title, unit="rows", unit_scale=True, disable=self.is_quiet, leave=False
        ) as bar:
            for logits in self.chunks:
                check_finite(logits, first, self.classes)
                yield logits / self.temperature
                first += len(logits)
                bar.update(len(logits))


def _pass_over(rows: Rows, temperature: float, title: str, is_quiet: bool) -> _Pass:
    return _Pass(
        chunks=rows.chunks,
        temperature=temperature,
        num_rows=len(rows.names),
        classes=rows.classes,
        title=title,
        is_quiet=is_quiet,
    )


def find_removal(rows: Rows, config: DebiasConfig, *, is_quiet: bool = False) -> Removal:
    """The prior that a setting names, and how much of it is removed at which temperature.

    Args:
        rows: the logits.
        config: what is removed.
        is_quiet: no progress bars.

    Raises:
        InputError: a number is not finite, or the settings need what is not there.
    """
    if config.prior == "content_free" and rows.blank is None:
        raise InputError("the prior content_free needs the logits of a blank image: give them by --blank FILE")
    tuned, labels = np.array([], dtype=np.int64), torch.tensor([], dtype=torch.int64)
    if rows.tuning is not None:
        tuned = np.flatnonzero(rows.tuning >= 0)
        labels = torch.from_numpy(rows.tuning[tuned])
        if not len(tuned):
            raise InputError(f"tune_on ({config.tune_on}) labels none of the rows")
    few = _gather(_pass_over(rows, 1.0, "tuning", is_quiet), tuned)
    temperature = config.temperature or (fit_temperature(few, labels) if len(few) else 1.0)
    prior, shift_of = _find_shift(_pass_over(rows, temperature, "prior", is_quiet), rows, config, temperature)
    strength = config.strength
    if strength is None:
        strength = _best_strength(few / temperature, labels, shift_of) if len(few) else 1.0
    return Removal(prior=prior, shift=shift_of(strength), strength=strength, temperature=temperature)


def label_rows(
    rows: Rows, removal: Removal, *, is_quiet: bool = False
) -> Iterator[tuple[RowLabels, Float[Tensor, "n C"]]]:
    """The labels of each chunk of rows, and the debiased probabilities that they are of, in one pass.

    Raises:
        InputError: a number is not finite.
    """
    for logits in _pass_over(rows, removal.temperature, "labels", is_quiet):
        plain_confidence, plain = logits.softmax(-1).max(-1)
        probs = (logits - removal.shift.to(logits.dtype)).softmax(-1)
        confidence, label = probs.max(-1)
        # The largest is taken out for a moment, as a copy of a chunk would take time.
        second = probs.scatter_(-1, label[:, None], -1).amax(-1)
        probs.scatter_(-1, label[:, None], confidence[:, None])
        labels = RowLabels(
            plain=plain.numpy(),
            plain_confidence=plain_confidence.float().numpy(),
            label=label.numpy(),
            confidence=confidence.float().numpy(),
            top2_gap=(confidence - second).float().numpy(),
        )
        yield labels, probs


def labeling_of(rows: Rows, config: DebiasConfig, removal: Removal, parts: Sequence[RowLabels]) -> Labeling:
    """The labels of all chunks together, with what was removed from them."""
    return Labeling(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(RowLabels)},
        classes=rows.classes,
        names=rows.names,
        truth=np.full(len(rows.names), UNKNOWN) if rows.truth is None else rows.truth,
        reported=np.ones(len(rows.names), dtype=bool) if rows.tuning is None else rows.tuning < 0,
        prior=removal.prior.numpy(),
        shift=removal.shift.numpy(),
        config=config,
        strength=removal.strength,
        temperature=removal.temperature,
    )


def _find_shift(
    chunks: Chunks, rows: Rows, config: DebiasConfig, temperature: float
) -> tuple[Float[Tensor, " C"], Callable[[float], Float[Tensor, " C"]]]:
    """The prior q, and the shift as a function of the strength tau.

    tau log q where q balances towards the target; else tau (log q - log target), or tau log q - log pi with pi the
    shares of the rows by expectation maximization, given that the classifier's own prior is softmax(tau log q).
    """
    num_classes, target = len(rows.classes), rows.target
    uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    if config.prior in ("fixed_point", "transport"):
        towards = priors.expectation_maximization(chunks, uniform) if target is None else target
        balance = priors.balancing if config.prior == "fixed_point" else priors.transport
        q = balance(chunks, towards)
        # Its classes are all possible: cut off, a rare one would stay unbalanced.
        log_q = finite_log(q)
        return q, lambda strength: strength * log_q
    if config.prior == "none":
        q, log_q = uniform, torch.zeros_like(uniform)
    else:
        q = _estimate(chunks, config, rows.blank, temperature)
        log_q = floored_log(q)

    def shift_of(strength: float) -> Float[Tensor, " C"]:
        if target is None:
            source = (strength * log_q).softmax(-1)
            return strength * log_q - floored_log(priors.expectation_maximization(chunks, source))
        # The logarithm of a uniform target is a constant, which softmax does not see.
        return strength * (log_q if config.target_prior == "uniform" else log_q - floored_log(target))

    return q, shift_of


def _estimate(
    chunks: Chunks, config: DebiasConfig, blank: Float[Tensor, "K C"] | None, temperature: float
) -> Float[Tensor, " C"]:
    match config.prior:
        case "momentum":
            return priors.running_mean(chunks, config.momentum)
        case "confidence":
            return priors.confidence_weighted(chunks)
        case "stationary":
            return priors.stationary(chunks)
        case "centering":
            return priors.centering(chunks)
        case "content_free":
            assert blank is not None
            return priors.content_free(blank / temperature)
        case _:
            return priors.mean_probs(chunks)


def _gather(chunks: Chunks, rows: Int64[np.ndarray, " R"]) -> Float[Tensor, "R C"]:
    """A few rows, in their order; none without a pass."""
    found, first = [], 0
    for logits in chunks if len(rows) else ():
        inside = rows[(rows >= first) & (rows < first + len(logits))] - first
        found.append(logits[torch.from_numpy(inside)].double())
        first += len(logits)
    return torch.cat(found) if found else torch.zeros(0, 0, dtype=torch.float64)


def _best_strength(
    logits: Float[Tensor, "R C"], labels: Int64[Tensor, " R"], shift_of: Callable[[float], Float[Tensor, " C"]]
) -> float:
    """The strength, of 0, 0.1, ..., 2, of the smallest cross-entropy of softmax(f / T - shift)."""
    return min(STRENGTHS, key=lambda strength: negative_log_likelihood(logits - shift_of(strength), labels).item())
