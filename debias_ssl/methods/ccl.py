"""CCL: two heads make the pseudo-labels together, corrected by estimated class shares."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.distributed.running import Windows
from debias_ssl.formulas.logits import adjust, confident_labels, debias, weighted_cross_entropy
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, Share, check_ranges


class CCL(PseudoLabeling):
    """The two heads and the priors of continuous contrastive learning (arXiv 2410.06109).

    Let f be the network, b a second head on its features, and r = U / (U + L) for a step with U unlabeled and L labeled
    images. The shares of the classes among the labeled images of steps are pi_l. The estimated shares are pi_u among
    the unlabeled images, and pi among all images.

    1. z = 1/2 [f(weak(u)) - log((1 - r) pi_l + r pi) + (1 + tau / 2) log pi_u] + 1/2 b(weak(u));
       p = softmax(z), target argmax p, weight 1[max p >= threshold].
    2. L = CE(f(weak(x)), y) + CE(b(weak(x)) + tau log pi_l, y)
           + lambda_u * mean_u weight * [CE(f(strong(u)), target) + CE(b(strong(u)) + tau log pi, target)]
    3. After each window, pi_u <- m pi_u + (1 - m) n_u / sum n_u. Here n_u is one more than the sum of p over the images
       of the window with log sum exp z >= negative_energy. The images whose weight is 1 update pi in the same way.

    At first, pi_u is uniform and pi is pi_l. At test time b predicts. If all three priors are uniform and b equals f,
    this is FixMatch with each loss twice.

    Differences from the authors' code: The contrastive losses are left out, and with them the weight 0.7 of the
    classification. They take the mean of two strong views; here there is one. Their windows begin after 5 (on CIFAR-10
    20) of 500 epochs and have 500 of 250,000 steps. In short runs this would be a single step, so a window is a
    hundredth of the run here. They leave the labeled images out of n_u; here all unlabeled images count, and these may
    include the labeled ones.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a pseudo-label counts.
        strength: tau.
        negative_energy: log sum exp z from which an image counts for pi_u; on the scale of the network's logits.
        momentum: m; in the authors' code 0.5 for pi_u, and 0.5 to 0.999 for pi.
        warm_up: share of the run before the first window.
        window: length of a window, as a share of the run.
        unlabeled_weight: lambda_u; in the authors' code the larger one of 1.5 and U / L, with U = L.
    """

    needs = Needs(all_strong=None)
    labeled_prior: Float[Tensor, " C"]
    priors: Float[Tensor, "2 C"]
    """pi_u and pi."""
    counts: Float[Tensor, "2 C"]
    """The sums of the current window: n_u, and the same for pi."""

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        strength: NotNegative = 2.0,
        negative_energy: NotNegative = 8.75,
        momentum: Fraction = 0.5,
        warm_up: Fraction = 0.01,
        window: Share = 0.01,
        unlabeled_weight: NotNegative = 1.5,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.strength = strength
        self.negative_energy = negative_energy
        self.momentum = momentum
        self.warm_up = warm_up
        self.window = window
        check_ranges(self, "method.")
        self.head = nn.Linear(problem.num_features, problem.num_classes)
        labeled_prior = torch.tensor(problem.labeled_prior)
        self.register_buffer("labeled_prior", labeled_prior, persistent=False)
        uniform = torch.full_like(labeled_prior, 1 / problem.num_classes)
        self.register_buffer("priors", torch.stack([uniform, labeled_prior]))
        self.register_buffer("counts", torch.ones(2, problem.num_classes))
        self.windows = Windows(warm_up, window)

    def joint_logits(self, logits: Float[Tensor, "U C"], views: Views) -> Float[Tensor, "U C"]:
        """z, the logits of both heads together."""
        (unlabeled, overall), num = self.priors, len(views.index)
        drawn = self.labeled_prior.lerp(overall, num / (num + len(views.labels)))
        own = adjust(debias(logits, drawn, 1.0), unlabeled, 1 + self.strength / 2)
        with torch.no_grad():
            return (own + self.head(views.weak.features)) / 2

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        ended = self.windows.ended(views.progress)
        if ended is not None:
            moved = (self.counts / self.counts.sum(1, keepdim=True)).lerp(self.priors, self.momentum)
            self.priors.copy_(torch.where(ended, moved, self.priors))
            self.counts.masked_fill_(ended, 1)
        if views.progress < self.warm_up:
            return
        joint = self.joint_logits(logits, views)
        counts = torch.stack(
            [joint.logsumexp(-1) >= self.negative_energy, joint.softmax(-1).amax(-1) >= self.threshold]
        )
        self.counts += all_sum_(counts.to(joint.dtype) @ joint.softmax(-1))

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        target, weight = confident_labels(self.joint_logits(logits, views), self.threshold)
        return PseudoLabels(target=target, weight=weight)

    def step(self, views: Views, pseudo: PseudoLabels) -> Step:
        views = views.counted(pseudo.weight)
        step = super().step(views, pseudo)
        labeled = adjust(self.head(views.labeled.features), self.labeled_prior, self.strength)
        strong = adjust(self.head(views.strong.features), self.priors[1], self.strength)
        unlabeled = weighted_cross_entropy(strong, pseudo.target, pseudo.weight)
        further = {
            "balanced_labeled": self.labeled_loss(views, labeled),
            "balanced_unlabeled": self.unlabeled_weight * unlabeled,
        }
        return replace(step, losses=step.losses | further)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        return self.head(view.features)
