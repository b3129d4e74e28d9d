"""The formulas, as pure functions of tensors."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A class that was never predicted has marginal 0; its logarithm must stay finite.
SMALLEST_PROBABILITY = 1e-8


def adjust(logits: Float[Tensor, "*N C"], prior: Float[Tensor, " C"], strength: float) -> Float[Tensor, "*N C"]:
    """Adds a class prior to logits: f + tau log pi (logit adjustment in a loss, arXiv 2007.07314)."""
    return logits + strength * prior.clamp(min=SMALLEST_PROBABILITY).log()


def debias(logits: Float[Tensor, "*N C"], marginal: Float[Tensor, " C"], strength: float) -> Float[Tensor, "*N C"]:
    """Removes a model's standing preference for classes from its logits: f - tau log q (arXiv 2201.01490).

    Args:
        logits: f.
        marginal: q, the mean of the model's own softmax over many images.
        strength: tau; 0 leaves the logits as they are, 1 removes the preference wholly.
    """
    return adjust(logits, marginal, -strength)


def confident_labels(logits: Float[Tensor, "*U C"], threshold: float) -> tuple[Int[Tensor, "*U"], Float[Tensor, "*U"]]:
    """Hard pseudo-labels argmax softmax(f), and weight 1 where max softmax(f) >= threshold, else 0."""
    confidence, target = logits.softmax(-1).max(-1)
    return target, (confidence >= threshold).to(logits.dtype)


def weighted_cross_entropy(
    logits: Float[Tensor, "U C"], target: Int[Tensor, " U"] | Float[Tensor, "U C"], weight: Float[Tensor, " U"]
) -> Float[Tensor, ""]:
    """Mean over all images, those of weight 0 included, of weight * CE(softmax(f), target)."""
    return (weight * F.cross_entropy(logits, target, reduction="none")).mean()


def confusion_matrix(truth: Int[Tensor, " N"], predicted: Int[Tensor, " N"], num_classes: int) -> Int[Tensor, "C C"]:
    """Counts by (true class, predicted class); images whose truth is unknown (negative) are left out."""
    known: Bool[Tensor, " N"] = truth >= 0
    # Unknown ones go to an extra cell: selecting the known ones would make a GPU wait for their number.
    cell = torch.where(known, truth * num_classes + predicted, num_classes**2)
    return torch.bincount(cell, minlength=num_classes**2 + 1)[:-1].view(num_classes, num_classes)
