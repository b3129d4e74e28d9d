"""Selective prediction (arXiv 1705.08500): scores of rows, the risk at each coverage, and thresholds."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

ScoreName = Literal["max_prob", "margin", "entropy", "energy"]


def score_of(
    name: ScoreName,
    logits: Float[Tensor, "N C"],
    probs: Float[Tensor, "N C"],
    negatives: Float[Tensor, "N K"] | None = None,
) -> Float[Tensor, " N"]:
    """How sure it is that a row is of the class that it is labeled as: the larger, the surer.

    `max_prob` is the largest probability (arXiv 1610.02136), `margin` that less the second one, and `entropy` is
    1 - H / log C, with H the entropy of the probabilities: all of them lie in [0, 1]. `energy` is logsumexp(f), the
    negative energy (arXiv 2010.03759), which says how much of any class there is in a row, and not of which.

    Of names that are none of the classes, the mass counts against all classes (NegLabel, arXiv 2403.20078): the first
    three are multiplied by the share of the classes, sum_k exp(f_k) / (sum_k exp(f_k) + sum_j exp(g_j)), and the
    energy is that of the classes less that of the names, the logarithm of the odds of this share.

    Args:
        name: of the score.
        logits: f / T, nothing subtracted.
        probs: of the classes, by which the row is labeled.
        negatives: g / T, logits of names that are none of the classes.
    """
    energy = logits.logsumexp(-1)
    odds = None if negatives is None else energy - negatives.logsumexp(-1)
    match name:
        case "energy":
            return energy if odds is None else odds
        case "max_prob":
            score = probs.amax(-1)
        case "margin":
            first, second = probs.topk(2).values.unbind(-1)
            score = first - second
        case "entropy":
            score = 1 - torch.special.entr(probs).sum(-1) / np.log(probs.shape[-1])
    return score if odds is None else score * odds.sigmoid()


def risk_coverage(
    score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]
) -> tuple[Float64[np.ndarray, " T"], Float64[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """At each threshold from the highest score to the lowest: coverage, risk, and the threshold.

    The coverage is the share of the rows with a score of at least the threshold, the risk the share of these that are
    wrong. Rows of the same score are above a threshold together.
    """
    thresholds, place, number = np.unique(score, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, ~correct, len(thresholds))[::-1].cumsum()
    covered = number[::-1].cumsum()
    return covered / len(score), wrong / covered, thresholds[::-1]


def area_under_risk(score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float:
    """AURC: the mean over k = 1 ... N of the risk of the k rows of the highest scores (arXiv 1805.08206).

    Of rows of the same score, the mean over their orders.
    """
    coverage, risk, _ = risk_coverage(score, correct)
    covered = np.concatenate([[0.0], coverage]) * len(score)
    number = np.arange(1, len(score) + 1)
    # In the mean over orders, mistakes are spread evenly over rows of the same score.
    return float((np.interp(number, covered, np.concatenate([[0.0], risk]) * covered) / number).mean())


def threshold_of_coverage(score: Float[np.ndarray, " N"], coverage: float) -> float:
    """The score from which on rows are labeled, so that round(coverage N) rows are, and one at least.

    Where rows of the same score are at the limit, they are all labeled: there are more then.
    """
    number = max(1, round(coverage * len(score)))
    return float(np.partition(score, len(score) - number)[len(score) - number])


def threshold_of_precision(
    score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], precision: float
) -> float | None:
    """The lowest score from which on rows are right with a precision; None where there is none.

    Of n rows above a threshold and w wrong ones, the risk is (w + 1) / (n + 1), as if one more row were wrong: the
    threshold is chosen on these rows, so that w / n is too small on average (conformal risk control, arXiv 2208.02814).
    """
    coverage, risk, thresholds = risk_coverage(score, correct)
    covered = np.rint(coverage * len(score))
    reached = np.flatnonzero((np.rint(risk * covered) + 1) / (covered + 1) <= 1 - precision + 1e-12)
    return float(thresholds[reached[-1]]) if len(reached) else None
