"""Functions of logits and probabilities: debiasing, pseudo-labels, losses of labeled images, confusion matrix."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

# For divisors and logarithms: the marginal of a class that was never predicted is 0.
SMALLEST_PROBABILITY = 1e-8


def floored_log(probs: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
    """log max(p, 1e-8): a class that was never predicted counts as very rare, not as impossible."""
    return probs.clamp(min=SMALLEST_PROBABILITY).log()


def finite_log(probs: Float[Tensor, "*N C"]) -> Float[Tensor, "*N C"]:
    """log p, exact for all p above 0; if p underflowed to 0, the log of the smallest normal number."""
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def largest(values: Float[Tensor, "n C"]) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """The largest number of each row and its first position; on a CPU, about four times as fast as torch's `max`."""
    if values.device.type != "cpu" or values.dtype is torch.bfloat16:
        return values.max(-1)
    place = torch.from_numpy(values.detach().numpy().argmax(-1))
    return values.gather(-1, place[:, None])[:, 0], place


def adjust(logits: Float[Tensor, "*N C"], prior: Float[Tensor, " C"], strength: float) -> Float[Tensor, "*N C"]:
    """Adds a class prior to logits: f + tau log pi (logit adjustment in a loss, arXiv 2007.07314)."""
    return logits + strength * floored_log(prior)


def debias(logits: Float[Tensor, "*N C"], marginal: Float[Tensor, " C"], strength: float) -> Float[Tensor, "*N C"]:
    """Removes a model's bias towards classes from its logits: f - tau log q (arXiv 2201.01490).

    Args:
        logits: f.
        marginal: q, the mean of the model's own softmax over many images.
        strength: tau; 0 leaves the logits as they are, 1 removes the bias completely.
    """
    return adjust(logits, marginal, -strength)


def align(
    probs: Float[Tensor, "*N C"], marginal: Float[Tensor, " C"], target: Float[Tensor, " C"]
) -> Float[Tensor, "*N C"]:
    """Distribution alignment, p * target / marginal, normalized (ReMixMatch, arXiv 1911.09785).

    With a uniform target these are the probabilities of logits debiased with strength 1.
    """
    aligned = probs * target / marginal.clamp(min=SMALLEST_PROBABILITY)
    return aligned / aligned.sum(-1, keepdim=True)


def tempered(probs: Float[Tensor, "*N C"], temperature: float) -> Float[Tensor, "*N C"]:
    """softmax(f / T) of the logits f that have these probabilities (distillation, arXiv 1503.02531).

    Args:
        probs: softmax(f), in fp32: in half precision the least likely classes are lost.
        temperature: T > 0; 1 leaves the probabilities as they are, a larger one makes them more even.
    """
    return (finite_log(probs) / temperature).softmax(-1)


def confident_labels(logits: Float[Tensor, "*U C"], threshold: float) -> tuple[Int[Tensor, "*U"], Float[Tensor, "*U"]]:
    """Hard pseudo-labels argmax softmax(f), and weights: 1 if max softmax(f) >= threshold, else 0."""
    confidence, target = logits.softmax(-1).max(-1)
    return target, (confidence >= threshold).to(logits.dtype)


def gaussian_weights(
    confidence: Float[Tensor, "*U"], mean: Float[Tensor, " 1"], variance: Float[Tensor, " 1"], num_sigma: float
) -> Float[Tensor, "*U"]:
    """exp(-min(confidence - mu, 0)^2 n_sigma^2 / (2 sigma^2)): 1 from the mean on, less below it (arXiv 2301.10921)."""
    below = (confidence - mean).clamp(max=0) * num_sigma
    # Equal confidences have variance 0, but differ from their mean by rounding errors.
    return (-(below**2) / (2 * variance.clamp(min=1e-8))).exp()


def weighted_cross_entropy(
    logits: Float[Tensor, "U C"], target: Int[Tensor, " U"] | Float[Tensor, "U C"], weight: Float[Tensor, " U"]
) -> Float[Tensor, ""]:
    """Mean of weight * CE(softmax(f), target) over all images, including those with weight 0."""
    return (weight * F.cross_entropy(logits, target, reduction="none")).mean()


def class_weights(weights: Float[Tensor, " C"], prior: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Weights of classes, scaled to mean 1 over images drawn from the prior, as without weights.

    Classes that are never drawn get the weight 0.
    """
    weights = torch.where(prior > 0, weights, 0.0)
    return weights / (prior * weights).sum()


def pairwise_margin_loss(
    logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], alpha: Float[Tensor, " C"], delta: Float[Tensor, "C C"]
) -> Float[Tensor, ""]:
    """Mean of alpha_y log[1 + sum_{y' != y} exp(Delta_yy') exp(f_y' - f_y)] (arXiv 2007.07314).

    Args:
        logits: f.
        labels: y.
        alpha: the weight of each class.
        delta: Delta, the margin by which the logit of a label (row) must exceed that of another class (column) for the
            loss that equal logits have without a margin; the diagonal is not read.
    """
    margins = logits + (delta - delta.diagonal().diag())[labels]
    return (alpha[labels] * F.cross_entropy(margins, labels, reduction="none")).mean()


def prior_margins(prior: Float[Tensor, " C"], strength: float) -> Float[Tensor, "C C"]:
    """Delta_yy' = tau log(pi_y' / pi_y): with these pairwise margins the loss is CE(f + tau log pi, y)."""
    log = adjust(torch.zeros_like(prior), prior, strength)
    return log - log.unsqueeze(1)


def label_margins(counts: Float[Tensor, " C"], largest: float) -> Float[Tensor, "C C"]:
    """Delta_yy' = m_y, m_y ~ n_y^(-1/4): a rare label has to win by more (LDAM, arXiv 1906.07413).

    Args:
        counts: n, labeled images of each class; a class without any is treated as if it had one.
        largest: margin of the rarest class.
    """
    margins = counts.clamp(min=1) ** -0.25
    return (largest * margins / margins.max()).unsqueeze(1).expand(-1, len(counts))


def effective_number_weights(counts: Float[Tensor, " C"], beta: float) -> Float[Tensor, " C"]:
    """(1 - beta) / (1 - beta^n_y), the inverse of the effective number of n_y images (arXiv 1901.05555)."""
    return (1 - beta) / (1 - beta ** counts.double().clamp(min=1)).to(counts.dtype)


def smoothed_cross_entropy(
    logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], smoothing: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    """Mean of (1 - eps_y) CE(f, y) + eps_y CE(f, uniform): each class has its own label smoothing."""
    log_probs = logits.log_softmax(-1)
    own = log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -own.lerp(log_probs.mean(1), smoothing[labels]).mean()


def label_aware_smoothing(counts: Float[Tensor, " C"], head: float, tail: float) -> Float[Tensor, " C"]:
    """eps_y = tail + (head - tail) sin(pi (n_y - n_K) / (2 (n_1 - n_K))), n_1 the largest and n_K the smallest n.

    The concave form of MiSLAS (arXiv 2104.00466). If all classes have the same number of images, all get `tail`.
    """
    share = (counts - counts.min()) / (counts.max() - counts.min()).clamp(min=1)
    return tail + (head - tail) * (share * torch.pi / 2).sin()


def divide_scores(scores: Float[Tensor, "*N C"], scale: Float[Tensor, " C"], strength: float) -> Float[Tensor, "*N C"]:
    """s_y / a_y^tau, with the scores s and the scale a; applied after training.

    With the norms of the class weights as `scale` this is tau-normalization (arXiv 1910.09217, for classifiers without
    biases). Do not divide by the prior: this reverses the order of negative scores (arXiv 2007.07314).
    """
    return scores / scale.clamp(min=SMALLEST_PROBABILITY) ** strength


def confusion_matrix(truth: Int[Tensor, " N"], predicted: Int[Tensor, " N"], num_classes: int) -> Int[Tensor, "C C"]:
    """Counts by (true class, predicted class); images with an unknown true class (negative) are left out."""
    known: Bool[Tensor, " N"] = truth >= 0
    # Unknown ones go to an extra cell: to select the known ones, the CPU would wait for the GPU to count them.
    cell = torch.where(known, truth * num_classes + predicted, num_classes**2)
    return torch.bincount(cell, minlength=num_classes**2 + 1)[:-1].view(num_classes, num_classes)
