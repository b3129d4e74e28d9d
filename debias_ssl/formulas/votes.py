"""Votes of several classifiers: each votes for one class of a row, whatever its confidence. Ties are broken."""

import numpy as np
import scipy
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from debias_ssl.formulas.logits import largest

# The share of the class that wins a tie is raised by this.
TIE = 2.0**-22
# Size of the parts in which votes are counted, in numbers.
CHUNK_NUMBERS = 2**22


def vote(logits: Float[Tensor, "N C"]) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """The class of each row's vote (the first one of equal classes), and its gap to the second largest logit."""
    highest, label = largest(logits)
    return label, highest - logits.topk(2).values[:, 1]


def ranked(gaps: Float[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """How sure a classifier is of each row, compared with its other rows: the rank of the gap, in (0, 1).

    Equal gaps share a rank. A temperature does not change ranks, because it keeps the order of the gaps.
    """
    # Newer versions of scipy give ranks the type of the gaps, and fp32 has no whole numbers above 2^24.
    return (scipy.stats.rankdata(gaps.astype(np.float64)) - 0.5) / len(gaps)


def vote_shares(
    votes: Int64[np.ndarray, "M N"], sureness: Float64[np.ndarray, "M N"], num_classes: int
) -> Float32[np.ndarray, "N C"]:
    """The mean of the one-hot votes of M classifiers (V-PET, arXiv 2503.09707), with ties broken.

    The largest share is the agreement. If classes have equally many votes, the class whose voters have the higher ranks
    wins, then the one with the lower number. The share of the winner of a tie is raised by 2^-22, so that each row has
    one largest share. Only the order of classes in a row and the ranks of rows count, so the temperature of a
    classifier does not change the result.

    Args:
        votes: class numbers.
        sureness: rank of each vote among those of the same classifier, from `ranked`.
        num_classes: C.
    """
    num_members, num = votes.shape
    shares = np.empty((num, num_classes), dtype=np.float32)
    step = max(1, CHUNK_NUMBERS // num_classes)
    for first in range(0, num, step):
        part = slice(first, first + step)
        counts, sure = np.zeros((2, len(shares[part]), num_classes))
        rows = np.arange(len(counts))
        for own, ranks in zip(votes[:, part], sureness[:, part], strict=True):
            counts[rows, own] += 1
            sure[rows, own] += ranks
        # One vote counts more than all ranks together.
        winner = (counts + sure / (2 * num_members)).argmax(1)
        shares[part] = counts / num_members
        is_tied = (counts == counts.max(1, keepdims=True)).sum(1) > 1
        shares[first + rows[is_tied], winner[is_tied]] += TIE
    return shares
