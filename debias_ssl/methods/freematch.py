"""FreeMatch: thresholds follow the model's confidence, globally and per class; a loss keeps predictions diverse."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.distributed.collectives import sum_with_gradient
from debias_ssl.distributed.running import RunningMean, uniform_marginal
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class FreeMatch(PseudoLabeling):
    """Self-adaptive thresholds and fairness (arXiv 2205.07246).

    With tau_t, p~ and h~ running means of max p, p and the one-hot argmax p over weak views, all 1 / C at first, and
    updated before they are used:

    tau_t(c) = p~(c) / max p~ * tau_t
    L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= tau_t(argmax p)] CE(f(strong(u)), argmax p) + w_f L_f
    L_f = sum_c SumNorm(p~ / h~)(c) log SumNorm(p- / h-)(c)

    p- and h- are the means of p and of the one-hot argmax p over the strong views whose pseudo-label counts, in the
    global batch. L_f is 0 if no pseudo-label counts. momentum = 1 and fairness_weight = 0 is FixMatch with threshold
    1 / C.

    Difference from USB's code: If none of these strong views is predicted as class c, the logarithm of class c is
    log 1e-8 here, and log 1e-12 there.

    Args:
        problem: what is fixed before training.
        momentum: of the running means.
        fairness_weight: w_f.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong=None)

    def __init__(
        self,
        problem: Problem,
        *,
        momentum: Fraction = 0.999,
        fairness_weight: NotNegative = 0.01,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.fairness_weight = fairness_weight
        check_ranges(self, "method.")
        self.confidence = RunningMean(torch.full((1,), 1 / problem.num_classes), momentum)
        self.marginal = uniform_marginal(problem.num_classes, momentum)
        self.histogram = uniform_marginal(problem.num_classes, momentum)

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        probs = logits.softmax(-1)
        self.confidence.update(probs.amax(-1, keepdim=True))
        self.marginal.update(probs)
        self.histogram.update(one_hot(probs))

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        confidence, target = logits.softmax(-1).max(-1)
        thresholds = self.marginal.value / self.marginal.value.max() * self.confidence.value
        return PseudoLabels(target=target, weight=(confidence >= thresholds[target]).to(logits.dtype))

    def further_losses(self, logits: Float[Tensor, "U C"], pseudo: PseudoLabels) -> dict[str, Float[Tensor, ""]]:
        probs = logits.softmax(-1)
        # The sums need no division by the number that counts: the ratio is normalized.
        strong, histogram = sum_with_gradient(pseudo.weight @ torch.cat([probs, one_hot(probs)], 1)).chunk(2)
        running = normalized_ratio(self.marginal.value, self.histogram.value)
        fairness = (running * normalized_ratio(strong, histogram).clamp(min=SMALLEST_PROBABILITY).log()).sum()
        return {"fairness": self.fairness_weight * fairness * (histogram.sum() > 0)}


def one_hot(probs: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
    """1 for the most probable class, 0 for the others."""
    return F.one_hot(probs.argmax(-1), probs.shape[-1]).to(probs.dtype)


def normalized_ratio(mean: Float[Tensor, " C"], histogram: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """SumNorm(mean / histogram), 0 for classes that were never predicted."""
    seen = histogram > SMALLEST_PROBABILITY
    ratio = torch.where(seen, mean / torch.where(seen, histogram, 1.0), 0.0)
    return ratio / ratio.sum().clamp(min=SMALLEST_PROBABILITY)
