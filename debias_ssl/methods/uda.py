"""UDA: FixMatch with soft, sharpened targets."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Views
from debias_ssl.formulas.logits import confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, Positive, check_ranges


class UDA(PseudoLabeling):
    """Unsupervised data augmentation (arXiv 1904.12848).

    p = softmax(f(weak(u))),  L = CE(f(weak(x)), y)
        + lambda_u * mean_u 1[max p >= threshold] CE(f(strong(u)), softmax(f(weak(u)) / temperature))

    The paper's KL divergence has the same gradient. temperature -> 0 is FixMatch. The annealing of the labeled loss
    (TSA) is left out; it keeps text models from memorizing few labels.

    Args:
        problem: what is fixed before training.
        threshold: beta, confidence from which a target counts, before it is sharpened.
        temperature: above 0; a smaller one makes targets closer to hard labels.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong=None)

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.8,
        temperature: Positive = 0.4,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.temperature = temperature
        check_ranges(self, "method.")

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        _, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=(logits / self.temperature).softmax(-1), weight=weight)
