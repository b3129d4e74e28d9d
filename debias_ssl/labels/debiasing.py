"""Labels of rows of logits, before and after a class prior is removed: what `debias` and `label` share."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.formulas import priors
from debias_ssl.formulas.calibration import fit_temperature, negative_log_likelihood
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.formulas.priors import Chunks
from debias_ssl.labels.truth import RowNumbers, read_target
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.files import replacing, write_aside

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
    strength: float | None = None
    temperature: float | None = None
    target_prior: str = "uniform"
    momentum: float = 0.99
    truth: str | None = None
    tune_on: str | None = None

    def __post_init__(self):
        check_settings(
            self,
            "",
            strength=(self.strength is None or 0 <= self.strength < math.inf, "at least 0"),
            temperature=(self.temperature is None or 0 < self.temperature < math.inf, "above 0"),
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
        )


@dataclass(frozen=True, kw_only=True)
class Labeling:
    """What became of each row: arrays of N, however large the matrix was."""

    classes: tuple[str, ...]
    names: Sequence[str]
    """Paths, or row numbers as text."""
    plain: Int64[np.ndarray, " N"]
    plain_confidence: Float32[np.ndarray, " N"]
    """Of softmax(f / T)."""
    label: Int64[np.ndarray, " N"]
    confidence: Float32[np.ndarray, " N"]
    top2_gap: Float32[np.ndarray, " N"]
    """Of softmax(f / T - shift)."""
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


def debias_rows(
    chunks: Chunks,
    names: Sequence[str],
    classes: tuple[str, ...],
    config: DebiasConfig,
    *,
    out: Path,
    truth: Int64[np.ndarray, " N"] | None = None,
    tuning: Int64[np.ndarray, " N"] | None = None,
    blank: Float[Tensor, "K C"] | None = None,
    is_quiet: bool = False,
) -> Labeling:
    """Labels rows without the class prior that a setting names, and writes labels.csv, probs.npy and classes.json.

    Args:
        chunks: the logits in row order, which can be gone through again and again.
        names: of the rows, or `RowNumbers`.
        classes: names of the columns.
        config: what is removed.
        out: the folder to write to.
        truth: class numbers, negative where unknown, for figures.
        tuning: class numbers of the rows of `tune_on`, negative elsewhere.
        blank: logits of images that show nothing, for the prior `content_free`.
        is_quiet: no progress bars.

    Raises:
        InputError: a number is not finite, or the settings need what is not there; nothing is written then.
    """
    if config.prior == "content_free" and blank is None:
        raise InputError("the prior content_free needs the logits of a blank image: give them by --blank FILE")
    target = read_target(config.target_prior, classes)
    tuned = np.flatnonzero(tuning >= 0) if tuning is not None else np.array([], dtype=np.int64)
    if tuning is not None and not len(tuned):
        raise InputError(f"tune_on ({config.tune_on}) labels none of the rows")

    num_rows = len(names)

    def rows(temperature: float, title: str) -> _Pass:
        return _Pass(
            chunks=chunks, temperature=temperature, num_rows=num_rows, classes=classes, title=title, is_quiet=is_quiet
        )

    labels = torch.from_numpy(tuning[tuned]) if tuning is not None else torch.tensor([], dtype=torch.int64)
    few = _gather(rows(1.0, "tuning"), tuned)
    temperature = config.temperature or (fit_temperature(few, labels) if len(few) else 1.0)
    prior, shift_of = _find_shift(rows(temperature, "prior"), config, target, blank, temperature, len(classes))
    strength = config.strength
    if strength is None:
        strength = _best_strength(few / temperature, labels, shift_of) if len(few) else 1.0
    shift = shift_of(strength)
    labeled = _write_rows(rows(temperature, "labels"), shift, names, classes, out)
    return Labeling(
        classes=classes,
        names=names,
        **labeled,
        truth=np.full(num_rows, UNKNOWN) if truth is None else truth,
        reported=np.ones(num_rows, dtype=bool) if tuning is None else tuning < 0,
        prior=prior.numpy(),
        shift=shift.numpy(),
        config=config,
        strength=strength,
        temperature=temperature,
    )


def _find_shift(
    chunks: Chunks,
    config: DebiasConfig,
    target: Float[Tensor, " C"] | None,
    blank: Float[Tensor, "K C"] | None,
    temperature: float,
    num_classes: int,
) -> tuple[Float[Tensor, " C"], Callable[[float], Float[Tensor, " C"]]]:
    """The prior q, and the shift as a function of the strength tau.

    tau log q where q balances towards the target; else tau (log q - log target), or tau log q - log pi with pi the
    shares of the rows by expectation maximization, given that the classifier's own prior is softmax(tau log q).
    """
    uniform = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    if config.prior in ("fixed_point", "transport"):
        towards = priors.expectation_maximization(chunks, uniform) if target is None else target
        balance = priors.balancing if config.prior == "fixed_point" else priors.transport
        q = balance(chunks, towards)
        # Its classes are all possible: cut off, a rare one would stay unbalanced.
        log_q = q.clamp(min=torch.finfo(q.dtype).tiny).log()
        return q, lambda strength: strength * log_q
    if config.prior == "none":
        q, log_q = uniform, torch.zeros_like(uniform)
    else:
        q = _estimate(chunks, config, blank, temperature)
        log_q = _log(q)

    def shift_of(strength: float) -> Float[Tensor, " C"]:
        if target is None:
            source = (strength * log_q).softmax(-1)
            return strength * log_q - _log(priors.expectation_maximization(chunks, source))
        # The logarithm of a uniform target is a constant, which softmax does not see.
        return strength * (log_q if config.target_prior == "uniform" else log_q - _log(target))

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


def _log(prior: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    return prior.clamp(min=SMALLEST_PROBABILITY).log()


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
    """The strength, of 0, .1, ..., 2, of the smallest cross-entropy of softmax(f / T - shift)."""
    return min(STRENGTHS, key=lambda strength: negative_log_likelihood(logits - shift_of(strength), labels).item())


def _write_rows(
    chunks: Chunks,
    shift: Float[Tensor, " C"],
    names: Sequence[str],
    classes: tuple[str, ...],
    out: Path,
) -> dict[str, np.ndarray]:
    """Labels and writes all rows in one pass; gives the arrays of a Labeling."""
    num_rows = len(names)
    plain, label = np.zeros((2, num_rows), dtype=np.int64)
    plain_confidence, confidence, top2_gap = np.zeros((3, num_rows), dtype=np.float32)
    text = [*classes]
    with (
        replacing(out / "labels.csv") as labels_file,
        replacing(out / "probs.npy") as probs_file,
        # Names of files need not be text.
        labels_file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        table = csv.writer(file)
        key = "row" if isinstance(names, RowNumbers) else "path"
        table.writerow([key, "label", "confidence", "top2_gap", "plain_label", "plain_confidence"])
        stored = np.lib.format.open_memmap(probs_file, mode="w+", dtype=np.float16, shape=(num_rows, len(classes)))
        first = 0
        for logits in chunks:
            rows = slice(first, first + len(logits))
            first = rows.stop
            top, number = logits.softmax(-1).max(-1)
            plain_confidence[rows], plain[rows] = top, number
            probs = (logits - shift.to(logits.dtype)).softmax(-1)
            stored[rows] = probs.half()
            top, number = probs.max(-1)
            second = probs.scatter_(-1, number[:, None], -1).amax(-1)
            confidence[rows], label[rows], top2_gap[rows] = top, number, top - second
            for name, k, high, gap, before, high_before in zip(
                names[rows],
                label[rows].tolist(),
                confidence[rows].tolist(),
                top2_gap[rows].tolist(),
                plain[rows].tolist(),
                plain_confidence[rows].tolist(),
                strict=True,
            ):
                table.writerow([name, text[k], f"{high:.6f}", f"{gap:.6f}", text[before], f"{high_before:.6f}"])
        stored.flush()
        del stored
    write_aside(out / "classes.json", json.dumps(text, ensure_ascii=False) + "\n")
    return {
        "plain": plain,
        "plain_confidence": plain_confidence,
        "label": label,
        "confidence": confidence,
        "top2_gap": top2_gap,
    }
