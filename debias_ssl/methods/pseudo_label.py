"""Pseudo-Label: confident predictions of the model become labels of the same views."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.formulas.logits import confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class PseudoLabel(PseudoLabeling):
    """Pseudo-Label (Lee, ICML 2013 workshop on challenges in representation learning; not on arXiv).

    p = softmax(f(weak(u))),
    L = CE(f(weak(x)), y) + lambda_u * mean_u alpha(t) 1[max p >= threshold] CE(f(weak(u)), argmax p)

    alpha(t) = min(1, t / ramp), with t the finished fraction of the run. It is a factor of the weights of
    pseudo-labels. The defaults are those of the USB benchmark; the paper has lambda_u = 3 and no threshold (0 here).
    ramp = 0 is FixMatch without a strong view.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        ramp: fraction of the run in which the weight of pseudo-labels rises to its full value.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(num_strong=0, weak_gradient=True)

    def __init__(
        self, problem: Problem, *, threshold: Fraction = 0.95, ramp: Fraction = 0.4, unlabeled_weight: NotNegative = 1.0
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.ramp = ramp
        check_ranges(self, "method.")

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        target, weight = confident_labels(logits, self.threshold)
        alpha = views.progress / self.ramp if views.progress < self.ramp else 1.0
        return PseudoLabels(target=target, weight=alpha * weight)
