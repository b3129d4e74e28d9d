"""Criteria that rate a classifier without labels: RankMe, the nuclear norm of predictions, and mean ranks of both."""

from collections.abc import Sequence

import numpy as np
import scipy
import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Keeps the logarithm of RankMe finite, as in the paper.
EPSILON = 1e-7


def rank_me(features: Float[Tensor, "N D"]) -> float:
    """RankMe (arXiv 2210.02885): exp(-sum_k p_k log p_k), p_k = sigma_k / sum_j sigma_j + 1e-7.

    sigma are the singular values of the features, which are not centered. It is 1 if all features lie on a line through
    the origin, and min(N, D) if they fill all directions equally.
    """
    sigma = torch.linalg.svdvals(features.double())
    p = sigma / sigma.sum().clamp(min=torch.finfo(torch.float64).tiny) + EPSILON
    return float((-(p * p.log()).sum()).exp())


def nuclear_norm(probs: Float[Tensor, "N C"]) -> float:
    """BNM (arXiv 2003.12237): the nuclear norm of class probabilities, divided by its largest value.

    |P|_* / sqrt(N min(N, C)) is 1 if all rows have confidence 1 and the classes are equally frequent. It is smaller if
    confidences are lower or fewer classes are predicted.
    """
    num, num_classes = probs.shape
    return float(torch.linalg.svdvals(probs.double()).sum()) / (num * min(num, num_classes)) ** 0.5


def mean_ranks(criteria: Sequence[Float64[np.ndarray, " M"]]) -> Float64[np.ndarray, " M"]:
    """The mean rank of each of M models over criteria; 1 is the best, and equal models share a rank.

    Args:
        criteria: for each criterion, the values of the models; higher is better.
    """
    return np.mean([scipy.stats.rankdata(-values) for values in criteria], axis=0)
