"""Losses of labeled images, which every method can use: cross-entropy, and losses for long-tailed labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.contract import Problem
from debias_ssl.formulas.logits import (
    class_weights,
    effective_number_weights,
    label_aware_smoothing,
    label_margins,
    pairwise_margin_loss,
    prior_margins,
    smoothed_cross_entropy,
)
from debias_ssl.system.ranges import BelowOne, Fraction, NotNegative, Positive, check_ranges


class LabeledLoss(nn.Module):
    """A loss of labeled images: `forward` gives its mean over a batch.

    `counts` are the numbers of labeled images of the classes; they say how well a class can be learned. `sampled` are
    the same numbers, scaled to the shares of the classes in steps. They differ from `counts` if each class is drawn
    equally often. A loss that corrects for uneven classes uses `sampled`, because it corrects what steps contain. Both
    are buffers, so that they move with the device, but they are not saved with a run.

    Args:
        problem: what is fixed before training.
    """

    counts: Float[Tensor, " C"]
    sampled: Float[Tensor, " C"]

    def __init__(self, problem: Problem):
        super().__init__()
        self.register_buffer("counts", torch.tensor(problem.labeled_counts, dtype=torch.float32), persistent=False)
        self.register_buffer("sampled", torch.tensor(problem.sampled_counts, dtype=torch.float32), persistent=False)

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        raise NotImplementedError

    @property
    def prior(self) -> Float[Tensor, " C"]:
        """pi, the share of each class among the labeled images of steps."""
        return self.sampled / self.sampled.sum()


class CrossEntropy(LabeledLoss):
    """CE(f, y)."""

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, labels)


class Balanced(LabeledLoss):
    """Cross-entropy weighted by alpha_y = 1 / (C pi_y), so that every class counts the same; C classes have labels.

    pi are the shares in steps. The mean weight of labeled images is 1. With equal shares it is CrossEntropy.
    """

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        alpha = class_weights(1 / self.sampled, self.prior)
        return F.cross_entropy(logits, labels, alpha, reduction="none").mean()


class LogitAdjusted(LabeledLoss):
    """CE(f + tau log pi, y), or Delta_yy' = tau log(pi_y' / pi_y) (arXiv 2007.07314).

    f is trained for test images with equally frequent classes. pi are the shares in steps. If they are equal, as with
    `class_balanced`, it is CrossEntropy.

    Args:
        problem: what is fixed before training.
        strength: tau; 1 is consistent for the balanced error, 0 is CrossEntropy.
    """

    def __init__(self, problem: Problem, *, strength: NotNegative = 1.0):
        super().__init__(problem)
        self.strength = strength
        check_ranges(self, "labeled_loss.")

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        delta = prior_margins(self.prior, self.strength)
        return pairwise_margin_loss(logits, labels, torch.ones_like(delta[0]), delta)


class AdaptiveMargin(LabeledLoss):
    """LDAM-DRW: Delta_yy' = s m_y, m_y = max_margin n_y^(-1/4) / max_y n_y^(-1/4) (arXiv 1906.07413).

    In the last part of the run, images have the weight alpha_y ~ (n_y / a_y) (1 - beta) / (1 - beta^n_y), with mean 1
    over labeled images.

    n_y is the number of labeled images of class y; the paper derives margin and weight from it. a_y is the same number,
    scaled to the share of the class in steps. The paper either reweights (a = n) or draws each class equally often. The
    factor n_y / a_y gives a class the same total weight in both cases.

    The paper's logits are s = 30 times cosines of features and class weights. Here they are the network's own, which
    have no bound, so that s is 1 and the margins are in units of logits.

    Args:
        problem: what is fixed before training.
        max_margin: margin of the rarest class; 0 with reweight_from 1 is CrossEntropy.
        scale: s, a factor of logits and margins.
        reweight_from: progress from which rare classes have larger weights; 160 of 200 epochs in the paper.
        beta: beta of the effective number of images.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        max_margin: NotNegative = 0.5,
        scale: Positive = 1.0,
        reweight_from: Fraction = 0.8,
        beta: BelowOne = 0.9999,
    ):
        super().__init__(problem)
        self.max_margin = max_margin
        self.scale = scale
        self.reweight_from = reweight_from
        self.beta = beta
        check_ranges(self, "labeled_loss.")

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        alpha = torch.ones_like(self.counts)
        if progress >= self.reweight_from:
            weights = effective_number_weights(self.counts, self.beta) * (self.counts / self.sampled)
            alpha = class_weights(weights, self.prior)
        delta = self.scale * label_margins(self.counts, self.max_margin)
        return pairwise_margin_loss(self.scale * logits, labels, alpha, delta)


class Equalized(LabeledLoss):
    """Softmax equalization loss (arXiv 2003.05176): rare classes are often left out of the negatives.

    -log e^f_y / sum_k w_k e^f_k, with w_k = 0 for a rare k != y with probability gamma, drawn for each image, else 1.
    So the many images of other classes in a step push the logits of rare classes down less often. If each class is
    drawn equally often, no class is rare, and it is CrossEntropy.

    Args:
        problem: what is fixed before training.
        drop: gamma; 0 is CrossEntropy.
        rare: a class is rare if steps draw fewer images of it than this factor times the mean over classes; the paper
            sets a share of all images for each data set.
    """

    def __init__(self, problem: Problem, *, drop: Fraction = 0.95, rare: NotNegative = 0.3):
        super().__init__(problem)
        self.drop = drop
        self.rare = rare
        check_ranges(self, "labeled_loss.")

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        dropped = (self.sampled < self.rare * self.sampled.mean()) & (torch.rand_like(logits) < self.drop)
        others = labels.unsqueeze(1) != torch.arange(len(self.counts), device=labels.device)
        return F.cross_entropy(logits.masked_fill(dropped & others, -torch.inf), labels)


class LabelSmoothing(LabeledLoss):
    """(1 - eps) CE(f, y) + eps CE(f, uniform) (arXiv 1512.00567).

    Args:
        problem: what is fixed before training.
        smoothing: eps; 0.1 for ImageNet, 0.05 for CIFAR-100 (arXiv 1906.02629); 0 is CrossEntropy.
    """

    def __init__(self, problem: Problem, *, smoothing: BelowOne = 0.1):
        super().__init__(problem)
        self.smoothing = smoothing
        check_ranges(self, "labeled_loss.")

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


class LabelAwareSmoothing(LabeledLoss):
    """Label smoothing that is stronger for frequent classes, where models are overconfident (arXiv 2104.00466).

    eps_y = tail + (head - tail) sin(pi (n_y - n_K) / (2 (n_1 - n_K))), with n_y the number of labeled images of class
    y, n_1 the largest and n_K the smallest such number.

    These are numbers of images, even if each class is drawn equally often: the paper (MiSLAS) does both in a second
    stage, which trains only the classifier. Here the loss is used in the whole run.

    Args:
        problem: what is fixed before training.
        head: eps of the most frequent class; 0.3 for CIFAR-10, 0.4 for CIFAR-100 in the paper.
        tail: eps of the rarest class; 0 for CIFAR-10, 0.1 for CIFAR-100 in the paper. 0 for both is CrossEntropy.
    """

    def __init__(self, problem: Problem, *, head: BelowOne = 0.3, tail: BelowOne = 0.0):
        super().__init__(problem)
        self.head = head
        self.tail = tail
        check_ranges(self, "labeled_loss.")

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        return smoothed_cross_entropy(logits, labels, label_aware_smoothing(self.counts, self.head, self.tail))
