"""DASO: mixes the pseudo-labels of the classifier with those of class prototypes, by how often a class is predicted."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, Positive, check_ranges


class DASO(PseudoLabeling):
    """Distribution-aware semantics-oriented pseudo-labels (arXiv 2106.05682) in FixMatch.

    With z the features, c_k the prototype of class k, p = softmax(f(weak(u))), k = argmax p,
    q_w = softmax(cos(z(weak(u)), c) / T_proto), q_s the same for strong(u), and m the running mean of p':

    1. v_k = m_k^(1/T) / max_j m_j^(1/T);  p' = (1 - v_k) p + v_k q_w
    2. L = CE(f(weak(x)), y) + lambda_u * mean_u 1[max p' >= threshold] CE(f(strong(u)), argmax p')
           + lambda_align * mean_u CE(q_s, q_w)

    During the warm-up p' = p and there is no alignment: warm_up = 1 is FixMatch. Prototypes are running means of the
    features of labeled images.

    Differences from the authors' code: Their prototypes are means of queues of 256 features a class from an averaged
    encoder. Their m has the shares of argmax p' in 100 steps, and changes every 100 steps; here it is a running mean of
    the soft p'. They move the prototypes by the labeled images of a step before use; here they are moved after use.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        temperature: T; in the paper 1.5 if labeled and unlabeled images have the same imbalance, else 0.3.
        prototype_temperature: T_proto.
        warm_up: share of the run with FixMatch's pseudo-labels; 5,000 of 250,000 steps in the paper.
        momentum: of m and of the prototypes; a prototype moves in steps with labeled images of its class.
        unlabeled_weight: lambda_u.
        align_weight: lambda_align.
    """

    needs = Needs(all_strong="aligns all strong views with the weak ones")
    prototypes: Float[Tensor, "C D"]

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        temperature: Positive = 1.5,
        prototype_temperature: Positive = 0.05,
        warm_up: Fraction = 0.02,
        momentum: Fraction = 0.99,
        unlabeled_weight: NotNegative = 1.0,
        align_weight: NotNegative = 1.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.temperature = temperature
        self.prototype_temperature = prototype_temperature
        self.warm_up = warm_up
        self.momentum = momentum
        self.align_weight = align_weight
        check_ranges(self, "method.")
        self.distribution = uniform_marginal(problem.num_classes, momentum)
        # Only the direction of a prototype counts, so prototypes may start at zero.
        self.register_buffer("prototypes", torch.zeros(problem.num_classes, problem.num_features))

    def forward(self, views: Views) -> Step:
        is_blended = views.progress >= self.warm_up
        probs = views.weak.logits.softmax(-1)
        semantic = self.similarities(views.weak.features).softmax(-1)
        if is_blended:
            semantic_share = self.semantic_share[probs.argmax(-1)].unsqueeze(1)
            probs = (1 - semantic_share) * probs + semantic_share * semantic
        self.distribution.update(probs)
        confidence, target = probs.max(-1)
        weight = (confidence >= self.threshold).to(probs.dtype)
        align = F.cross_entropy(self.similarities(views.strong.features), semantic)
        self.update_prototypes(views.labeled.features, views.labels)
        step = self.step(views, PseudoLabels(target=target, weight=weight))
        return replace(step, losses=step.losses | {"align": is_blended * self.align_weight * align})

    @property
    def semantic_share(self) -> Float[Tensor, " C"]:
        """v, which is larger for a class with more pseudo-labels."""
        return (self.distribution.value / self.distribution.value.max()) ** (1 / self.temperature)

    def similarities(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N C"]:
        """cos(z, c) / T_proto; 0 for a class without a prototype yet."""
        return F.normalize(features) @ F.normalize(self.prototypes).T / self.prototype_temperature

    @torch.no_grad()
    def update_prototypes(self, features: Float[Tensor, "L D"], labels: Int[Tensor, " L"]) -> None:
        is_of = F.one_hot(labels, len(self.prototypes)).to(features.dtype)
        # Sums and counts of all processes, in one message.
        sums = all_sum_(is_of.T @ F.pad(features, (0, 1), value=1.0))
        means = sums[:, :-1] / sums[:, -1:].clamp(min=1)
        moved = self.prototypes.lerp(means, 1 - self.momentum)
        self.prototypes.copy_(torch.where(sums[:, -1:] > 0, moved, self.prototypes))
