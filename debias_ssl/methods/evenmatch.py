"""EvenMatch, this project's own method: removes class bias from targets, from weights and from both losses."""

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

    Let pi_l be the shares of the C classes among the labeled images of steps. The running means of softmax(f(weak(u)))
    and of p are q and r, both uniform at first. The running means of the mean and the variance of p^ are mu and
    sigma^2, at first 1 / C and 1.

    1. p = softmax(f(weak(u)) - tau log q), with the old q. Then q is updated (DebiasPL, arXiv 2201.01490).
    2. p^ = max SumNorm(p / r). Then r, mu and sigma^2 are updated.
       lambda = exp(-2 min(p^ - mu, 0)^2 / sigma^2) (SoftMatch, arXiv 2301.10921).
    3. L = CE(f(weak(x)), y) / (C pi_l(y)) + lambda_u * mean_u lambda CE(f(strong(u)) + tau log q, argmax p), with the
       new q.

    Each class has the same part in the labeled loss, so uneven labels do not make f prefer frequent classes, and the
    pseudo-labels do not inherit such a preference. What remains in q is drift, or uneven classes of the unlabeled
    images. If all classes have equally many labels, or are drawn equally often, this is DebiasPL over SoftMatch.

    If the run sets another `labeled_loss`, it replaces the first term. LogitAdjusted with strength 1.5 is EvenMatch as
    it was before 2026-11-27.

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
