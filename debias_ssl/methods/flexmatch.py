"""FlexMatch: lower thresholds for classes that are learned less."""

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.distributed.running import LabelMemory
from debias_ssl.formulas.logits import confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class FlexMatch(PseudoLabeling):
    """Curriculum pseudo-labeling (arXiv 2110.08263).

    With sigma(c) the number of unlabeled images whose last prediction with confidence >= tau was class c, and N' the
    number of images that never had such a prediction:

    beta(c) = sigma(c) / max{max sigma, N'},  T(c) = beta(c) / (2 - beta(c)) * tau
    L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= T(argmax p)] CE(f(strong(u)), argmax p)

    Thresholds are those of earlier steps. If all classes are learned equally (beta = 1), this is FixMatch.

    Args:
        problem: what is fixed before training.
        threshold: tau, the confidence from which a prediction counts for sigma, and the largest threshold.
        warm_up: whether N' is in the denominator, so that thresholds start low for all classes.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong=None)
    beta: Tensor

    def __init__(
        self, problem: Problem, *, threshold: Fraction = 0.95, warm_up: bool = True, unlabeled_weight: NotNegative = 1.0
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        check_ranges(self, "method.")
        self.warm_up = warm_up
        self.memory = LabelMemory(problem.num_unlabeled, problem.num_classes)
        self.register_buffer("beta", torch.zeros(problem.num_classes))

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        learned = self.memory.counts()
        unused = len(self.memory.value) - learned.sum() if self.warm_up else learned.new_ones(())
        self.beta.copy_(learned / torch.maximum(learned.max(), unused))
        target, weight = confident_labels(logits, self.threshold)
        self.memory.update(views.index, torch.where(weight > 0, target, -1))

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        confidence, target = logits.softmax(-1).max(-1)
        thresholds = self.threshold * self.beta / (2 - self.beta)
        return PseudoLabels(target=target, weight=(confidence >= thresholds[target]).to(logits.dtype))
