"""SoftMatch: every pseudo-label counts; its weight falls with the distance of its confidence below the mean."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.distributed.running import RunningMean, uniform_marginal
from debias_ssl.formulas.logits import debias, gaussian_weights
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class GaussianWeights(nn.Module):
    """Weights of pseudo-labels without a threshold (arXiv 2301.10921), and the running means that they need.

    p~ = SumNorm(p / q^tau), with q the marginal. mu and sigma^2 are the running means of the mean and the variance of
    max p~ over a batch, at first 1 / C and 1.

    lambda(p~) = exp(-min(max p~ - mu, 0)^2 n_sigma^2 / (2 sigma^2))

    Args:
        num_classes: C.
        momentum: of the running means.
        num_sigma: n_sigma; the larger, the faster weights fall.
        strength: tau; 1 is uniform alignment, 0 is no alignment.
    """

    def __init__(self, num_classes: int, *, momentum: float, num_sigma: float = 2.0, strength: float = 1.0):
        super().__init__()
        self.num_sigma = num_sigma
        self.strength = strength
        self.marginal = uniform_marginal(num_classes, momentum)
        self.mean = RunningMean(torch.full((1,), 1 / num_classes), momentum)
        self.variance = RunningMean(torch.ones(1), momentum)

    def update(self, logits: Float[Tensor, "U C"]) -> None:
        """Updates the running means with the logits of a step."""
        self.marginal.update(logits.softmax(-1))
        confidence = self._confidence(logits).unsqueeze(1)
        self.variance.update((confidence - self.mean.update(confidence)) ** 2)

    def forward(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, " U"]:
        """lambda of each row."""
        return gaussian_weights(self._confidence(logits), self.mean.value, self.variance.value, self.num_sigma)

    def _confidence(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, " U"]:
        """max p~."""
        return debias(logits, self.marginal.value, self.strength).softmax(-1).amax(-1)


class SoftMatch(PseudoLabeling):
    """Truncated Gaussian weights and uniform alignment (arXiv 2301.10921).

    p~ = SumNorm(p / q) are the aligned probabilities, with q the marginal. mu_t and sigma_t^2 are running means of the
    mean and the variance of max p~ over a batch, at first 1 / C and 1. All are updated before they are used.

    lambda(p~) = exp(-min(max p~ - mu_t, 0)^2 n_sigma^2 / (2 sigma_t^2))

    L = CE(f(weak(x)), y) + lambda_u * mean_u lambda(p~) CE(f(strong(u)), argmax p)

    Alignment changes the weight only; the target is argmax p. n_sigma = 0 is FixMatch with threshold 0.

    Differences from USB's code: Its q starts at the mean of the first batch; here it is uniform. It divides the
    variance of a batch by one less than the number of images. Here the divisor is the number, so that one image also
    has a variance. It adds 1e-6 to q and to the uniform distribution; here p is divided by at least 1e-8.

    Args:
        problem: what is fixed before training.
        num_sigma: n_sigma; the larger, the faster weights fall: the standard deviation is divided by it.
        momentum: momentum of the running means.
        uniform_alignment: whether weights are computed from aligned probabilities, else from p.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong="gives every pseudo-label a weight above 0")

    def __init__(
        self,
        problem: Problem,
        *,
        num_sigma: NotNegative = 2.0,
        momentum: Fraction = 0.999,
        uniform_alignment: bool = True,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.num_sigma = num_sigma
        check_ranges(self, "method.")
        self.weights = GaussianWeights(
            problem.num_classes, momentum=momentum, num_sigma=num_sigma, strength=float(uniform_alignment)
        )

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        self.weights.update(logits)

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        return PseudoLabels(target=logits.argmax(-1), weight=self.weights(logits))
