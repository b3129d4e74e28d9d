"""FixMatch: confident predictions on weak views are the targets of strong views."""

import torch.nn.functional as F

from debias_ssl.functional import confident_labels, weighted_cross_entropy
from debias_ssl.methods.base import Method, Problem, PseudoLabels, Step, Views


class FixMatch(Method):
    """FixMatch (arXiv 2001.07685).

    p = softmax(f(weak(u))),  L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), argmax p)

    The mean is over all unlabeled images of the batch, confident or not.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        unlabeled_weight: lambda_u.
    """

    def __init__(self, problem: Problem, *, threshold: float = 0.95, unlabeled_weight: float = 1.0):
        super().__init__(problem)
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight

    def forward(self, views: Views) -> Step:
        labeled = F.cross_entropy(views.labeled.logits, views.labels)
        target, weight = confident_labels(views.weak.logits, self.threshold)
        unlabeled = weighted_cross_entropy(views.strong.logits, target, weight)
        return Step(
            losses={"labeled": labeled, "unlabeled": self.unlabeled_weight * unlabeled},
            pseudo=PseudoLabels(target=target, weight=weight),
        )
