"""Calibration: the gap between confidence and accuracy (ECE), and the temperature that closes it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import scipy
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# A confidence that exceeds the edge of a bin by less than this counts as equal to it: about ten times the rounding
# error of softmax in fp32.
ROUNDING = 1e-6
# Fitted temperatures lie between 1 / 1000 and this.
LARGEST_TEMPERATURE = 1000.0
NUM_BINS = 15
# Logits and known labels, a part of the rows at a time; can be iterated more than once.
Chunks = Iterable[tuple[Float[Tensor, "_ C"], Int[Tensor, " _"]]]


def expected_calibration_error(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = NUM_BINS
) -> Float[Tensor, ""]:
    """Sum over equal-width bins of (images in the bin / N) * |accuracy - mean confidence| (arXiv 1706.04599).

    A bin has the confidences in (lower edge, upper edge]. A confidence of k / num_bins is in the lower bin, even if
    rounding puts it above the edge by up to 1e-6. Compute confidences in fp64 if possible.
    """
    return error_of_bins(sums_of_bins(confidence, correct, num_bins))


def reliability_bins(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = NUM_BINS
) -> Float[Tensor, "3 num_bins"]:
    """Share of the images, mean confidence and accuracy of each bin of equal width; the last two are nan if empty."""
    return _means(sums_of_bins(confidence, correct, num_bins))


def sums_of_bins(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = NUM_BINS
) -> Float[Tensor, "3 num_bins"]:
    """For each bin of equal width: the number of images, the sum of their confidences, and how many are correct.

    To get the sums of all images, add those of parts of the images.
    """
    confidence = confidence.double()
    return _sums(bins_of(confidence, num_bins), confidence, correct, num_bins)


def error_of_bins(sums: Float[Tensor, "3 bins"]) -> Float[Tensor, ""]:
    """The calibration error from the sums of `sums_of_bins`."""
    share, mean_confidence, accuracy = _means(sums)
    return (share * (accuracy - mean_confidence).abs()).nansum()


def bins_of(confidence: Float[Tensor, "*shape"], num_bins: int) -> Int[Tensor, "*shape"]:
    """The number of the bin of equal width of each confidence."""
    return ((confidence - ROUNDING) * num_bins).ceil().long().clamp(1, num_bins) - 1


def equal_mass_calibration_error(
    confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int = NUM_BINS
) -> Float[Tensor, ""]:
    """The calibration error over bins of equally many images, by rank of their confidence (arXiv 2012.08668).

    Images of the same confidence are all in the bin of the middle one of them, so that the order of the images does not
    matter. Bins may then be uneven or empty.
    """
    confidence = confidence.double()
    _, place, number = confidence.unique(return_inverse=True, return_counts=True)
    # Twice the middle rank, so that it is a whole number.
    middle = 2 * number.cumsum(0) - number
    bins = (middle * num_bins // (2 * len(confidence)))[place]
    return error_of_bins(_sums(bins, confidence, correct, num_bins))


def _sums(
    bins: Int[Tensor, " N"], confidence: Float[Tensor, " N"], correct: Bool[Tensor, " N"], num_bins: int
) -> Float[Tensor, "3 num_bins"]:
    sums = torch.zeros(3, num_bins, dtype=torch.float64, device=confidence.device)
    sums.index_add_(1, bins, torch.stack([torch.ones_like(confidence), confidence, correct.double()]))
    return sums


def _means(sums: Float[Tensor, "3 bins"]) -> Float[Tensor, "3 bins"]:
    """Share of the images, mean confidence and accuracy of each bin."""
    images, confidence, correct = sums
    return torch.stack([images / images.sum(), confidence / images, correct / images])


def class_wise_calibration_error(
    probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"], num_bins: int = NUM_BINS
) -> Float[Tensor, ""]:
    """Mean over classes k of the calibration error of the statement "it is k", with confidence p_k for every image.

    The static calibration error of arXiv 1904.01685, with equal-width bins. Compare it only among classifiers of the
    same classes: most p_k are rightly near 0, so it falls as the number of classes grows.
    """
    errors = [expected_calibration_error(probs[:, k], labels == k, num_bins) for k in range(probs.shape[1])]
    return torch.stack(errors).mean()


def negative_log_likelihood(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean of -log softmax(f)_y in nats; a proper score: on average, the true probabilities have the smallest one."""
    return F.cross_entropy(logits.double(), labels.long())


def brier_score(probs: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Mean over images of sum_k (p_k - [k = y])^2, in [0, 2] (Brier, 1950); also a proper score."""
    probs = probs.double()
    of_label = probs.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    return (probs.square().sum(1) - 2 * of_label + 1).mean()


def fit_temperature(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> float:
    """The T at which softmax(f / T) has the smallest negative log-likelihood (arXiv 1706.04599).

    The loss is convex in 1 / T, so its slope has at most one root. There is no root in two cases. If every label has
    the highest logit, a smaller T is always better, and the result is 1 / LARGEST_TEMPERATURE. If the logits of labels
    are on average not above the mean logit, a larger T is always better, and the result is LARGEST_TEMPERATURE.

    Args:
        logits: f, finite, of images that the model was not trained on.
        labels: y, all known.

    Raises:
        ValueError: there are no images.
    """
    return fit_temperature_to([(logits, labels)])


def fit_temperature_to(chunks: Chunks) -> float:
    """`fit_temperature` for logits and labels in chunks; they are read about thirty times."""

    def mean(of_chunk: Callable[[Float[Tensor, "n C"], Int[Tensor, " n"]], Float[Tensor, " n"]]) -> float:
        total, number = 0.0, 0
        for logits, labels in chunks:
            # Softmax ignores a constant; without it the slope is exact even where one class has nearly all probability.
            logits = logits.double() - logits.double().amax(1, keepdim=True)
            total, number = total + of_chunk(logits, labels).sum().item(), number + len(labels)
        if not number:
            raise ValueError("a temperature needs at least one labeled row")
        return total / number

    mean_of_labels = mean(lambda logits, labels: logits.gather(1, labels.long().unsqueeze(1)).squeeze(1))

    def slope(log_temperature: float) -> float:
        """The derivative of the loss by 1 / T: the mean of E_softmax(f / T)[f] - f_y."""
        expected = mean(lambda logits, _: ((logits / math.exp(log_temperature)).softmax(1) * logits).sum(1))
        return expected - mean_of_labels

    largest = math.log(LARGEST_TEMPERATURE)
    if slope(-largest) <= 0:
        return 1 / LARGEST_TEMPERATURE
    if slope(largest) >= 0:
        return LARGEST_TEMPERATURE
    return math.exp(scipy.optimize.root_scalar(slope, bracket=(-largest, largest), xtol=1e-12).root)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The data for the metrics of calibration and for a reliability diagram: values of rows, and sums over rows."""

    confidence: Float[Tensor, " N"]
    correct: Bool[Tensor, " N"]
    nll: float
    brier: float
    """Means over the rows."""
    class_sums: Float[Tensor, "3 C_bins"]
    """For the bins of each class, one class after another: number of rows, sum of p_k, and rows of the class."""

    def figures(self) -> dict[str, float]:
        """Accuracy and all metrics of this module; only nll (nats) may be above 2."""
        rows, confidence, hits = self.class_sums.view(3, -1, NUM_BINS)
        errors = (rows / len(self.correct) * (hits / rows - confidence / rows).abs()).nansum(1)
        return {
            "accuracy": self.correct.double().mean().item(),
            "ece": expected_calibration_error(self.confidence, self.correct).item(),
            "equal_mass_ece": equal_mass_calibration_error(self.confidence, self.correct).item(),
            "class_wise_ece": errors.mean().item(),
            "nll": self.nll,
            "brier": self.brier,
        }


def calibration_of(chunks: Chunks, num: int) -> Calibration:
    """The calibration of predictions softmax(f) of known labels, in chunks, with `num` rows in total."""
    # Allocated before the chunks: small tensors between large ones would keep the memory of a chunk from being reused.
    confidence, correct = torch.zeros(num, dtype=torch.float64), torch.zeros(num, dtype=torch.bool)
    scores, class_sums, first = torch.zeros(2, dtype=torch.float64), torch.zeros(()), 0
    for logits, labels in chunks:
        probs = logits.double().softmax(1)
        rows = slice(first, first + len(labels))
        first += len(labels)
        confidence[rows], predicted = probs.max(1)
        correct[rows] = predicted == labels
        scores += len(labels) * torch.stack([negative_log_likelihood(logits, labels), brier_score(probs, labels)])
        class_sums = class_sums + _class_sums(probs, labels)
    nll, brier = (scores / num).tolist()
    return Calibration(confidence=confidence, correct=correct, nll=nll, brier=brier, class_sums=class_sums)


def _class_sums(probs: Float[Tensor, "n C"], labels: Int[Tensor, " n"]) -> Float[Tensor, "3 C_bins"]:
    num_classes = probs.shape[1]
    bins = bins_of(probs, NUM_BINS) + NUM_BINS * torch.arange(num_classes, device=probs.device)
    sums = torch.zeros(3, num_classes * NUM_BINS, dtype=torch.float64, device=probs.device)
    sums[1].index_add_(0, bins.flatten(), probs.flatten())
    sums[0] = bins.flatten().bincount(minlength=sums.shape[1])
    sums[2] = bins.gather(1, labels.long().unsqueeze(1)).squeeze(1).bincount(minlength=sums.shape[1])
    return sums


def calibration_figures(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> dict[str, float]:
    """Accuracy and all metrics of this module for predictions softmax(f) of known labels; nll is in nats."""
    return calibration_of([(logits, labels)], len(labels)).figures()
