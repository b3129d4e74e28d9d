"""CSST: self-training that maximizes the smallest recall, or the mean recall with a minimum of predictions a class."""

from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, Range, check_ranges


class CSST(PseudoLabeling):
    """Cost-sensitive self-training (arXiv 2304.14738).

    With G the gain matrix, D = diag(G), M = G D^-1, p = softmax(f(weak(u))), and k = argmax p:

    H(f, y) = -sum_j M_yj log softmax(f - log D)_j

    L = H(f(weak(x)), y) + lambda_u * mean_u 1[KL(G_k / sum G_k || p) < threshold] H(f(strong(u)), k)

    G follows from the validation images of the last evaluation. r_i is the recall of class i, c_j the share of the
    predictions that are class j, and pi_i the share of class i among the images of the loss:

    - min_recall: G = diag(lambda_i / pi_i), lambda_i ~ lambda_i exp(-omega r_i);
    - mean_recall: G_ij = 1[i = j] / (C pi_i) + lambda_j, lambda_j <- max(0, lambda_j - omega (c_j - coverage / C)).

    In the loss of unlabeled images, pi are the shares of the classes among the labels. In that of labeled images, they
    are the shares in which steps draw them: uniform if each class is drawn equally often. H replaces the run's labeled
    loss. min_recall with equal counts and rate = 0 is FixMatch with the threshold e^-threshold.

    Args:
        problem: what is fixed before training.
        objective: the goal to maximize: the smallest recall, or the mean recall under the constraint.
        coverage: each class must get at least this part of 1 / C of the predictions; for mean_recall only.
        threshold: divergence from which a pseudo-label no longer counts.
        rate: omega, the step size of lambda at each evaluation.
        unlabeled_weight: lambda_u.
    """

    needs = Needs(validation=True, all_strong=None)
    prior: Float[Tensor, " C"]
    sampled_prior: Float[Tensor, " C"]
    multipliers: Float[Tensor, " C"]

    def __init__(
        self,
        problem: Problem,
        *,
        objective: Literal["min_recall", "mean_recall"] = "min_recall",
        coverage: Fraction = 0.95,
        threshold: Annotated[float, Range(0, below=False)] = 0.05,
        rate: NotNegative = 0.1,
        unlabeled_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.objective = objective
        self.coverage = coverage
        self.threshold = threshold
        self.rate = rate
        check_ranges(self, "method.")
        # A class without labels counts as having one.
        for name, counts in (("prior", problem.labeled_counts), ("sampled_prior", problem.sampled_counts)):
            floored = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
            self.register_buffer(name, floored / floored.sum(), persistent=False)
        first = 1 / problem.num_classes if objective == "min_recall" else 0.0
        self.register_buffer("multipliers", torch.full((problem.num_classes,), first))

    @property
    def gain(self) -> Float[Tensor, "C C"]:
        """G of unlabeled images."""
        return self._gain(self.prior)

    def _gain(self, prior: Float[Tensor, " C"]) -> Float[Tensor, "C C"]:
        if self.objective == "min_recall":
            return (self.multipliers / prior).diag()
        return (1 / (len(prior) * prior)).diag() + self.multipliers

    def forward(self, views: Views) -> Step:
        target = views.weak.logits.argmax(-1)
        ideal = (self.gain / self.gain.sum(1, keepdim=True))[target]
        divergence = F.kl_div(views.weak.logits.log_softmax(-1), ideal, reduction="none").sum(-1)
        weight = (divergence < self.threshold).to(divergence.dtype)
        step = self.step(views, PseudoLabels(target=costs(self.gain)[target], weight=weight))
        return replace(step, pseudo=PseudoLabels(target=target, weight=weight))

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        gain = self._gain(self.sampled_prior)
        return F.cross_entropy(views.labeled.logits - gain.diagonal().log(), costs(gain)[views.labels])

    def unlabeled_logits(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
        return logits - self.gain.diagonal().log()

    def on_evaluation(self, confusion: Int[Tensor, "C C"]) -> None:
        counts = confusion.to(self.multipliers)
        if self.objective == "min_recall":
            recalls = counts.diagonal() / counts.sum(1).clamp(min=1)
            moved = (self.multipliers * (-self.rate * recalls).exp()).clamp(min=SMALLEST_PROBABILITY)
            self.multipliers.copy_(moved / moved.sum())
        else:
            missing = self.coverage / len(counts) - counts.sum(0) / counts.sum()
            self.multipliers.add_(self.rate * missing).clamp_(min=0)


def costs(gain: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    """M = G D^-1."""
    return gain / gain.diagonal()
