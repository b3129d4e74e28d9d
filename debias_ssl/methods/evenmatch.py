"""EvenMatch: this project's own method. It removes class bias from targets, from weights and from both losses."""

from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import adjust, debias
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.methods.labeled_loss import Balanced, CrossEntropy
from debias_ssl.methods.softmatch import GaussianWeights
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class EvenMatch(PseudoLabeling):
    """Debiased targets, weights without a threshold, and a labeled loss for even classes (docs/evenmatch.md).

    With pi_l the shares of the classes among the labeled images of steps, C their number, q and r the running means of
    softmax(f(weak(u))) and of p, and mu and sigma^2 those of the mean and the variance of p^ (q and r are uniform at
    first, mu is 1 / C, sigma^2 is 1):

    1. p = softmax(f(weak(u)) - tau log q), with the old q; q is updated (DebiasPL, arXiv 2201.01490);
    2. p^ = max SumNorm(p / r); r, mu and sigma^2 are updated;
       lambda = exp(-2 min(p^ - mu, 0)^2 / sigma^2) (SoftMatch, arXiv 2301.10921);
    3. L = CE(f(weak(x)), y) / (C pi_l(y)) + lambda_u * mean_u lambda CE(f(strong(u)) + tau log q, argmax p), with the
       new q.

    Each term leaves f without a preference: each class has the same part in the labeled loss, so that uneven labels do
    not hand theirs down to the pseudo-labels, and what is left in q is drift, or a tail of the unlabeled images. Where
    classes have equally many labels, or are drawn equally often, it is DebiasPL over SoftMatch.

    Another labeled loss of the run (`labeled_loss`) takes the place of the first term. With LogitAdjusted and its
    strength 1.5 it is EvenMatch as it was before 2026-11-27.

    Args:
        problem: what is fixed before training.
        strength: tau.
        momentum: of the running means.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong="gives every pseudo-label a weight above 0")

    def __init__(
        self,
        problem: Problem,
        *,
        strength: NotNegative = 0.5,
        momentum: Fraction = 0.99,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.strength = strength
        check_ranges(self, "method.")
        # Plain cross-entropy is the default: the user did not choose another loss.
        if isinstance(self.criterion, CrossEntropy):
            self.criterion = Balanced(problem)
        self.marginal = uniform_marginal(problem.num_classes, momentum)
        self.weights = GaussianWeights(problem.num_classes, momentum=momentum)

    def forward(self, views: Views) -> Step:
        weak = debias(views.weak.logits, self.marginal.value, self.strength)
        self.marginal.update(views.weak.logits.softmax(-1))
        self.weights.update(weak)
        return self.step(views, PseudoLabels(target=weak.argmax(-1), weight=self.weights(weak)))

    def unlabeled_logits(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
        return adjust(logits, self.marginal.value, self.strength)
