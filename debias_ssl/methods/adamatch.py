"""AdaMatch: aligns predictions to those of labeled images, and sets the threshold relative to the confidence there."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.distributed.running import RunningMean, uniform_marginal
from debias_ssl.formulas.logits import align
from debias_ssl.methods.base import PseudoLabeling, class_shares
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class AdaMatch(PseudoLabeling):
    """Distribution alignment and relative threshold (arXiv 2106.04732), for images of one domain.

    With q the running mean of p = softmax(f(weak(u))), and pi the running mean of softmax(f(weak(x))), both uniform at
    first:

    p~ = SumNorm(p pi / q),  c_tau = tau * mean_x max softmax(f(weak(x)))

    L = CE(f(weak(x)), y) + CE(f(strong(x)), y) + mu(t) lambda_u mean_u 1[max p~ >= c_tau] CE(f(strong(u)), argmax p~)

    mu(t) = 1/2 - cos(min(pi, 2 pi t)) / 2, with t the finished fraction of the run. It is a factor of the weights of
    pseudo-labels. Once mu is 1, threshold = 0 and prior = null is FixMatch with threshold 0 and the second labeled
    loss. The means run over several steps, because batches are smaller than those of the paper. Random logit
    interpolation is left out: it mixes domains, which needs another pass of the labeled images, and here there is one
    domain.

    Differences from the authors' code: Their labeled loss is the mean over both views; here it is the sum. Their q is
    the mean of the last 128 batches; here it is a running mean with momentum 0.999. They add 1e-6 to pi and to q; here
    p~ is divided by at least 1e-8.

    Args:
        problem: what is fixed before training.
        threshold: tau, relative to the mean confidence of the labeled images of the step.
        momentum: of q and pi.
        prior: pi: `labeled` is the running mean of labeled images' predictions; `uniform` or a list is fixed; null
            turns alignment off.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(
        strong_labeled=True, all_strong="takes its threshold from labeled views, which pass with the strong ones"
    )

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.9,
        momentum: Fraction = 0.999,
        prior: Literal["labeled", "uniform"] | list[NotNegative] | None = "labeled",
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        check_ranges(self, "method.")
        self.is_aligned, self.follows_labeled = prior is not None, prior == "labeled"
        self.marginal = uniform_marginal(problem.num_classes, momentum)
        self.prior = uniform_marginal(problem.num_classes, momentum)
        if isinstance(prior, list):
            self.prior.value.copy_(class_shares(prior, problem.num_classes))
        self.confidence = RunningMean(torch.ones(1), momentum=0.0)

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        assert views.strong_labeled is not None
        return super().labeled_loss(views, logits) + super().labeled_loss(views, views.strong_labeled.logits)

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        labeled = views.labeled.logits.softmax(-1)
        self.confidence.update(labeled.amax(-1, keepdim=True))
        self.marginal.update(logits.softmax(-1))
        if self.follows_labeled:
            self.prior.update(labeled)

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        probs = logits.softmax(-1)
        if self.is_aligned:
            probs = align(probs, self.marginal.value, self.prior.value)
        confidence, target = probs.max(-1)
        mu = 0.5 - math.cos(min(math.pi, 2 * math.pi * views.progress)) / 2
        weight = mu * (confidence >= self.threshold * self.confidence.value).to(logits.dtype)
        return PseudoLabels(target=target, weight=weight)
