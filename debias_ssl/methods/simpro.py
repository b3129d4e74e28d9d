"""SimPro: estimates the class distribution of the unlabeled images during training."""

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import adjust, confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class SimPro(PseudoLabeling):
    """Expectation maximization with a separate prior for the unlabeled images (arXiv 2402.13505).

    The network f is trained to be unbiased. Let pi_u be the prior of the unlabeled images (uniform at first), and pi_l
    that of the labeled images in steps (uniform if each class is drawn equally often). The mean of both, weighted by
    the numbers of unlabeled and labeled images, is pi.

    1. E: p = softmax(f(weak(u)) + tau log pi_u), with the old pi_u; weight 1[max p >= threshold];
    2. M: pi_u ~ the running mean of weight * p;
    3. L = CE(f(weak(x)) + tau log pi, y) + lambda_u * mean_u weight * CE(f(strong(u)) + tau log pi, p).

    strength = 0 is FixMatch with soft targets.

    Differences from the authors' code: They move pi_u by a tenth after each epoch of 500 steps; here it moves with
    every step, because runs may be short. Their pi starts at pi_l, and moves by a tenth toward the shares of an epoch's
    labels and confident pseudo-labels, so that other unlabeled images do not count. Here pi always gives pi_u the
    weight of all unlabeled images; if there are many, pi starts near uniform. Their second strong view, their strong
    views of labeled images and their weight of the labeled loss are left out.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts; 0.2 for CIFAR-100 in the paper.
        strength: tau; 1 for CIFAR-100 in the paper.
        momentum: momentum of pi_u.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(all_strong=None)
    sampled_counts: Float[Tensor, " C"]

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        strength: NotNegative = 2.0,
        momentum: Fraction = 0.999,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.strength = strength
        check_ranges(self, "method.")
        # Its sum is the share of pseudo-labels that count, so that steps with few of them change the prior little.
        self.confident = uniform_marginal(problem.num_classes, momentum)
        counts = torch.tensor(problem.sampled_counts, dtype=torch.float32)
        self.register_buffer("sampled_counts", counts, persistent=False)

    @property
    def unlabeled_prior(self) -> Float[Tensor, " C"]:
        """pi_u."""
        return self.confident.value / self.confident.value.sum().clamp(min=1e-30)

    @property
    def prior(self) -> Float[Tensor, " C"]:
        """pi."""
        counts = self.sampled_counts + self.problem.num_unlabeled * self.unlabeled_prior
        return counts / counts.sum()

    def forward(self, views: Views) -> Step:
        weak = adjust(views.weak.logits, self.unlabeled_prior, self.strength)
        target, (_, weight) = weak.softmax(-1), confident_labels(weak, self.threshold)
        self.confident.update(weight.unsqueeze(1) * target)
        return self.step(views, PseudoLabels(target=target, weight=weight))

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        return super().labeled_loss(views, adjust(views.labeled.logits, self.prior, self.strength))

    def unlabeled_logits(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
        return adjust(logits, self.prior, self.strength)
