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
    confidence = confidence.double()
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gap = torch.zeros(num_bins, dtype=torch.float64, device=confidence.device)
    return gap.index_add(0, bins, correct.double() - confidence).abs().sum() / len(confidence)
