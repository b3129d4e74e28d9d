"""ABC: an auxiliary classifier that sees every class equally often."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.formulas.logits import confident_labels, weighted_cross_entropy
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class ABC(PseudoLabeling):
    """Auxiliary balanced classifier (arXiv 2110.10368) on the features of FixMatch; its gradient flows into them.

    With g the auxiliary head, q = softmax(g(weak(u))), k = argmax q, t the finished fraction of the run, n_y the number
    of labeled images of class y, and r_y = n_min / n_y:

    L = L_FixMatch + mean_x B(s_y) CE(g(weak(x)), y)
        + mean_u 1[max q >= threshold] B(1 - t (1 - r_k)) CE(g(strong(u)), q)

    B(p) is 1 with probability p, else 0, and is drawn for each image. s_y is r_y, or 1 if the labeled images are drawn
    equally often from each class. The loss of unlabeled images uses r_k in both cases: the paper assumes that their
    classes have the same shares as the labels. At test time g predicts. The targets q are soft, as in the authors'
    code. auxiliary_weight = 0 trains the network of FixMatch.

    Differences from the authors' code: They use two strong views. They add the last loss of both views, which doubles
    its weight, and average FixMatch's loss over both. Here there is one strong view. Their t grows after each epoch of
    500 steps; here it grows with every step.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts, for both heads.
        unlabeled_weight: lambda_u of FixMatch's loss.
        auxiliary_weight: weight of both losses of the auxiliary head.
    """

    needs = Needs(all_strong=None)
    keep: Float[Tensor, " C"]
    keep_labeled: Float[Tensor, " C"]

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NotNegative = 1.0,
        auxiliary_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.auxiliary_weight = auxiliary_weight
        check_ranges(self, "method.")
        self.head = nn.Linear(problem.num_features, problem.num_classes)
        # A class without labels counts as having one.
        counts = torch.tensor(problem.labeled_counts).clamp(min=1)
        self.register_buffer("keep", counts.min() / counts, persistent=False)
        keep = torch.ones_like(self.keep) if problem.class_balanced else self.keep.clone()
        self.register_buffer("keep_labeled", keep, persistent=False)

    def forward(self, views: Views) -> Step:
        target, weight = confident_labels(views.weak.logits, self.threshold)
        kept = torch.bernoulli(self.keep_labeled[views.labels])
        with torch.no_grad():
            weak = self.head(views.weak.features)
        own, confident = confident_labels(weak, self.threshold)
        confident = confident * torch.bernoulli(1 - views.progress * (1 - self.keep[own]))
        views = views.counted(weight + confident)
        step = self.step(views, PseudoLabels(target=target, weight=weight))
        auxiliary = weighted_cross_entropy(self.head(views.labeled.features), views.labels, kept)
        consistency = weighted_cross_entropy(self.head(views.strong.features), weak.softmax(-1), confident)
        further = {"auxiliary": self.auxiliary_weight * auxiliary, "consistency": self.auxiliary_weight * consistency}
        return replace(step, losses=step.losses | further)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        return self.head(view.features)
