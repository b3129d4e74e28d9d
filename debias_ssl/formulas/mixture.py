"""Refines class probabilities by the positions of the rows: prototypes anchored to known vectors, nearest neighbors.

The von Mises-Fisher mixture of MOON (2026), which anchors prototypes as StatA (CVPR 2025) does. With x_i the unit
features, t_k the unit anchors and p the probabilities of the start, rounds of

    n_k = sum_i gamma_i z_ik,  beta_k = n_k / (n_k + alpha_k),  r_k = beta_k v_k + (1 - beta_k) rho t_k
    mu_k = r_k / |r_k|,  kappa_k = (|r_k| D - |r_k|^3) / (1 - |r_k|^2)
    l_ik = kappa_k mu_k x_i + (D - 1) / 2 log kappa_k - kappa_k
    z_i proportional to p_i exp{ omega l_i + lambda (W z + W^T z)_i }

from z = p, where gamma_i = 1 - H(z_i) / log C, v_k is the mean of the x_i with weights gamma_i z_ik, and W holds the
cosines of each row to its nearest neighbors (negative ones as 0). It differs from the paper in three places:

- omega = 1/50 fits CLIP, whose logits are 100 cosines. Here omega = 0.3 spread(log p) / spread(l), and at most 1, where
  `spread` is the deviation of a row's numbers from their mean, over all rows: the mixture never outvotes the start.
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

# Nearest neighbors of a row.
NEIGHBORS = 3
ROUNDS = 10
# Rows that the anchor of a class of average share counts as.
ANCHOR_ROWS = 20.0
# Shares of a class below which its anchor counts as no more rows.
SMALLEST_SHARE = 1e-6
# Spread of the mixture's terms, as a part of that of log p.
MIXTURE_SPREAD = 0.3
# Nats that a neighbor with the cosine 1 gives to its classes (lambda).
NEIGHBOR_WEIGHT = 1 / 6
# Of |r|: rows of a class that lie closer together are taken for that close.
LONGEST = 0.995
# Numbers of a large matrix that are worked on at a time.
BLOCK = 2**21
# Parts of 1 that components of features are rounded to while neighbors are found.
GRID = 2.0**12


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """The nearest neighbors of each row."""

    index: Int64[Tensor, "N K"]
    """The nearest one first; of equal ones, that which comes next in row order, as if this were a ring."""
    cosine: Float[Tensor, "N K"]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """W + W^T, row after row."""

    first: Int64[Tensor, " _"]
    """Of each row, where its entries begin; and their number in the end."""
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
    """The rows of the largest cosines to each row, which is none of its own neighbors; N - 1 where there are no more.

    Components are rounded to multiples of 1 / 4096, after vectors were made a little shorter than 1. All products and
    their sums are then multiples of 2^-24 below 1, which fp32 holds exactly in whatever order it adds: neighbors do not
    depend on the size of a block, the library or the machine. A cosine is off by about 1e-4.

    Args:
        features: x, of any length; a vector of zeros has the cosine 0 to all.
        number: K.
        block: numbers of the N x N matrix that are held at a time.
        progress: takes the number of rows that are done.
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
        # The cosine in units of 2^-52 less the steps to the other row: exact in fp64, and no two are equal below 2^28
        # rows. Were ties given to the lowest number, that row would be the neighbor of all duplicates.
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
    """The r_k; sure rows count more, and where a class has no row it has the direction of the anchor.

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
    # n v is the sum: no class has to be divided by a count of 0.
    scatter = sums.norm(dim=1).sum() / counts.sum().clamp(min=1e-12)
    return (sums + anchor_rows[:, None] * scatter * anchors) / (counts + anchor_rows)[:, None]


def log_densities(features: Float[Tensor, "N D"], means: Float[Tensor, "C D"]) -> Float[Tensor, "N C"]:
    """The l_ik of means r_k, but for a constant."""
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
    """The posterior z of the module's formulas, as sure on average as the start.

    Sums of evidence that is not independent make it surer than it is right; one temperature for all rows, which changes
    no label, gives it back the start's mean confidence.

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
    """Root mean square of what is left of scores without the mean of their row, which softmax does not see."""
    rows = blocks(len(scores), scores.shape[1])
    parts = (scores[part] - scores[part].mean(1, keepdim=True) for part in rows)
    return math.sqrt(sum(float(part.square().sum(dtype=torch.float64)) for part in parts) / scores.numel())


def as_sure_as(start: Float[Tensor, "N C"], posterior: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """softmax(log z / T) with the T at which the mean of its largest probabilities is that of the start."""
    log_z = floored_log(posterior)
    wanted, low, high = float(start.amax(1).mean(dtype=torch.float64)), -5.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        tempered = (log_z / math.exp(middle)).softmax(1)
        is_surer = float(tempered.amax(1).mean(dtype=torch.float64)) > wanted
        low, high = (middle, high) if is_surer else (low, middle)
    return (log_z / math.exp(low)).softmax(1)


def blocks(num_rows: int, width: int, numbers: int = BLOCK) -> Iterator[slice]:
    """Parts of the rows in which a matrix of some width has at most so many numbers, or one row."""
    step = max(1, numbers // max(1, width))
    for first in range(0, num_rows, step):
        yield slice(first, min(first + step, num_rows))
