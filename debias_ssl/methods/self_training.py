"""Self-training: learns fixed labels of the unlabeled images that another model or a person gave before training."""

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import NotNegative


class SelfTraining(PseudoLabeling):
    """One round of self-training on given labels, as in V-PET (arXiv 2503.09707).

    With p(u) the class probabilities of an unlabeled image from `data.probs` or `teacher`:

    L = CE(f(weak(x)), y) + lambda_u mean_u w(u) CE(f(strong(u)), argmax p(u))

    w(u) is 1, without a threshold, or max p(u); for votes, max p(u) is the share of the voters that agree. An image
    without given probabilities (a row of zeros) has the weight 0. The network's own predictions do not change the
    targets, so a wrong label stays wrong: use the labels of a better model, or of several. unlabeled_weight = 0 is
    Supervised.

    Args:
        problem: what is fixed before training.
        weighted: whether w is max p(u), else 1.
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
