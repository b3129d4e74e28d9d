"""Estimates from confident labels whether all classes occur among the rows, and how much class bias to remove then."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

# Spread of the sure labels at which nothing is removed, and from which on all of it is.
LEAST_SPREAD, ENOUGH_SPREAD = 0.55, 0.75
# Part of its fair share of the sure labels from which on a class is raised as far as the others.
ENOUGH_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Presence:
    """The more confident half of the labels."""

    shares: Float[Tensor, " C"]
    """Of the classes among them."""
    num: int

    @property
    def spread(self) -> float:
        """exp(H) / C: 1 where all classes have the same share, 1 / C where there is one.

        The entropy H is that of many rows (Miller and Madow, 1955): of few, some classes are missing by chance.
        """
        found = self.shares[self.shares > 0]
        entropy = -(found * found.log()).sum() + (len(found) - 1) / (2 * self.num)
        return min(1.0, entropy.exp().item() / len(self.shares))

    @property
    def removed(self) -> float:
        """How much of a preference is removed: it rises with the spread from 0 to 1."""
        return min(1.0, max(0.0, (self.spread - LEAST_SPREAD) / (ENOUGH_SPREAD - LEAST_SPREAD)))

    def cautious(self, log_q: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """What is removed of log q, where classes may be absent.

        A class that is missing among the sure labels may be rare because it is not there, so that it is not raised: its
        log q stays at the mean of the sure labels, and comes down to its own with the class's share of these labels.
        """
        level = (self.shares * log_q).sum()
        seen = (self.shares * len(self.shares) / ENOUGH_SHARE).clamp(max=1)
        raised = torch.where((log_q < level) & (seen < 1), level + seen * (log_q - level), log_q)
        return self.removed * raised


def presence(chunks: Iterable[Float[Tensor, "_ C"]], shift: Float[Tensor, " C"]) -> Presence:
    """The labels of softmax(f - shift) whose confidence is at least the median; chosen by rank, so at any temperature.

    Args:
        chunks: f.
        shift: what is subtracted.
    """
    found = [(logits - shift.to(logits.dtype)).softmax(-1).max(-1) for logits in chunks]
    confidence, labels = (torch.cat(each) for each in zip(*found, strict=True))
    sure = labels[confidence.argsort(descending=True, stable=True)[: (len(labels) + 1) // 2]]
    counts = torch.bincount(sure, minlength=len(shift)).double()
    return Presence(shares=counts / counts.sum(), num=len(sure))
