"""Stationary distributions of Markov chains, even of chains that almost never leave a state or a group of states."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Number of states that are removed from a chain at a time: most of the work is products with matrices of this width.
BLOCK = 128


def stationary_vector(step: Float[Tensor, "n n"]) -> Float64[Tensor, " n"]:
    """The q with q = q P, by removing states from the chain, the last ones first (Grassmann, Taksar, Heyman, 1985).

    Split the states into A and B. A chain that is watched only in A has the probabilities
    P_AA + P_AB (I - P_BB)^-1 P_BA, and q_B = q_A P_AB (I - P_BB)^-1.

    Nothing is subtracted: the diagonal is never read, because it is 1 minus the other numbers of its row. So the
    relative error of each number of q is a small multiple of the precision of P, even if the chain rarely leaves a
    state. It takes 2/3 n^3 operations, mostly products of matrices, and no extra memory.

    Args:
        step: P, with rows that sum to 1 and positive numbers outside the diagonal; it is overwritten.
    """
    blocks = [slice(first, first + BLOCK) for first in range(1, len(step), BLOCK)]
    for inside in reversed(blocks):
        before = slice(inside.start)
        away, back = step[inside, before], step[before, inside]
        visits = _visits(step[inside, inside].double(), away.sum(1, dtype=torch.float64))
        back.copy_(back @ visits.to(step.dtype))
        step[before, before].addmm_(back, away)
    q = torch.ones(1, dtype=torch.float64)
    for inside in blocks:
        q = torch.cat([q, q @ step[: inside.start, inside].double()])
        q = q / q.sum()
    return q


def _visits(step: Float64[Tensor, "b b"], away: Float64[Tensor, " b"]) -> Float64[Tensor, "b b"]:
    """(I - P_BB)^-1: the expected visits to each state (column) from a state (row) before the chain leaves B.

    Args:
        step: P_BB; it is overwritten.
        away: probabilities of leaving B in one step; they are overwritten.
    """
    # I - P_BB = (I - U) D (I - L), with U in the upper part of `step` and D L in the lower one.
    leaving = torch.empty_like(away)
    for i in reversed(range(len(step))):
        leaving[i] = away[i] + step[i, :i].sum()
        step[:i, i] /= leaving[i]
        step[:i, :i].addr_(step[:i, i], step[i, :i])
        away[:i] += step[:i, i] * away[i]
    upper = torch.linalg.solve_triangular(
        -step, torch.eye(len(step), dtype=torch.float64), upper=True, unitriangular=True
    )
    return torch.linalg.solve_triangular(
        -step / leaving[:, None], upper / leaving[:, None], upper=False, unitriangular=True
    )
