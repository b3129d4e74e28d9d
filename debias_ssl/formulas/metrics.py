"""Metrics of a classifier from its confusion matrix of counts or shares (rows: true classes), and Wilson intervals."""

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Confusion = Shaped[Tensor, "C C"]
Interval = tuple[float, float]
# The 0.975 quantile of the standard normal distribution.
QUANTILE = 1.959963984540054


def recalls(confusion: Confusion) -> Float[Tensor, " present"]:
    """Recall of each class that has images, in class order."""
    confusion = confusion.double()
    images = confusion.sum(1)
    present = images > 0
    return confusion.diagonal()[present] / images[present]


def accuracy(confusion: Confusion) -> Float[Tensor, ""]:
    """Share of the images that are predicted right."""
    return confusion.diagonal().sum().double() / confusion.sum()


def mean_recall(confusion: Confusion) -> Float[Tensor, ""]:
    """Mean recall of the classes that have images: the balanced accuracy."""
    return recalls(confusion).mean()


def min_recall(confusion: Confusion) -> Float[Tensor, ""]:
    """The lowest recall of a class that has images."""
    return recalls(confusion).min()


def h_mean(confusion: Confusion) -> Float[Tensor, ""]:
    """Harmonic mean of the recalls; 0 if one of them is 0."""
    return 1 / (1 / recalls(confusion)).mean()


def g_mean(confusion: Confusion) -> Float[Tensor, ""]:
    """Geometric mean of the recalls; 0 if one of them is 0."""
    return recalls(confusion).log().mean().exp()


def group_recalls(confusion: Confusion, labeled_counts: Int[Tensor, " C"]) -> dict[str, float]:
    """Mean recall of the head, medium and tail thirds of the classes, ordered by their number of labels.

    The head and the tail have round(C / 3) classes each. A group without images is left out. If each class has the same
    number of labels, all groups are left out.
    """
    if labeled_counts.min() == labeled_counts.max():
        return {}
    by_count = torch.argsort(labeled_counts, descending=True, stable=True)
    third = max(1, round(len(by_count) / 3))
    result = {}
    for name, classes in (("head", by_count[:third]), ("medium", by_count[third:-third]), ("tail", by_count[-third:])):
        images = confusion.sum(1)[classes]
        if images.sum() > 0:
            hits = confusion.diagonal()[classes]
            result[f"{name}_recall"] = (hits[images > 0].double() / images[images > 0]).mean().item()
    return result


def summarize(confusion: Confusion) -> dict[str, float]:
    """The main metrics by name, fractions in [0, 1]."""
    figures = (accuracy, mean_recall, min_recall, h_mean, g_mean)
    return {figure.__name__: figure(confusion).item() for figure in figures}


def wilson_interval(hits: int, num: int) -> Interval:
    """The 95 % confidence interval of a share, estimated from `hits` of `num` draws (Wilson, 1927).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It lies in [0, 1], and is useful for 0 and for n hits too.
    """
    p, square = hits / num, QUANTILE**2
    center = p + square / (2 * num)
    half = QUANTILE * math.sqrt(p * (1 - p) / num + square / (4 * num**2))
    low, high = ((center + sign * half) / (1 + square / num) for sign in (-1, 1))
    # With no hit or only hits, one end is exactly 0 or 1; rounding must not move it.
    return max(0.0, low) if hits else 0.0, min(1.0, high) if hits < num else 1.0


def accuracy_interval(confusion: Int[Tensor, "C C"]) -> Interval:
    """The Wilson interval of the accuracy."""
    return wilson_interval(int(confusion.diagonal().sum()), int(confusion.sum()))


def recall_intervals(confusion: Int[Tensor, "C C"]) -> list[Interval | None]:
    """The Wilson interval of each class's recall; None for a class without images."""
    counts = zip(confusion.diagonal().tolist(), confusion.sum(1).tolist(), strict=True)
    return [wilson_interval(hits, num) if num else None for hits, num in counts]
