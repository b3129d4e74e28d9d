"""DebiasPL: FixMatch whose pseudo-labels and margins leave out the model's standing preference for classes."""

import torch
import torch.nn.functional as F

from debias_ssl.functional import adjust, confident_labels, debias, weighted_cross_entropy
from debias_ssl.methods.base import Method, Problem, PseudoLabels, Step, Views
from debias_ssl.trackers import uniform_marginal


class DebiasPL(Method):
    """Debiased pseudo-labels and adaptive margin (arXiv 2201.01490), in the order of the authors' code.

    With q the marginal (uniform at first) and tau the strength:

    1. p = softmax(f(weak(u)) - tau log q), with the old q; target argmax p, weight 1[max p >= threshold];
    2. q <- m q + (1 - m) mean softmax(f(weak(u))): undebiased, over all images of the global batch;
    3. L = CE(f(weak(x)), y) + lambda_u * mean_u weight * CE(f(strong(u)) + tau log q, target), with the new q.

    With several views, the targets come from the mean of the weak logits and from each weak view, each applies to every
    strong view, and q follows the mean logits (the authors' recipe for ImageNet has two). strength = 0 is FixMatch.
    The authors' CLD loss is left out.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a debiased pseudo-label counts.
        strength: tau, how much of the preference is removed from the targets and added as a margin.
        momentum: m of the marginal; .999 in the paper, .99 in the authors' ImageNet scripts.
        unlabeled_weight: lambda_u.
        num_views: weak and strong views of each unlabeled image.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: float = 0.95,
        strength: float = 0.5,
        momentum: float = 0.999,
        unlabeled_weight: float = 1.0,
        num_views: int = 1,
    ):
        super().__init__(problem)
        self.threshold = threshold
        self.strength = strength
        self.unlabeled_weight = unlabeled_weight
        self.num_weak = self.num_strong = num_views
        self.marginal = uniform_marginal(problem.num_classes, momentum)

    def forward(self, views: Views) -> Step:
        labeled = F.cross_entropy(views.labeled.logits, views.labels)
        weak = torch.stack([view.logits for view in (views.weak, *views.further_weak)])
        mean = weak.mean(0)
        sources = [mean, *weak] if len(weak) > 1 else [mean]
        pseudo = [confident_labels(debias(f, self.marginal.value, self.strength), self.threshold) for f in sources]
        self.marginal.update(mean.softmax(-1))
        strong = [view.logits for view in (views.strong, *views.further_strong)]
        margins = [adjust(f, self.marginal.value, self.strength) for f in strong]
        unlabeled = [weighted_cross_entropy(f, target, weight) for f in margins for target, weight in pseudo]
        target, weight = pseudo[0]
        return Step(
            losses={"labeled": labeled, "unlabeled": self.unlabeled_weight * torch.stack(unlabeled).mean()},
            pseudo=PseudoLabels(target=target, weight=weight),
        )
