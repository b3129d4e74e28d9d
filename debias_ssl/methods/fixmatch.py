"""FixMatch: confident predictions on weak views are the targets of strong views."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.functional import confident_labels
from debias_ssl.methods.base import Problem, PseudoLabeling, PseudoLabels, Views


class FixMatch(PseudoLabeling):
    """FixMatch (arXiv 2001.07685).

    p = softmax(f(weak(u))),  L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), argmax p)

    The mean is over all unlabeled images of the batch, confident or not.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        unlabeled_weight: lambda_u.
    """

    def __init__(self, problem: Problem, *, threshold: float = 0.95, unlabeled_weight: float = 1.0):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        target, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=target, weight=weight)
