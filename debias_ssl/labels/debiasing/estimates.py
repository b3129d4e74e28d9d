"""The estimates of a classifier's class prior, by their names in the setting `prior`."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.formulas import priors
from debias_ssl.formulas.priors import Chunks, Prior, Solution

PriorName = Literal[
    "none",
    "marginal",
    "fixed_point",
    "momentum",
    "confidence",
    "stationary",
    "transport",
    "centering",
    "content_free",
]
# Priors that rows do not say.
GIVEN = ("none", "content_free")
# Priors that are found by iterations, towards a target.
BALANCED = ("fixed_point", "transport")


def balanced(chunks: Chunks, name: PriorName, target: Prior) -> Solution:
    """The prior whose removal makes the probabilities (`fixed_point`) or counts (`transport`) follow a target."""
    balance = priors.balancing if name == "fixed_point" else priors.transport
    return balance(chunks, target)


def estimated(chunks: Chunks, name: PriorName, momentum: float, blank: Float[Tensor, "K C"] | None) -> Prior:
    """The other estimates, except for `none`.

    Args:
        chunks: f / T.
        name: of the estimate.
        momentum: of `momentum`.
        blank: f / T of images that show nothing, for `content_free`.
    """
    match name:
        case "momentum":
            return priors.running_mean(chunks, momentum)
        case "confidence":
            return priors.confidence_weighted(chunks)
        case "stationary":
            return priors.stationary(chunks)
        case "centering":
            return priors.centering(chunks)
        case "content_free":
            assert blank is not None
            return priors.content_free(blank)
        case _:
            return priors.mean_probs(chunks)


def uniform(num_classes: int) -> Prior:
    return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
