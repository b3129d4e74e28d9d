"""Objectives of fine-tuning: differentiable functions of a confusion matrix of shares (rows: true classes).

Shares are a confusion matrix in which each row is scaled to sum to 1 / C. So every class counts the same, whatever its
number of images. A user's own objective receives such a matrix and returns a scalar to maximize.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.formulas.metrics import Confusion, g_mean, h_mean, mean_recall, recalls
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.imports import imported, near

Objective = Callable[[Tensor], Tensor]
# Sharpness of the soft minimum, as in CSST and SelMix: the larger, the closer to the minimum.
ETA = 50.0
TAIL_SHARE = 0.1


def shares_of(counts: Confusion, added: float = 0.0) -> Float[Tensor, "C C"]:
    """A confusion matrix with rows that sum to 1 / C.

    Args:
        counts: images by (true class, predicted class); each class needs one, or `added` above 0.
        added: images that are added to each row, spread evenly: a recall of 0 on a few images becomes a small number,
            which has a gradient.
    """
    num = len(counts)
    counts = counts.double() + added / num
    return counts / counts.sum(1, keepdim=True) / num


def coverage(shares: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
    """Share of all predictions that each class gets."""
    return shares.sum(0)


def soft_minimum(values: Float[Tensor, " K"], eta: float = ETA) -> Float[Tensor, ""]:
    """-log sum_k exp(-eta v_k) / eta: concave, below the minimum by at most log(K) / eta.

    Its gradient is softmax(-eta v), the weights of the recalls in arXiv 2304.14738 and 2403.18301.
    """
    return -(-eta * values).logsumexp(0) / eta


def soft_min_recall(shares: Float[Tensor, "C C"], eta: float = ETA) -> Float[Tensor, ""]:
    """The soft minimum of the recalls."""
    return soft_minimum(recalls(shares), eta)


def head_tail_min(
    shares: Float[Tensor, "C C"], by_count: Int[Tensor, " C"] | None = None, eta: float = ETA
) -> Float[Tensor, ""]:
    """The soft minimum of two mean recalls: of the rarest tenth of the classes, at least one, and of the others.

    Args:
        shares: the confusion matrix of shares.
        by_count: classes from the most frequent to the rarest; None if they are already in this order.
        eta: sharpness of the soft minimum.
    """
    found = recalls(shares) if by_count is None else recalls(shares)[by_count]
    tail = max(1, round(TAIL_SHARE * len(found)))
    return soft_minimum(torch.stack([found[:-tail].mean(), found[-tail:].mean()]), eta)


def f1_macro(shares: Float[Tensor, "C C"]) -> Float[Tensor, ""]:
    """Mean over classes of 2 K_ii / (sum_j K_ij + sum_j K_ji), for equally frequent classes."""
    return (2 * shares.diagonal() / (shares.sum(0) + shares.sum(1))).mean()


OBJECTIVES: dict[str, Objective] = {
    "mean_recall": mean_recall,
    "min_recall": soft_min_recall,
    "h_mean": h_mean,
    "g_mean": g_mean,
    "head_tail_min": head_tail_min,
    "f1_macro": f1_macro,
}


def find_objective(name: str, labeled_counts: Int[Tensor, " C"]) -> Objective:
    """An objective by its name in OBJECTIVES, or by package.module.function.

    Raises:
        InputError: no objective has this name, or it is not a differentiable function of a matrix.
    """
    if name == "head_tail_min":
        by_count = torch.argsort(labeled_counts, descending=True, stable=True)
        return partial(head_tail_min, by_count=by_count)
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if "." not in name:
        raise InputError(
            f"there is no objective {name!r}{near(name, [*OBJECTIVES])}; the objectives are {', '.join(OBJECTIVES)}"
        )
    objective = imported(name, "objective")
    num = len(labeled_counts)
    example = shares_of(torch.eye(num) + 1).requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(objective(example), example)
        if not gradient.isfinite().all():
            raise ValueError("its gradient is not finite")
    except Exception as error:  # A user's function may raise anything.
        raise InputError(
            f"objective {name!r} is not a differentiable scalar function of a {num} x {num} tensor: {reason(error)}"
        ) from error
    return objective


@dataclass(frozen=True, kw_only=True)
class Goal:
    """An objective, and the smallest coverage that a class may have.

    With a coverage, the Lagrangian psi(K) + sum_j lambda_j (cov_j - coverage / C), divided by 1 + max lambda, replaces
    psi (arXiv 2403.18301). Here lambda_j = max(0, largest (1 - exp((cov_j - coverage / C) / temperature))).

    Args:
        objective: psi.
        coverage: each class must get at least this part of 1 / C of the predictions; null is no constraint.
        largest: the largest multiplier.
        temperature: the smaller, the faster a multiplier grows with the missing coverage; 0.1 and 0.01 in the paper.
    """

    objective: Objective
    coverage: float | None = None
    largest: float = 100.0
    temperature: float = 0.01

    def slack(self, shares: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
        """The coverage of each class minus the required one; negative if it is too small."""
        return coverage(shares) - (self.coverage or 0.0) / len(shares)

    def multipliers(self, shares: Float[Tensor, "C C"]) -> Float[Tensor, " C"]:
        if self.coverage is None:
            return torch.zeros_like(shares[0])
        return (self.largest * (1 - (self.slack(shares) / self.temperature).exp())).clamp(min=0)

    def gradient(self, shares: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
        """The derivative of the Lagrangian by the shares, with the multipliers of these shares."""
        multipliers = self.multipliers(shares)
        point = shares.detach().requires_grad_()
        (own,) = torch.autograd.grad(self.objective(point), point)
        return (own + multipliers) / (1 + multipliers.max())

    def logit_gradient(self, shares: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
        """The derivative by A, with softmax(A_i) / C as row i of the shares: K_ij (g_ij - C sum_k g_ik K_ik)."""
        gradient = self.gradient(shares)
        mean = (gradient * shares).sum(1, keepdim=True) / shares.sum(1, keepdim=True)
        return shares * (gradient - mean)

    def rank(self, counts: Confusion) -> tuple[float, float]:
        """Sort key, greater is better: first less missing coverage, then a larger psi.

        A class may have few images, so psi is computed from `shares_of(counts, added=1)`.
        """
        missing = (-self.slack(shares_of(counts))).clamp(min=0).sum().item() if self.coverage is not None else 0.0
        # Rounded, so that values are equal if they differ only by the order of addition.
        return -round(missing, 9), round(self.objective(shares_of(counts, added=1.0)).item(), 9)
