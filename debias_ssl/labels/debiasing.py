"""Labels of rows of logits, before and after a class prior is removed. Nothing here reads or writes a file.

`Rows` are logits and what is known of them, a `Removal` is what is subtracted from them, and `label_rows` gives their
labels chunk by chunk.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.formulas.priors import Chunks
from debias_ssl.formulas.selective import ScoreName, score_of
from debias_ssl.labels.abstention import DEFAULT_SCORE, Abstention, AbstentionConfig, abstain
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


@dataclass(frozen=True, kw_only=True)
class DebiasConfig(AbstentionConfig):
    """Which class prior is removed from predictions, and how; and which rows get a label.

    Args:
        prior: what the classifier prefers: `marginal` is the mean of its probabilities, `fixed_point` and `transport`
            are what must be removed for the probabilities, or the counts, to follow `target_prior`, `momentum` is the
            running mean over batches, `confidence` the mean with sure rows counting more, `stationary` of the chain
            from predicted class to probabilities, `centering` of the mean logits, `content_free` of blank images, and
            `none` removes nothing.
        strength: tau, how much of it is removed; null is 1, or is chosen on `tune_on`, and less of a prior that is
            estimated from fewer than ten rows a class.
        temperature: logits are divided by it first; null is 1, or is fitted on `tune_on` together with the strength.
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
        super().__post_init__()
        if self.min_precision is not None and self.tune_on is None:
            raise InputError("--min_precision needs the labels of some rows: give them by --tune_on FILE")


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
    negatives: Iterable[Float[Tensor, "_ M"]] | None = None
    """Logits of names that are none of the classes, in the same chunks."""
    said: tuple[str, ...] = ()
    """What is to be said of the files that this is known from, line by line."""
    notes: tuple[str, ...] = ()
    """What is to be known about the logits, for people."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is subtracted from logits."""

    prior: Float[Tensor, " C"]
    """What the classifier prefers."""
    shift: Float[Tensor, " C"]
    """What is subtracted from f / T."""
    strength: float
    temperature: float
    supported: float = 1.0
    """Share of what the rows say that is made use of: below 1 where they are few."""
    notes: tuple[str, ...] = ()
    """What is to be known about it, for people."""


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
    plain_score: Float32[np.ndarray, " N"] | None = None
    score: Float32[np.ndarray, " N"] | None = None
    """How sure it is that a row is of its class; None where rows have no score."""


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
    supported: float = 1.0
    notes: tuple[str, ...] = ()
    """As in `Removal`, and those of `Abstention`."""
    abstained: Bool[np.ndarray, " N"] | None = None
    """Rows that get no label; `label` is what it would be. None where rows have no score."""
    abstention: Abstention | None = None

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
class Pass:
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


def pass_over(rows: Rows, temperature: float, title: str, is_quiet: bool) -> Pass:
    """f / T of all rows; the title is that of the progress bar."""
    return Pass(
        chunks=rows.chunks,
        temperature=temperature,
        num_rows=len(rows.names),
        classes=rows.classes,
        title=title,
        is_quiet=is_quiet,
    )


def score_name(rows: Rows, config: DebiasConfig) -> ScoreName | None:
    """The score that rows have; None where nothing asks for one."""
    return config.score or (None if rows.negatives is None else DEFAULT_SCORE)


def label_rows(
    rows: Rows, removal: Removal, score: ScoreName | None = None, *, is_quiet: bool = False
) -> Iterator[tuple[RowLabels, Float[Tensor, "n C"]]]:
    """The labels of each chunk of rows, and the debiased probabilities that they are of, in one pass.

    Args:
        rows: the logits.
        removal: what is subtracted from them.
        score: what rows are to have beside a label.
        is_quiet: no progress bar.

    Raises:
        InputError: a number is not finite.
    """
    all_negatives = repeat(None) if rows.negatives is None else rows.negatives
    chunks = pass_over(rows, removal.temperature, "labels", is_quiet)
    for logits, negatives in zip(chunks, all_negatives, strict=False):
        plain_probs = logits.softmax(-1)
        plain_confidence, plain = plain_probs.max(-1)
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
        if score is not None:
            scaled = None if negatives is None else negatives / removal.temperature
            plain_score, own = (score_of(score, logits, each, scaled) for each in (plain_probs, probs))
            labels = replace(labels, plain_score=plain_score.float().numpy(), score=own.float().numpy())
        yield labels, probs


def labeling_of(rows: Rows, config: DebiasConfig, removal: Removal, parts: Sequence[RowLabels]) -> Labeling:
    """The labels of all chunks together, with what was removed from them, and the rows that get none.

    Raises:
        InputError: the precision that is asked for is not reached.
    """
    names = [field.name for field in fields(RowLabels) if getattr(parts[0], field.name) is not None]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    abstention, score = None, score_name(rows, config)
    if score is not None:
        arrays["abstained"], abstention = abstain(config, score, arrays["score"], arrays["label"], rows.tuning)
    return Labeling(
        **arrays,
        classes=rows.classes,
        names=rows.names,
        truth=np.full(len(rows.names), UNKNOWN) if rows.truth is None else rows.truth,
        reported=np.ones(len(rows.names), dtype=bool) if rows.tuning is None else rows.tuning < 0,
        prior=removal.prior.numpy(),
        shift=removal.shift.numpy(),
        config=config,
        strength=removal.strength,
        temperature=removal.temperature,
        supported=removal.supported,
        notes=removal.notes + (() if abstention is None else abstention.notes),
        abstention=abstention,
    )
