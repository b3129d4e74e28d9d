"""Votes of several classifiers: each votes for one class of a row, whatever its confidence."""

import numpy as np
import scipy
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from debias_ssl.formulas.logits import largest

# By how much the share of the class that wins a tie is above that of the others.
TIE = 2.0**-22
# Numbers that are counted at a time.
CHUNK_NUMBERS = 2**22


def vote(logits: Float[Tensor, "N C"]) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """The class that each row is voted for, the first of equal ones, and by how much its logit is above the second."""
    highest, label = largest(logits)
    return label, highest - logits.topk(2).values[:, 1]


def ranked(gaps: Float[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """How sure a classifier is of each row among all its rows: the rank of the gap, in (0, 1); equal gaps share it.

    Nothing that keeps the order of the gaps changes it, such as a temperature.
    """
    return (scipy.stats.rankdata(gaps) - 0.5) / len(gaps)


def vote_shares(
    votes: Int64[np.ndarray, "M N"], sureness: Float64[np.ndarray, "M N"], num_classes: int
) -> Float32[np.ndarray, "N C"]:
    """The mean of the one-hot votes of M classifiers (V-PET, arXiv 2503.09707), of which no row has two largest ones.

    The largest share is the agreement. Of classes with equally many votes, that wins whose voters are the surer by
    their ranks, and of equally sure ones the earlier; its share is then 2^-22 above what it is. So the classes of a
    classifier count by their order alone, and its rows by theirs: its temperature has no part in it.

    Args:
        votes: class numbers.
        sureness: of each vote among those of the same classifier, as `ranked` has it.
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
        # A vote counts more than all sureness together.
        winner = (counts + sure / (2 * num_members)).argmax(1)
        shares[part] = counts / num_members
        is_tied = (counts == counts.max(1, keepdims=True)).sum(1) > 1
        shares[first + rows[is_tied], winner[is_tied]] += TIE
    return shares
