"""Mixture: refines class probabilities by the features of the rows, with anchored prototypes and nearest neighbors.

The von Mises-Fisher mixture of MOON (2026), with prototypes anchored to known vectors as in StatA (CVPR 2025). With x_i
the unit features, t_k the unit anchors and p the probabilities at the start, each round computes:

    n_k = sum_i gamma_i z_ik,  beta_k = n_k / (n_k + alpha_k),  r_k = beta_k v_k + (1 - beta_k) rho t_k

    mu_k = r_k / |r_k|,  kappa_k = (|r_k| D - |r_k|^3) / (1 - |r_k|^2)
    l_ik = kappa_k mu_k x_i + (D - 1) / 2 log kappa_k - kappa_k
    z_i proportional to p_i exp{ omega l_i + lambda (W z + W^T z)_i }

The first round begins with z = p. gamma_i = 1 - H(z_i) / log C. v_k is the mean of the x_i with weights gamma_i z_ik. W
has the cosines of each row to its nearest neighbors (0 for negative ones). Three values differ from the paper:

- The paper's omega = 1/50 fits CLIP, whose logits are 100 cosines. Here omega = 0.3 spread(log p) / spread(l), at most
  1. `spread` is the deviation of a row's numbers from their mean, over all rows: the mixture never outweighs the start.
- rho = 1 would assume that all rows that an anchor represents lie at one point. A class of few rows would then seem
  very dense. Here rho = sum_k n_k |v_k| / sum_k n_k: these rows are as scattered as the rows of a class.
- alpha_k = 20 / (C mean_i p_ik): the anchor counts as 20 rows, and as more for a class that the start rarely predicts.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.formulas.logits import floored_log

# Number of nearest neighbors of a row.
NEIGHBORS = 3
ROUNDS = 10
# The anchor of a class of average share counts as this number of rows.
ANCHOR_ROWS = 20.0
# Smaller shares of a class count as this one when the rows of its anchor are computed.
SMALLEST_SHARE = 1e-6
# Spread of the mixture's terms, as a part of that of log p.
MIXTURE_SPREAD = 0.3
# Nats that a neighbor with the cosine 1 gives to its classes (lambda).
NEIGHBOR_WEIGHT = 1 / 6
# Largest |r|: it limits kappa for classes whose rows lie very close together.
LONGEST = 0.995
# Size of the parts in which large matrices are computed, in numbers.
BLOCK = 2**21
# While neighbors are found, components of features are multiples of 1 / GRID.
GRID = 2.0**12


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The nearest neighbors of each row."""

    index: Int64[Tensor, "N K"]
    """The nearest one first. Of equal ones, the next in row order comes first; the first row follows the last one."""
    cosine: Float[Tensor, "N K"]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The sparse matrix W + W^T, row after row."""

    first: Int64[Tensor, " _"]
    """Where the entries of each row begin; the last number is the number of all entries."""
    row: Int64[Tensor, " E"]
    column: Int64[Tensor, " E"]
    weight: Float[Tensor, " E"]

    def sums(self, values: Float[Tensor, "N C"], rows: slice) -> Float[Tensor, "n C"]:
        """Some rows of (W + W^T) z."""
        entries = slice(int(self.first[rows.start]), int(self.first[rows.stop]))
        terms = self.weight[entries, None] * values[self.column[entries]]
        result = values.new_zeros(rows.stop - rows.start, values.shape[1])
        return result.index_add_(0, self.row[entries] - rows.start, terms)


def nearest(
    features: Float[Tensor, "N D"],
    number: int = NEIGHBORS,
    block: int = BLOCK,
    progress: Callable[[int], object] = lambda _: None,
) -> Neighbors:
    """The K other rows with the largest cosines to each row; N - 1 rows if there are no more.

    Vectors are made a little shorter than 1, and their components rounded to multiples of 1 / 4096. All products and
    their sums are then multiples of 2^-24 below 1, which fp32 represents exactly in any order of addition. So neighbors
    do not depend on the size of a block, the library or the machine. The error of a cosine is about 1e-4.

    Args:
        features: x, of any length; a vector of zeros has the cosine 0 to all.
        number: K.
        block: how many numbers of the N x N matrix are in memory at a time.
        progress: called with the number of rows that were just done.
    """
    num_rows, dim = features.shape
    length = 1 / (1 + math.sqrt(dim) / (2 * GRID))
    rounded = F.normalize(features.float(), dim=1).mul_(length * GRID).round_().div_(GRID)
    number = min(number, num_rows - 1)
    index, cosine = torch.empty(num_rows, number, dtype=torch.int64), torch.empty(num_rows, number)
    columns = torch.arange(num_rows, dtype=torch.int32)
    for rows in blocks(num_rows, num_rows, block):
        found = rounded[rows] @ rounded.T
        own = columns[rows]
        found.scatter_(1, own[:, None].long(), -2)
        # The cosine in units of 2^-52, minus the distance to the other row in row order. This is exact in fp64, and up
        # to 2^28 rows no two are equal. If the lowest row number won ties, it would be the neighbor of all duplicates.
        keys = found.double().mul_(2.0**52).sub_((columns - own[:, None]) % num_rows)
        index[rows] = keys.topk(number).indices
        cosine[rows] = found.gather(1, index[rows]) / length**2
        progress(rows.stop - rows.start)
    return Neighbors(index=index, cosine=cosine)


def graph_of(neighbors: Neighbors) -> Graph:
    """W + W^T, in which cosines below 0 count as 0."""
    num_rows, number = neighbors.index.shape
    row, column = torch.arange(num_rows).repeat_interleave(number), neighbors.index.flatten()
    weight = neighbors.cosine.flatten().clamp(min=0).repeat(2)
    row, column = torch.cat([row, column]), torch.cat([column, row])
    order = (row * num_rows + column).argsort(stable=True)
    first = F.pad(torch.bincount(row, minlength=num_rows).cumsum(0), (1, 0))
    return Graph(first=first, row=row[order], column=column[order], weight=weight[order])


def anchored_means(
    features: Float[Tensor, "N D"],
    posterior: Float[Tensor, "N C"],
    anchors: Float[Tensor, "C D"],
    anchor_rows: Float[Tensor, " C"],
) -> Float[Tensor, "C D"]:
    """The r_k. Rows with low entropy count more. A class without rows has the direction of its anchor.

    Args:
        features: x, of length 1.
        posterior: z.
        anchors: t, of length 1.
        anchor_rows: alpha_k.
    """
    num_classes = len(anchors)
    sums = torch.zeros(anchors.shape, dtype=torch.float64)
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for rows in blocks(len(features), num_classes + features.shape[1]):
        z = posterior[rows]
        sure = 1 + (z * z.clamp(min=1e-30).log()).sum(1, keepdim=True) / math.log(num_classes)
        weights = sure.clamp(min=0) * z
        sums += (weights.T @ features[rows]).double()
        counts += weights.sum(0, dtype=torch.float64)
    # The sum is n v, so that no class is divided by a count of 0.
    scatter = sums.norm(dim=1).sum() / counts.sum().clamp(min=1e-12)
    return (sums + anchor_rows[:, None] * scatter * anchors) / (counts + anchor_rows)[:, None]


def log_densities(features: Float[Tensor, "N D"], means: Float[Tensor, "C D"]) -> Float[Tensor, "N C"]:
    """The l_ik of means r_k, up to a constant."""
    dim = features.shape[1]
    length = means.norm(dim=1, keepdim=True)
    mu = means / length.clamp(min=1e-12)
    length = length.squeeze(1).clamp(max=LONGEST)
    kappa = ((length * dim - length**3) / (1 - length**2)).clamp(min=1e-6)
    offset = (dim - 1) / 2 * kappa.log() - kappa
    return torch.addmm(offset.to(features.dtype), features, (kappa[:, None] * mu).to(features.dtype).T)


def refine(
    features: Float[Tensor, "N D"],
    probs: Float[Tensor, "N C"],
    anchors: Float[Tensor, "C D"],
    graph: Graph,
    *,
    anchor_rows: float = ANCHOR_ROWS,
    mixture_spread: float = MIXTURE_SPREAD,
    neighbor_weight: float = NEIGHBOR_WEIGHT,
    rounds: int = ROUNDS,
) -> Float[Tensor, "N C"]:
    """The posterior z of the module's formulas, with the mean confidence of the start.

    The terms of z are not independent, so their sum makes z overconfident. One temperature for all rows restores the
    start's mean confidence; it changes no label.

    Args:
        features: x, of length 1.
        probs: p, the start.
        anchors: t, of length 1.
        graph: W + W^T.
        anchor_rows: alpha_k of a class of average share.
        mixture_spread: the factor 0.3 of the formulas; 0 leaves the mixture out.
        neighbor_weight: lambda; 0 leaves the neighbors out.
        rounds: updates of the mixture and of z.
    """
    num_rows, num_classes = probs.shape
    start, posterior = floored_log(probs), probs
    of_classes = anchor_rows / (num_classes * probs.mean(0, dtype=torch.float64)).clamp(min=SMALLEST_SHARE)
    for _ in range(rounds):
        logits = log_densities(features, anchored_means(features, posterior, anchors, of_classes))
        omega = min(1.0, mixture_spread * spread(start) / max(spread(logits), 1e-12))
        logits.mul_(omega).add_(start)
        for rows in blocks(num_rows, 2 * NEIGHBORS * num_classes):
            logits[rows] += neighbor_weight * graph.sums(posterior, rows)
        posterior = logits.softmax(1)
    return as_sure_as(probs, posterior)


def spread(scores: Float[Tensor, "N C"]) -> float:
    """Root mean square of scores after the mean of each row is subtracted, which does not change softmax."""
    rows = blocks(len(scores), scores.shape[1])
    parts = (scores[part] - scores[part].mean(1, keepdim=True) for part in rows)
    return math.sqrt(sum(float(part.square().sum(dtype=torch.float64)) for part in parts) / scores.numel())


def as_sure_as(start: Float[Tensor, "N C"], posterior: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """softmax(log z / T), with the T at which its mean confidence is that of the start."""
    log_z = floored_log(posterior)
    wanted, low, high = float(start.amax(1).mean(dtype=torch.float64)), -5.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        tempered = (log_z / math.exp(middle)).softmax(1)
        is_surer = float(tempered.amax(1).mean(dtype=torch.float64)) > wanted
        low, high = (middle, high) if is_surer else (low, middle)
    return (log_z / math.exp(low)).softmax(1)


def blocks(num_rows: int, width: int, numbers: int = BLOCK) -> Iterator[slice]:
    """Parts of the rows of a matrix of some width, each with at most `numbers` numbers, or with one row."""
    step = max(1, numbers // max(1, width))
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))
