"""DebiasPL: FixMatch whose pseudo-labels and margins leave out the model's standing preference for classes."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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

    Assisted by labels given from outside (the paper's are CLIP's): where no pseudo-label of an image counts and the
    given one's confidence is at least assist_threshold, the given one is the target of a second loss of the same form,
    and the mean of both takes the unlabeled loss's place.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a debiased pseudo-label counts.
        strength: tau, how much of the preference is removed from the targets and added as a margin.
        momentum: m of the marginal; .999 in the paper, .99 in the authors' ImageNet scripts.
        unlabeled_weight: lambda_u.
        num_views: weak and strong views of each unlabeled image.
        assist_threshold: confidence from which labels given by `data.probs` help out, .4 in the authors' scripts; null
            does without them.
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
        assist_threshold: float | None = None,
    ):
        super().__init__(problem)
        self.threshold = threshold
        self.strength = strength
        self.unlabeled_weight = unlabeled_weight
        self.num_weak = self.num_strong = num_views
        self.assist_threshold = assist_threshold
        self.needs_given = assist_threshold is not None
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
        unlabeled = mean_cross_entropy(margins, pseudo)
        target, weight = pseudo[0]
        if self.assist_threshold is not None:
            assert views.given is not None
            confidence, given = views.given.max(-1)
            counts = torch.stack([each for _, each in pseudo]).amax(0)
            helps = (confidence >= self.assist_threshold) * (1 - counts)
            unlabeled = (unlabeled + mean_cross_entropy(margins, [(given, helps)])) / 2
            target, weight = torch.where(helps > 0, given, target), weight + helps
        return Step(
            losses={"labeled": labeled, "unlabeled": self.unlabeled_weight * unlabeled},
            pseudo=PseudoLabels(target=target, weight=weight),
        )


def mean_cross_entropy(logits: list[Tensor], pseudo: list[tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
    """Over all pairs of logits (U C) and pseudo-labels (targets U, weights U)."""
    return torch.stack([weighted_cross_entropy(f, *labels) for f in logits for labels in pseudo]).mean()
