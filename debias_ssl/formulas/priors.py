"""Class priors of a classifier, estimated from its logits: one function for each estimate of its bias.

Each function takes chunks of logits f, n x C, and returns a distribution q over the C classes. It reads the chunks
once, or once for each iteration, and sums in fp64. The result does not depend on the chunk boundaries.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from debias_ssl.formulas.chains import stationary_vector
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY, finite_log, floored_log, largest
from debias_ssl.system.ahead import ahead

Chunks = Iterable[Float[Tensor, "_ C"]]
"""Logits in row order, already divided by the temperature; can be iterated more than once."""

Prior = Float[Tensor, " C"]

# `balancing` begins with these epsilons: softer problems are solved fast, and each solution is near the next one.
ANNEALED = (64.0, 16.0, 4.0, 1.0, 0.25)
WARM_ITERATIONS = 10
# At this epsilon nearly all probability of a row is on one class, unless two logits differ by less than some tenths.
SHARP = 0.05
# Iterations end if half the L1 distance is below this.
TOLERANCE = 1e-4
# Largest number of passes over the rows of the search that continues if scaling is too slow.
SEARCH_PASSES = 100
# Constants of `supported_share`, in rows per class: the removed share is 1 from ENOUGH_ROWS on, and half of its limit
# at HALF_ROWS.
ENOUGH_ROWS, HALF_ROWS = 10, 2
# Up to this number, each class is a state of the chain of `stationary`, in fp64 and in one pass.
FEW_CLASSES = 4096
# The probability that the chain of `stationary` restarts in a step.
RESTART = 1e-14


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The result of iterations."""

    prior: Prior
    left: float
    """Half the L1 distance in the end: to the target, or between the last two iterations."""

    @property
    def is_settled(self) -> bool:
        return self.left < TOLERANCE


def supported_share(num_rows: int, num_classes: int) -> float:
    """The part of a prior that is removed if it was estimated from these rows: min(1, 1.2 n / (n + 2 C)).

    A prior estimated from one row is the prediction of this row; to remove it would make all classes equal. So the part
    is 0 for no row, 0.4 for one row a class, and 1 from ten rows a class on. It was chosen on half of the CIFAR-10 test
    images and on synthetic logits. For batches of any size, the accuracy of labels was then at most one percentage
    point below that of plain labels.
    """
    most = (ENOUGH_ROWS + HALF_ROWS) / ENOUGH_ROWS
    # Exactly 1 for enough rows; the quotient might round to another number.
    is_enough = num_rows >= ENOUGH_ROWS * num_classes
    return 1.0 if is_enough else most * num_rows / (num_rows + HALF_ROWS * num_classes)


def _mean(chunks: Chunks, row: Callable[[Tensor], Tensor]) -> Float[Tensor, " _"]:
    """Mean over all rows of a function of a row."""
    total, num_rows = torch.zeros((), dtype=torch.float64), 0
    for logits in chunks:
        total = total + row(logits).double().sum(0)
        num_rows += len(logits)
    return total / num_rows


def _mean_probs(chunks: Chunks, offset: Float[Tensor, " C"], epsilon: float = 1.0) -> Prior:
    return _mean(chunks, lambda logits: ((logits + offset.to(logits.dtype)) / epsilon).softmax(-1))


def mean_probs(chunks: Chunks) -> Prior:
    """The marginal q = mean_n softmax(f_n): that of DebiasPL (arXiv 2201.01490), over all rows at once."""
    return _mean(chunks, lambda logits: logits.softmax(-1))


def balancing(
    chunks: Chunks,
    target: Prior,
    epsilon: float = 1.0,
    iterations: int = 100,
    tolerance: float = TOLERANCE,
    annealed: Sequence[float] = ANNEALED,
) -> Solution:
    """The q whose removal gives the predictions a target mean: mean_n softmax((f_n - log q) / epsilon) = target.

    log q <- log q + epsilon (log mean_n softmax((f_n - log q) / epsilon) - log target)

    This is Sinkhorn's scaling of the columns of exp(f / epsilon) between two scalings of its rows, and therefore
    converges. With epsilon 1, q is the fixed point of repeated subtraction of the log marginal (arXiv 2201.01490). If
    the iterations do not reach the tolerance, L-BFGS continues from their result.

    Args:
        chunks: f.
        target: mean probabilities of the debiased rows.
        epsilon: how soft the probabilities are; toward 0 they become assignments.
        iterations: largest number of iterations with this epsilon.
        tolerance: iterations end if half the L1 distance of mean and target is below; 0 makes all iterations, without
            L-BFGS.
        annealed: larger epsilons, used first.
    """
    log_target = floored_log(target.double())
    log_q, left = torch.zeros_like(log_target), math.inf
    stages = [(value, WARM_ITERATIONS) for value in annealed if value > epsilon] + [(epsilon, iterations)]
    for value, most in stages:
        for _ in range(most):
            mean = _mean_probs(chunks, -log_q, value)
            left = _distance(mean, target)
            if left < tolerance:
                break
            # The clamp keeps the step finite for a class whose probabilities all underflow.
            step = mean.clamp(min=torch.finfo(torch.float32).tiny).log() - log_target
            log_q = (log_q + value * step).log_softmax(-1)
    if 0 < tolerance <= left:
        log_q, left = _search(chunks, target.double(), epsilon, log_q, tolerance)
    return Solution(prior=log_q.softmax(-1), left=left)


def transport(chunks: Chunks, target: Prior) -> Solution:
    """The q whose removal gives the numbers of predicted labels the proportions of a target.

    Optimal transport of the rows, with equal weights, to the classes, with the weights of the target, at the cost
    -log p. Its dual solution is log q (OTTER, arXiv 2404.08461). It is `balancing` with an epsilon near 0.
    """
    return balancing(chunks, target, SHARP, WARM_ITERATIONS)


def _distance(one: Prior, other: Prior) -> float:
    return float((one - other).abs().sum() / 2)


class _Found(Exception):
    """Ends a search of SciPy, which has no such tolerance."""


def _search(
    chunks: Chunks, target: Prior, epsilon: float, start: Float[Tensor, " C"], tolerance: float
) -> tuple[Float[Tensor, " C"], float]:
    """The log q of `balancing` by L-BFGS on the dual problem, and half the L1 distance to the target in the end.

    It minimizes epsilon mean_n log sum_k exp((f_nk - log q_k) / epsilon) + sum_k target_k log q_k. This is convex, and
    its gradient is target - mean.
    """
    best = [math.inf, start]

    def dual(x: Float64[np.ndarray, " C"]) -> tuple[float, Float64[np.ndarray, " C"]]:
        log_q = torch.from_numpy(x.copy())

        def both(logits: Tensor) -> Tensor:
            # In fp64: near the minimum, the value changes by less than the precision of fp32.
            scaled = (logits.double() - log_q) / epsilon
            return torch.cat([scaled.softmax(-1), scaled.logsumexp(-1, keepdim=True)], -1)

        means = _mean(chunks, both)
        left = _distance(means[:-1], target)
        if left < best[0]:
            best[:] = left, log_q
        if left < tolerance:
            raise _Found
        return float(epsilon * means[-1] + target @ log_q), (target - means[:-1]).numpy()

    try:
        options = {"maxfun": SEARCH_PASSES, "maxcor": 20, "ftol": 0, "gtol": 0}
        scipy.optimize.minimize(dual, start.numpy(), jac=True, method="L-BFGS-B", options=options)
    except _Found:
        pass
    left, log_q = best
    return log_q.log_softmax(-1), left


def running_mean(chunks: Chunks, momentum: float, batch_size: int = 64) -> Prior:
    """q <- m q + (1 - m) mean softmax(f) for each batch, from uniform: as in DebiasPL (arXiv 2201.01490).

    Batches follow the order of the rows. The last one counts like the others, even if it is not full.
    """
    q: Tensor | None = None
    unfinished, num_rows = torch.zeros((), dtype=torch.float64), 0
    for logits in chunks:
        if q is None:
            q = torch.full((logits.shape[1],), 1 / logits.shape[1], dtype=torch.float64)
        # A full batch stays unfinished until another row follows; the last batch is added after the loop.
        first = max(num_rows - 1, 0) // batch_size
        batch = torch.arange(num_rows, num_rows + len(logits)) // batch_size - first
        sums = torch.zeros(int(batch[-1]) + 1, len(q), dtype=torch.float64)
        sums[0] = unfinished
        sums.index_add_(0, batch, logits.softmax(-1).double())
        age = torch.arange(len(sums) - 2, -1, -1, dtype=torch.float64)
        q = momentum ** (len(sums) - 1) * q + (1 - momentum) * momentum**age @ (sums[:-1] / batch_size)
        unfinished, num_rows = sums[-1], num_rows + len(logits)
    assert q is not None
    return momentum * q + (1 - momentum) * unfinished / ((num_rows - 1) % batch_size + 1)


def confidence_weighted(chunks: Chunks) -> Prior:
    """q = sum_n w_n p_n / sum_n w_n with p = softmax(f), w = 1 - H(p) / log C: the label prior of DRC (2026).

    Confident rows have larger weights. If no row is confident, all have the same weight.
    """

    def weighted(logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        entropy = -(probs * log_probs).sum(-1, keepdim=True)
        return (1 - entropy / math.log(logits.shape[1])).clamp(min=SMALLEST_PROBABILITY) * probs

    total = _mean(chunks, weighted)
    return total / total.sum()


def stationary(chunks: Chunks) -> Prior:
    """The q with q = P q; column k of P is the mean softmax of the rows predicted as k (Frolic, NeurIPS 2024).

    For a class that is never predicted, the column is the mean of all rows: the class then has the mass that rows of
    other classes give it. About once in 1 / RESTART steps the chain restarts from a class drawn uniformly. So q is
    unique, even if the chain never leaves some classes.

    If there are many classes, a first pass finds those that are predicted. All others are one state of the chain. The
    matrix then needs four bytes for each pair of a state and a class.
    """
    num_classes = next(iter(chunks)).shape[1]
    is_state, dtype = torch.ones(num_classes, dtype=torch.bool), torch.float64
    if num_classes > FEW_CLASSES:
        is_state, dtype = torch.zeros_like(is_state), torch.float32
        for logits in chunks:
            is_state[largest(logits)[1]] = True
    states, others = is_state.nonzero()[:, 0], (~is_state).nonzero()[:, 0]
    place, num = is_state.cumsum(0) - 1, len(states)
    # The columns are the classes. The loop over rows reorders them: the states, the sum of all others, each other one.
    sums = torch.zeros(num + 1, num_classes + 1, dtype=dtype)
    total = torch.zeros(num_classes + 1, dtype=torch.float64)

    def summed(logits: Tensor) -> tuple[Tensor, Tensor]:
        return _summed(logits.softmax(-1), place[largest(logits)[1]], dtype)

    for of_state, found in ahead(summed, chunks):
        sums[:, :-1].index_add_(0, found, of_state)
        total[:-1] += of_state.sum(0)
    mean = (total / total.sum()).to(dtype)
    for row in sums:
        own = row / row.sum() if row.any() else mean
        row[:num], row[num], row[num + 1 :] = own[states], own[others].sum(), own[others]
    step, of_others = sums[:, : num + 1], sums[:, num + 1 :]
    sums += RESTART / num_classes
    step[:, num] += RESTART * (len(others) - 1) / num_classes
    q = stationary_vector(step)
    whole = torch.empty(num_classes, dtype=torch.float64)
    whole[states], whole[others] = q[:num], (q.to(dtype) @ of_others).double()
    return whole / whole.sum()


def _summed(
    probs: Float[Tensor, "n C"], place: Int64[Tensor, " n"], dtype: torch.dtype
) -> tuple[Float[Tensor, "s C"], Int64[Tensor, " s"]]:
    """The sums of the rows of each state that has rows, and the numbers of these states."""
    found, which = place.unique(return_inverse=True)
    numbers = probs.detach().to(dtype).numpy()
    # A product with a sparse matrix of ones is many times faster than index_add_ with all rows.
    entries = np.ones(len(numbers), dtype=numbers.dtype), (which.numpy(), np.arange(len(numbers)))
    return torch.from_numpy(scipy.sparse.csr_array(entries, shape=(len(found), len(numbers))) @ numbers), found


def centering(chunks: Chunks) -> Prior:
    """q = softmax(mean_n f_n): after its removal, all classes have the same mean logit (ZPE, arXiv 2302.06235)."""
    return _mean(chunks, lambda logits: logits).softmax(-1)


def content_free(blank: Float[Tensor, "K C"]) -> Prior:
    """q = softmax(mean_k f_k) of blank images, whose logits are the bias alone (CDMAD, arXiv 2403.10391)."""
    return blank.double().mean(0).softmax(-1)


def expectation_maximization(
    chunks: Chunks, source: Prior, iterations: int = 100, tolerance: float = TOLERANCE
) -> Solution:
    """The class shares pi of the rows, for a classifier trained on other shares (Saerens et al., 2002).

    pi <- mean_n [p_n pi / source / sum_k(p_nk pi_k / source_k)] with p = softmax(f), from pi = source.

    Args:
        chunks: f.
        source: the classifier's own prior.
        iterations: largest number of iterations.
        tolerance: iterations end if half the L1 distance of two successive pi is below.
    """
    log_source = floored_log(source.double())
    pi, left = log_source.softmax(-1), math.inf
    for _ in range(iterations):
        before, pi = pi, _mean_probs(chunks, finite_log(pi) - log_source)
        left = _distance(pi, before)
        if left < tolerance:
            break
    return Solution(prior=pi, left=left)
