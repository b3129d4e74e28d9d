"""Presence: estimates from confident labels whether all classes occur among the rows, and how much bias to remove."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Spread of the confident labels up to which nothing is removed, and from which the preference is removed completely.
LEAST_SPREAD, ENOUGH_SPREAD = 0.55, 0.75
# A class with at least this part of the share 1 / C of the confident labels is raised as much as its log q says.
ENOUGH_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Presence:
    """The class shares of the more confident half of the labels, and the number of these labels."""

    shares: Float[Tensor, " C"]
    num: int

    @property
    def spread(self) -> float:
        """exp(H) / C: 1 if all classes have the same share, 1 / C if only one class occurs.

        The entropy H is corrected for few rows, in which some classes are missing by chance (Miller and Madow, 1955).
        """
        found = self.shares[self.shares > 0]
        entropy = -(found * found.log()).sum() + (len(found) - 1) / (2 * self.num)
        return min(1.0, entropy.exp().item() / len(self.shares))

    @property
    def removed(self) -> float:
        """The part of a preference that is removed; it rises with the spread from 0 to 1."""
        return min(1.0, max(0.0, (self.spread - LEAST_SPREAD) / (ENOUGH_SPREAD - LEAST_SPREAD)))

    def cautious(self, log_q: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """The part of log q that is removed if classes may be absent.

        To subtract a low log q raises a class. A class without confident labels may be absent, so it is not raised: its
        log q is replaced by the mean of log q over the confident labels. The more of these labels a class has, the
        closer the number is to its own log q.
        """
        level = (self.shares * log_q).sum()
        seen = (self.shares * len(self.shares) / ENOUGH_SHARE).clamp(max=1)
        raised = torch.where((log_q < level) & (seen < 1), level + seen * (log_q - level), log_q)
        return self.removed * raised


def presence(chunks: Iterable[Float[Tensor, "_ C"]], shift: Float[Tensor, " C"]) -> Presence:
    """The labels of softmax(f - shift) with the higher half of confidences.

    Args:
        chunks: f.
        shift: the number of each class that is subtracted from its logits.
    """
    found = [(logits - shift.to(logits.dtype)).softmax(-1).max(-1) for logits in chunks]
    confidence, labels = (torch.cat(each) for each in zip(*found, strict=True))
    sure = labels[confidence.argsort(descending=True, stable=True)[: (len(labels) + 1) // 2]]
    counts = torch.bincount(sure, minlength=len(shift)).double()
    return Presence(shares=counts / counts.sum(), num=len(sure))
