"""Bootstrap intervals for the class shares of rows: computes the bias and the shares of all draws at once.

The point estimates are `priors.balancing` and `priors.expectation_maximization`. Each draw gives the rows other
weights. All draws iterate together, so that each iteration is two matrix products.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from debias_ssl.formulas.logits import floored_log

# Largest part of a matrix of rows and draws in memory at a time, in numbers: 64 MiB.
HELD_NUMBERS = 2**24
# Largest numbers of iterations. Few are needed, because draws start near their result.
BALANCING_ITERATIONS, SHARE_ITERATIONS = 50, 100
# Part of the uniform distribution in the first shares of draws: a class that starts at share 0 would stay there.
MIXED_IN = 0.1
# Iterations end if half the L1 distance is below this.
TOLERANCE = 1e-4
# Quantiles of a 95 % interval.
ENDS = (0.025, 0.975)
# A class is present if its share is at least this part of 1 / C. Absent classes have this weight beside a weight of 1.
LEAST_SHARE, ABSENT_WEIGHT = 0.2, 1e-3


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Estimated shares of the classes among rows."""

    share: Float64[np.ndarray, " C"]
    low: Float64[np.ndarray, " C"]
    high: Float64[np.ndarray, " C"]
    """95 % intervals."""

    @property
    def is_present(self) -> Bool[np.ndarray, " C"]:
        """Whether there is clear evidence of a class: its interval lies above 0.2 / C."""
        return self.low >= LEAST_SHARE / len(self.low)


def bootstrap_weights(num_rows: int, num_draws: int, seed: int) -> Float[Tensor, "N B"]:
    """Weights of rows in bootstrap draws (Efron, 1979), which sum to 1: a row is drawn Poisson(1) times."""
    counts = torch.poisson(torch.ones(num_rows, num_draws), torch.Generator().manual_seed(seed))
    # A draw of few rows may be empty: then all rows count the same.
    counts[:, counts.sum(0) == 0] = 1.0
    return counts / counts.sum(0)


def balancing_draws(
    probs: Float[Tensor, "N C"], weights: Float[Tensor, "N B"], start: Float[Tensor, " C"]
) -> Float64[Tensor, "B C"]:
    """log q of each draw, whose removal makes the weighted mean of the probabilities uniform.

    Args:
        probs: softmax(f).
        weights: weights of the rows in each draw.
        start: log q with equal weights.
    """
    log_q = start.double().expand(weights.shape[1], -1)
    for _ in range(BALANCING_ITERATIONS):
        mean = _weighted_means(probs, weights, -log_q)
        step = mean.log() - mean.log().mean(-1, keepdim=True)
        log_q = (log_q + step).log_softmax(-1)
        if _moved(mean, torch.full_like(mean, 1 / mean.shape[1])) < TOLERANCE:
            break
    return log_q


def share_draws(
    probs: Float[Tensor, "N C"],
    weights: Float[Tensor, "N B"],
    log_source: Float[Tensor, "B C"],
    start: Float[Tensor, " C"],
) -> Float64[Tensor, "B C"]:
    """Shares pi of each draw by expectation maximization, as in `priors.expectation_maximization`.

    Args:
        probs: softmax(f).
        weights: weights of the rows in each draw.
        log_source: log of the classifier's own prior in each draw.
        start: the shares with equal weights.
    """
    mixed = (1 - MIXED_IN) * start.double() + MIXED_IN / len(start)
    pi = mixed.expand(weights.shape[1], -1)
    for _ in range(SHARE_ITERATIONS):
        before, pi = pi, _weighted_means(probs, weights, floored_log(pi) - log_source)
        if _moved(pi, before) < TOLERANCE:
            break
    return pi


def interval(draws: Float[Tensor, "B C"], point: Float[Tensor, " C"], narrower: float = 1.0) -> Float64[Tensor, "2 C"]:
    """95 % intervals of shares, the lower ends first.

    Args:
        draws: shares of the draws.
        point: the point estimate of the shares.
        narrower: sqrt(m / N) if draws have m rows and the shares are those of N rows.
    """
    ends = torch.quantile(draws.double(), torch.tensor(ENDS, dtype=torch.float64), dim=0)
    return (point + narrower * (ends - point)).clamp(0, 1)


def smoothed(share: Float[Tensor, " C"], num_rows: int) -> Float64[Tensor, " C"]:
    """(n pi + 1/2) / (n + C / 2), Jeffreys' prior: a class without rows among n stays possible."""
    return (num_rows * share.double() + 0.5) / (num_rows + len(share) / 2)


def present(share: Float[Tensor, " C"]) -> Float64[Tensor, " C"]:
    """Shares that are equal for all present classes, and 0.001 times as large for the others."""
    weight = torch.where(share >= LEAST_SHARE / len(share), 1.0, ABSENT_WEIGHT).double()
    return weight / weight.sum()


def _weighted_means(
    probs: Float[Tensor, "N C"], weights: Float[Tensor, "N B"], offsets: Float[Tensor, "B C"]
) -> Float64[Tensor, "B C"]:
    """sum_n w_nb softmax(f_n + offset_b) for each draw b."""
    factors = (offsets - offsets.amax(-1, keepdim=True)).exp().to(probs.dtype)
    tiny, means = torch.finfo(probs.dtype).tiny, []
    held = max(1, HELD_NUMBERS // len(probs))
    for some, of_rows in zip(factors.split(held), weights.split(held, dim=1), strict=True):
        sums = (probs @ some.T).clamp_(min=tiny)
        means.append((some * ((of_rows / sums).T @ probs)).double())
    mean = torch.cat(means).clamp(min=tiny)
    return mean / mean.sum(-1, keepdim=True)


def _moved(one: Float[Tensor, "B C"], other: Float[Tensor, "B C"]) -> float:
    return float((one - other).abs().sum(-1).max() / 2)
