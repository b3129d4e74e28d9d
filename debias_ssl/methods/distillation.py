"""Distillation: a student learns the predictions of a trained teacher on the same images."""

import torch

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.formulas.logits import tempered, weighted_cross_entropy
from debias_ssl.methods.base import Method
from debias_ssl.system.ranges import Fraction, Positive, check_ranges


class Distillation(Method):
    """Distillation (arXiv 1503.02531) from a teacher's class probabilities p for the views of the student.

    With z(x) the student's logits of a weak view, and p_T the teacher's softmax at temperature T:

    L = (1 - w) CE(z(x), y) + w T^2 mean CE(z / T, p_T)

    The mean is over the unlabeled images, which usually include the labeled ones, or over the labeled images, as in the
    paper. The factor T^2 keeps the size of the gradient. An image without probabilities of the teacher (a row of zeros)
    has the loss 0. soft_weight = 0 is Supervised.

    Args:
        problem: what is fixed before training.
        temperature: T, of student and teacher.
        soft_weight: w, the weight of the teacher's loss; 1 trains without labels. The paper advises a large weight.
        unlabeled: whether the mean is over the unlabeled images, else over the labeled ones.
    """

    def __init__(
        self, problem: Problem, *, temperature: Positive = 4.0, soft_weight: Fraction = 0.9, unlabeled: bool = True
    ):
        super().__init__(problem)
        self.temperature = temperature
        self.soft_weight = soft_weight
        self.unlabeled = unlabeled
        check_ranges(self, "method.")
        of_unlabeled, of_labeled = soft_weight > 0 and unlabeled, soft_weight > 0 and not unlabeled
        self.needs = Needs(
            num_strong=0, weak_gradient=of_unlabeled, teacher_probs=of_unlabeled, labeled_teacher_probs=of_labeled
        )

    def forward(self, views: Views) -> Step:
        losses = {"labeled": (1 - self.soft_weight) * self.labeled_loss(views)}
        target = views.weak.logits.argmax(-1)
        weight = torch.zeros(len(target), device=target.device)
        if self.soft_weight:
            view, probs = (
                (views.strong, views.teacher_probs) if self.unlabeled else (views.labeled, views.labeled_teacher_probs)
            )
            assert probs is not None
            soft, counts = tempered(probs, self.temperature), (probs.sum(-1) > 0).float()
            cross_entropy = weighted_cross_entropy(view.logits / self.temperature, soft, counts)
            losses["soft"] = self.soft_weight * self.temperature**2 * cross_entropy
            if self.unlabeled:
                target, weight = soft, counts
        return Step(losses=losses, pseudo=PseudoLabels(target=target, weight=weight))
