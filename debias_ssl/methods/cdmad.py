"""CDMAD: subtracts the logits of an image without content, because they are the network's class bias."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import BlankKind, Needs, Problem, PseudoLabels, View, Views
from debias_ssl.formulas.logits import confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class CDMAD(PseudoLabeling):
    """Class-distribution-mismatch-aware debiasing (arXiv 2403.10391) of FixMatch.

    With I a blank image, f*(x) = f(x) - f(I), and p = softmax(f*(weak(u))) (during the warm-up softmax(f(weak(u)))):

    L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), p)

    At test time f* predicts. hard = true, threshold = 0.95 and warm_up = 1 train the network of FixMatch.

    With blank = ones, I is 1 in every channel after normalization: the data's mean plus one standard deviation, as in
    the authors' code. With blank = white, I is 1 before normalization; the network then gets 1.8 on digits and 2.1 on
    CIFAR-10. The farther I is from all images, the less f(I) is the bias alone.

    Differences from the authors' code: In training they compute f(I) with batch statistics of I alone; here averaged
    statistics are used, as at test time. They use two strong views of each image; here there is one.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts; 0 in the authors' code.
        hard: whether the target is argmax p instead of p.
        blank: the image I.
        warm_up: share of the run with pseudo-labels that are not debiased; 100 of 500 epochs in the authors' code.
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
