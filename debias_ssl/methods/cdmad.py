"""CDMAD: takes the network's prediction for an image without content as its class bias, and subtracts it."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import BlankKind, Needs, Problem, PseudoLabels, View, Views
from debias_ssl.formulas.logits import confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class CDMAD(PseudoLabeling):
    """Class-distribution-mismatch-aware debiasing (arXiv 2403.10391) of FixMatch.

    With I a blank image: f*(x) = f(x) - f(I), p = softmax(f*(weak(u))), at first softmax(f(weak(u))),

    L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), p)

    and f* predicts at test time. hard = true, threshold = 0.95 and warm_up = 1 train the network of FixMatch.

    I is 1 in every channel as the network takes it, which is the data's mean plus one deviation and what the authors'
    code has, or white: 1 before it is normalized, which is 1.8 on digits and 2.1 on CIFAR-10. The farther I is from all
    images, the more f(I) says that is not the bias.

    In training the authors compute f(I) with the statistics of I alone, we with averaged ones; at test time both do
    with averaged ones. They have two strong views of each image, we one.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts; 0 in the authors' code.
        hard: whether the target is argmax p instead of p.
        blank: the image I.
        warm_up: share of the run with plain pseudo-labels; 100 of 500 epochs in the authors' code.
        unlabeled_weight: lambda_u.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.0,
        hard: bool = False,
        blank: BlankKind = "ones",
        warm_up: Fraction = 0.2,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.hard = hard
        self.needs = Needs(blank=blank, all_strong=None)
        self.warm_up = warm_up
        check_ranges(self, "method.")

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        if views.progress >= self.warm_up:
            assert views.blank is not None
            logits = logits - views.blank.logits
        target, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=target if self.hard else logits.softmax(-1), weight=weight)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        assert blank is not None
        return view.logits - blank.logits
