"""Self-training: fixed labels of the unlabeled images, which another model or person gave before training."""

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import NotNegative


class SelfTraining(PseudoLabeling):
    """One round of self-training on given labels, as in V-PET (arXiv 2503.09707).

    With p(u) the class probabilities that `data.probs` (or `teacher`) gives to an unlabeled image,

    L = CE(f(weak(x)), y) + lambda_u mean_u w(u) CE(f(strong(u)), argmax p(u))

    with w = 1 on all unlabeled images, no threshold; or w = max p(u), which of votes is the share of those that agree.
    An image of which nobody says anything (a row of zeros) counts 0. What the network itself says of the weak views has
    no part in it, so that a wrong label stays what it is: take the labels of a better model, or of several.
    unlabeled_weight = 0 is Supervised.

    Args:
        problem: what is fixed before training.
        weighted: whether w is max p(u).
        unlabeled_weight: lambda_u.
    """

    needs = Needs(teacher_probs=True, all_strong=None)

    def __init__(self, problem: Problem, *, weighted: bool = False, unlabeled_weight: NotNegative = 1.0):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.weighted = weighted

    def forward(self, views: Views) -> Step:
        assert views.teacher_probs is not None
        confidence, target = views.teacher_probs.max(-1)
        weight = confidence if self.weighted else (confidence > 0).float()
        return self.step(views, PseudoLabels(target=target, weight=weight))
