"""Whether confidence means what it says."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def expected_calibration_error(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, ""]:
    """Sum over equal-width bins of (images in the bin / N) * |accuracy - mean confidence| (arXiv 1706.04599).

    A bin holds the confidences in (lower edge, upper edge].
    """
    share, mean_confidence, accuracy = reliability_bins(confidence, correct, num_bins)
    return (share * (accuracy - mean_confidence).abs()).nansum()


def reliability_bins(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, "3 num_bins"]:
    """Share of the images, mean confidence and accuracy of the bins above; the latter two are nan in empty bins."""
    confidence = confidence.double()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    sums = torch.zeros(3, num_bins, dtype=torch.float64, device=confidence.device)
    sums.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, correct.double()]))
    return torch.stack([sums[0] / len(confidence), sums[1] / sums[0], sums[2] / sums[0]])
