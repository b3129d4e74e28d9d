"""Criteria that rate a classifier by its predictions on unlabeled images."""

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

    sigma are the singular values of the features, which are not centered. It is 1 where all features lie on a line
    through the origin, and min(N, D) where they fill all directions alike.
    """
    sigma = torch.linalg.svdvals(features.double())
    p = sigma / sigma.sum().clamp(min=torch.finfo(torch.float64).tiny) + EPSILON
    return float((-(p * p.log()).sum()).exp())


def nuclear_norm(probs: Float[Tensor, "N C"]) -> float:
    """BNM (arXiv 2003.12237): the nuclear norm of class probabilities, as a part of its largest value.

    |P|_* / sqrt(N min(N, C)): 1 where all rows are sure and the classes equally frequent, and the smaller the less sure
    rows are and the fewer classes they name.
    """
    num, num_classes = probs.shape
    return float(torch.linalg.svdvals(probs.double()).sum()) / (num * min(num, num_classes)) ** 0.5


def mean_ranks(criteria: Sequence[Float64[np.ndarray, " M"]]) -> Float64[np.ndarray, " M"]:
    """The mean rank of each of M models over criteria, of which higher is better; 1 is the best, and equal ones share.

    Args:
        criteria: the values of the models, criterion by criterion.
    """
    return np.mean([scipy.stats.rankdata(-values) for values in criteria], axis=0)
