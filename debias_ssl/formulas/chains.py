"""Stationary vectors of Markov chains, including chains that almost never leave a state or a group of states."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# States that are taken out of a chain at a time: most of the work is products of matrices with so many columns.
BLOCK = 128


def stationary_vector(step: Float[Tensor, "n n"]) -> Float64[Tensor, " n"]:
    """The q with q = q P, by taking states out of the chain, the last ones first (Grassmann, Taksar, Heyman, 1985).

    Of a chain on the states A and B, what is seen of it in A alone is a chain with the probabilities
    P_AA + P_AB (I - P_BB)^-1 P_BA, and q_B = q_A P_AB (I - P_BB)^-1. Nothing is subtracted: the diagonal is what the
    others of a row leave, and is never read. So each number of q is right to some times the precision of P, however
    seldom the chain leaves a state. It takes 2/3 n^3 operations, in products of matrices, and no further memory.

    Args:
        step: P, whose rows sum to 1 and have positive numbers beside the diagonal; its numbers are overwritten.
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
    """(I - P_BB)^-1: from each state (row), the visits of each (column) before the chain leaves them all.

    Args:
        step: P_BB; its numbers are overwritten.
        away: probabilities of leaving B in one step; likewise.
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
