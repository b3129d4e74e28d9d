"""FixMatch: confident predictions on weak views are the targets of strong views."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import adjust, confident_labels, debias
from debias_ssl.methods.base import PseudoLabeling, class_shares
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class FixMatch(PseudoLabeling):
    """FixMatch (arXiv 2001.07685).

    p = softmax(f(weak(u))),  L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), argmax p)

    The mean is over all unlabeled images of the batch, confident or not.

    With a prior pi, predictions are aligned to it: SumNorm(p pi / q) replaces p, with q the running mean of p. This is
    distribution alignment (arXiv 1911.09785), which the paper adds on CIFAR-100. CReST+ uses pi ~ N^t (arXiv
    2102.09559).

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        unlabeled_weight: lambda_u.
        prior: pi, a share for each class; null turns alignment off.
        prior_momentum: momentum of q, which starts uniform and is used only with a prior; 0.99 averages over about 100
            batches, similar to the 128 of ReMixMatch.
    """

    needs = Needs(all_strong=None)
    prior: Float[Tensor, " C"] | None

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NotNegative = 1.0,
        prior: list[NotNegative] | None = None,
        prior_momentum: Fraction = 0.99,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.prior_momentum = prior_momentum
        check_ranges(self, "method.")
        shares = None if prior is None else class_shares(prior, problem.num_classes)
        self.register_buffer("prior", shares, persistent=False)
        self.marginal = None if prior is None else uniform_marginal(problem.num_classes, prior_momentum)

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        if self.marginal is not None:
            self.marginal.update(logits.softmax(-1))

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        if self.marginal is not None and self.prior is not None:
            logits = adjust(debias(logits, self.marginal.value, 1.0), self.prior, 1.0)
        target, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=target, weight=weight)
