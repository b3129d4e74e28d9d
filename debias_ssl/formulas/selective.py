"""Selective prediction (arXiv 1705.08500): scores of rows, risk at each coverage, and thresholds for labels."""

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
    """How certain it is that a row has the class of its label: the larger, the more certain.

    `max_prob` is the largest probability (arXiv 1610.02136). `margin` is the largest minus the second one. `entropy` is
    1 - H / log C, with H the entropy of the probabilities. These three lie in [0, 1]. `energy` is logsumexp(f), the
    negative energy (arXiv 2010.03759): it measures whether the row is of any class at all.

    With `negatives`, names of things that are not a class count against all classes (NegLabel, arXiv 2403.20078). The
    first three are then multiplied by sum_k exp(f_k) / (sum_k exp(f_k) + sum_j exp(g_j)), the share of the classes. The
    energy is then that of the classes minus that of the negatives, which is the log-odds of this share.

    Args:
        name: the name of the score.
        logits: f / T, before a prior is removed.
        probs: probabilities of the classes from which the row gets its label.
        negatives: g / T, logits of names that are not classes.
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

    The coverage is the share of the rows with a score of at least the threshold. The risk is the share of these rows
    with a wrong label. Rows with equal scores are always on the same side of a threshold.
    """
    thresholds, place, number = np.unique(score, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, ~correct, len(thresholds))[::-1].cumsum()
    covered = number[::-1].cumsum()
    return covered / len(score), wrong / covered, thresholds[::-1]


def area_under_risk(score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> float:
    """AURC: the mean over k = 1 ... N of the risk of the k rows with the highest scores (arXiv 1805.08206).

    If rows have equal scores, it is the mean over all orders of these rows.
    """
    coverage, risk, _ = risk_coverage(score, correct)
    covered = np.concatenate([[0.0], coverage]) * len(score)
    number = np.arange(1, len(score) + 1)
    # In the mean over orders, mistakes are spread evenly over rows with equal scores.
    return float((np.interp(number, covered, np.concatenate([[0.0], risk]) * covered) / number).mean())


def threshold_of_coverage(score: Float[np.ndarray, " N"], coverage: float) -> float:
    """The threshold at which round(coverage N) rows are labeled, but at least one.

    More rows are labeled if several have a score equal to the threshold.
    """
    number = max(1, round(coverage * len(score)))
    return float(np.partition(score, len(score) - number)[len(score) - number])


def threshold_of_precision(
    score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"], precision: float
) -> float | None:
    """The lowest threshold at which labels reach a precision; None if none does.

    If w of n rows above a threshold are wrong, the risk is estimated as (w + 1) / (n + 1), as if one more row were
    wrong. The threshold is chosen on the same rows, so w / n would be too small on average (conformal risk control,
    arXiv 2208.02814).
    """
    coverage, risk, thresholds = risk_coverage(score, correct)
    covered = np.rint(coverage * len(score))
    reached = np.flatnonzero((np.rint(risk * covered) + 1) / (covered + 1) <= 1 - precision + 1e-12)
    return float(thresholds[reached[-1]]) if len(reached) else None
