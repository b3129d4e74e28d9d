"""Calibration: how far confidence is from accuracy, and the temperature that brings them together."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import root_scalar
from torch import Tensor

# By how much a confidence may be above the edge of a bin and still be at it: about ten times what softmax in fp32
# rounds by.
ROUNDING = 1e-6
# Fitted temperatures lie between 1 / 1000 and this.
LARGEST_TEMPERATURE = 1000.0


def expected_calibration_error(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, ""]:
    """Sum over equal-width bins of (images in the bin / N) * |accuracy - mean confidence| (arXiv 1706.04599).

    A bin holds the confidences in (lower edge, upper edge]. A confidence of k / num_bins is in the lower bin, also
    where its rounding puts it above the edge by up to 1e-6. Confidences are best computed in fp64.
    """
    share, mean_confidence, accuracy = reliability_bins(confidence, correct, num_bins)
    return (share * (accuracy - mean_confidence).abs()).nansum()


def reliability_bins(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, "3 num_bins"]:
    """Share of the images, mean confidence and accuracy of the bins above; the latter two are nan in empty bins."""
    confidence = confidence.double()
    bins = ((confidence - ROUNDING) * num_bins).ceil().long().clamp(1, num_bins) - 1
    return _means_of_bins(bins, confidence, correct, num_bins)


def equal_mass_calibration_error(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, ""]:
    """The calibration error over bins of equally many images, by rank of their confidence (arXiv 2012.08668).

    Images of the same confidence share the bin of the middle one among them, so that the order of the images does not
    matter. Bins may be uneven or empty then.
    """
    confidence = confidence.double()
    _, place, number = confidence.unique(return_inverse=True, return_counts=True)
    # Twice the middle rank, so that it is a whole number.
    middle = 2 * number.cumsum(0) - number
    bins = (middle * num_bins // (2 * len(confidence)))[place]
    share, mean_confidence, accuracy = _means_of_bins(bins, confidence, correct, num_bins)
    return (share * (accuracy - mean_confidence).abs()).nansum()


def _means_of_bins(
    bins: Int[Tensor, " N"], confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int
) -> Float[Tensor, "3 num_bins"]:
    sums = torch.zeros(3, num_bins, dtype=torch.float64, device=confidence.device)
    sums.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, correct.double()]))
    return torch.stack([sums[0] / len(confidence), sums[1] / sums[0], sums[2] / sums[0]])


def class_wise_calibration_error(
    probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"], num_bins: int = 15
) -> Float[Tensor, ""]:
    """Mean over classes k of the calibration error of the statement "it is k", with confidence p_k for every image.

    The static calibration error of arXiv 1904.01685, with equal-width bins. Most p_k are near 0 and should be, so that
    it falls as the number of classes grows: compare it among classifiers of the same classes only.
    """
    errors = [expected_calibration_error(probs[:, k], labels == k, num_bins) for k in range(probs.shape[1])]
    return torch.stack(errors).mean()


def negative_log_likelihood(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of -log softmax(f)_y in nats; a proper score: the true probabilities have the least on average."""
    return F.cross_entropy(logits.double(), labels.long())


def brier_score(probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over images of sum_k (p_k - [k = y])^2, in [0, 2] (Brier, 1950); also a proper score."""
    probs = probs.double()
    of_label = probs.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return (probs.square().sum(1) - 2 * of_label + 1).mean()


def fit_temperature(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """The T of the smallest negative log-likelihood of softmax(f / T) (arXiv 1706.04599).

    The loss is convex in 1 / T, so that its slope has one root at most. It has none where every label has the highest
    logit: a smaller T is always better, and the result is 1 / LARGEST_TEMPERATURE. It has none either where the logits
    of labels are on average not above the mean logit: a larger T is always better, and the result is
    LARGEST_TEMPERATURE.

    Args:
        logits: f, finite, of images that were not trained on.
        labels: y, all known.

    Raises:
        ValueError: there are no images.
    """
    if not len(labels):
        raise ValueError("a temperature needs at least one labeled row")
    # Softmax ignores a constant; without it the slope is exact even where one class has nearly all probability.
    logits = logits.double() - logits.double().amax(1, keepdim=True)
    mean_of_labels = logits.gather(1, labels.long().unsqueeze(1)).mean()

    def slope(log_temperature: float) -> float:
        """The derivative of the loss by 1 / T: the mean of E_softmax(f / T)[f] - f_y."""
        probs = (logits / math.exp(log_temperature)).softmax(1)
        return ((probs * logits).sum(1).mean() - mean_of_labels).item()

    largest = math.log(LARGEST_TEMPERATURE)
    if slope(-largest) <= 0:
        return 1 / LARGEST_TEMPERATURE
    if slope(largest) >= 0:
        return LARGEST_TEMPERATURE
    return math.exp(root_scalar(slope, bracket=(-largest, largest), xtol=1e-12).root)


def cross_fit(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], folds: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "N C"], list[float]]:
    """f / T, where T is fitted on the rows of the other folds, and these temperatures in the order of the folds.

    Args:
        logits: f.
        labels: y, all known.
        folds: the number of each row's fold; there are two or more.

    Raises:
        ValueError: there is one fold only.
    """
    scaled, temperatures = torch.empty_like(logits, dtype=torch.float64), []
    for fold in folds.unique():
        inside = folds == fold
        temperatures.append(fit_temperature(logits[~inside], labels[~inside]))
        scaled[inside] = logits[inside].double() / temperatures[-1]
    return scaled, temperatures


def calibration_figures(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """Accuracy and all of the above for predictions softmax(f) of known labels; only nll (nats) may be above 2."""
    probs = logits.double().softmax(1)
    confidence, predicted = probs.max(1)
    correct = predicted == labels
    return {
        "accuracy": correct.double().mean().item(),
        "ece": expected_calibration_error(confidence, correct).item(),
        "equal_mass_ece": equal_mass_calibration_error(confidence, correct).item(),
        "class_wise_ece": class_wise_calibration_error(probs, labels).item(),
        "nll": negative_log_likelihood(logits, labels).item(),
        "brier": brier_score(probs, labels).item(),
    }
