"""Abstention: rows that get no label, because their class is uncertain or they may belong to no class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int64

from debias_ssl.formulas.metrics import Interval, wilson_interval
from debias_ssl.formulas.selective import ScoreName, threshold_of_coverage, threshold_of_precision
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import Finite, Range, Share

# Chosen by measurement: among the scores that detect wrong labels best, it also detects unknown classes best.
DEFAULT_SCORE: ScoreName = "entropy"
# How far the coverage, or the low end of the precision, may differ from the request without a note.
MISSED, FAR_BELOW = 0.01, 0.05
ShareBelowOne = Annotated[float, Range(0, 1, above=True)]


@dataclass(frozen=True, kw_only=True)
class AbstentionConfig:
    """Which rows get a label. If any setting is given, each row has a score, and rows with low scores get no label.

    Args:
        unknown: the score: `max_prob` is the largest probability, `margin` is the largest minus the second largest,
            `entropy` is 1 - H / log C, and `energy` is the logarithm of the sum of exp(f / T) of the logits before
            debiasing; null is `entropy`.
        coverage: the share of rows that get a label.
        min_precision: the required share of right labels, measured on the rows of `tune_on`: as many rows as possible
            get a label.
        min_score: rows with at least this score get a label.
    """

    unknown: ScoreName | None = None
    coverage: Share | None = None
    min_precision: ShareBelowOne | None = None
    min_score: Finite | None = None

    def __post_init__(self):
        names = ", ".join(get_args(ScoreName))
        check_settings(
            self, "", unknown=(self.unknown is None or self.unknown in get_args(ScoreName), f"one of {names}")
        )
        limits = [name for name in ("coverage", "min_precision", "min_score") if getattr(self, name) is not None]
        if len(limits) > 1:
            raise InputError(f"{limits[0]} and {limits[1]} are both a limit of what gets a label: leave out one")

    @property
    def score(self) -> ScoreName | None:
        """The score that rows have; None where none is asked for."""
        is_asked = (self.unknown, self.coverage, self.min_precision, self.min_score) != (None,) * 4
        return self.unknown or (DEFAULT_SCORE if is_asked else None)

    def check_kind(self, kind: Literal["logits", "probs"]) -> None:
        """Raises InputError where numbers of a kind do not have the score."""
        if kind == "probs" and self.score == "energy":
            raise InputError(
                "--unknown energy is the sum of exp(f), which is 1 for all rows of probabilities: choose max_prob, "
                "margin or entropy, or pass logits"
            )


@dataclass(frozen=True, kw_only=True)
class OnTuned:
    """The rows of `tune_on` that get a label at a threshold."""

    num: int
    num_labeled: int
    num_right: int

    @property
    def precision(self) -> float:
        return self.num_right / self.num_labeled

    @property
    def interval(self) -> Interval:
        """Wilson's interval, of 95 %."""
        return wilson_interval(self.num_right, self.num_labeled)


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """Why some rows have no label."""

    score: ScoreName
    threshold: float | None
    """Rows of lower scores have no label; None where all rows have one."""
    tuned: OnTuned | None = None
    """None where there is no `tune_on`, or where none of its rows has a label."""
    notes: tuple[str, ...] = ()
    """Notes for users about it."""


def abstain(
    config: AbstentionConfig,
    name: ScoreName,
    score: Float32[np.ndarray, " N"],
    label: Int64[np.ndarray, " N"],
    tuning: Int64[np.ndarray, " N"] | None,
) -> tuple[Bool[np.ndarray, " N"], Abstention]:
    """The rows that get no label, whose score is below the threshold that the settings ask for.

    A coverage is one of the rows that are not in `tune_on`, as all figures are.

    Args:
        config: the settings.
        name: of the score.
        score: of all rows.
        label: the class numbers that they would have.
        tuning: class numbers of the rows of `tune_on`, negative elsewhere; None where there are none.

    Raises:
        InputError: no rows of `tune_on` have labels of the precision that is asked for.
    """
    tuned = np.zeros(len(score), dtype=bool) if tuning is None else tuning >= 0
    # If all rows are in `tune_on`, there are no other rows.
    counted = ~tuned if not tuned.all() else tuned
    threshold = config.min_score
    if config.coverage is not None:
        threshold = threshold_of_coverage(score[counted], config.coverage)
    correct = np.zeros(0, dtype=bool) if tuning is None else label[tuned] == tuning[tuned]
    if config.min_precision is not None:
        threshold = threshold_of_precision(score[tuned], correct, config.min_precision)
        if threshold is None:
            raise InputError(_unreached(config.min_precision, len(correct)))
    labeled = np.ones(len(score), dtype=bool) if threshold is None else score >= np.float32(threshold)
    on_tuned = None
    if labeled[tuned].any():
        right = int(correct[labeled[tuned]].sum())
        on_tuned = OnTuned(num=len(correct), num_labeled=int(labeled[tuned].sum()), num_right=right)
    notes = tuple(_notes(config, float(labeled[counted].mean()), on_tuned))
    return ~labeled, Abstention(score=name, threshold=threshold, tuned=on_tuned, notes=notes)


def _unreached(precision: float, num: int) -> str:
    least = int(np.ceil(1 / (1 - precision) - 1 - 1e-9))
    if num < least:
        return (
            f"--min_precision {precision:g} cannot be verified with {num} rows of --tune_on: at least {least} "
            "rows are needed, even if all are right; label more rows, or pass --coverage"
        )
    return (
        f"--min_precision {precision:g} is not reached, even by the most certain of the {num} rows of --tune_on "
        "(one more wrong row than observed is counted): label more rows, lower it, or pass --coverage"
    )


def _notes(config: AbstentionConfig, coverage: float, on_tuned: OnTuned | None) -> Iterator[str]:
    if config.coverage is not None and coverage - config.coverage > MISSED:
        yield (
            f"{coverage:.1%} of the rows get a label instead of {config.coverage:.1%}: many rows have the same score "
            "at the threshold"
        )
    if coverage == 0:
        yield "no row gets a label: all scores are below the threshold"
    if config.min_precision is not None and on_tuned is not None:
        low, _ = on_tuned.interval
        if low < config.min_precision - FAR_BELOW:
            yield (
                f"{on_tuned.num_labeled} rows of tune_on above the threshold are few to measure a precision: it "
                f"may be as low as {low:.1%}; label more rows"
            )
