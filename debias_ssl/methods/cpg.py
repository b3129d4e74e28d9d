"""CPG: unlabeled images with stable pseudo-labels join the labeled images, so that the class shares are known."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.distributed.running import VoteMemory, Windows
from debias_ssl.formulas.logits import adjust, confident_labels
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, Share, check_ranges


class CPG(PseudoLabeling):
    """Controllable pseudo-label generation (arXiv 2510.03993): a growing set of admitted images.

    Let n_l be the numbers of labeled images of the classes, in the proportions in which steps draw them, n_a the
    numbers of admitted images, and g an auxiliary head on the same features.

    The priors are pi ~ n_l + n_a and pi_a ~ n_a. For pi_a, classes with n_a <= min n_l get the smallest n_a of the
    other classes. If there are no others, pi_a is uniform.

    1. An unlabeled image gets a vote for k if f(weak(u)) + log pi_a and f(strong(u)) + log pi_a both have the argmax k
       with a confidence of at least the threshold. There are no votes during the warm-up.
    2. After each window, each image that was seen in it is admitted or not. It is admitted if at least the share
       `least` of its views gave a vote, and more than the share `agreement` of these votes are for one class. Its label
       is the shares of its votes, and its class the argmax. All votes are then deleted.
    3. L = mean over labeled and admitted images of CE(f + log pi, label)
           + lambda_a * [CE(g(weak(x)) + log pi, y) + mean_u CE(g(strong(u)), argmax g(weak(u)))]

    The first mean is that of a batch drawn from the union of both sets. The mean over the labeled images of a step has
    the weight |n_l| / |n_l + n_a|. The mean over its unlabeled images, where images that are not admitted have the loss
    0, has the weight (unlabeled images) / |n_l + n_a|. Before the first admission, with auxiliary_weight = 0, this is
    `Supervised` with the loss `LogitAdjusted`.

    Differences from the authors' code: They train admitted images by weak views; here the strong views are used, which
    have a gradient. They require 13 votes for an image in a window of 5 of 256 epochs. Short runs see an image less
    often than that, so windows are longer here, and `least` is a share. An image that was not seen in a window keeps
    its state. They smooth labels by 0.1 and use the threshold 0.855; here `--labeled_loss LabelSmoothing` smooths them.
    Their noise on features, with more copies for rare classes, is left out, because a method cannot use the network's
    classifier.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which an image gets a vote; with smoothed labels, 0.95 * (1 - smoothing).
        agreement: one class must have more than this share of the votes.
        least: smallest share of the times that an image was seen that must give a vote.
        warm_up: share of the run without votes; 30 of 256 epochs in the authors' code.
        window: time in which votes are collected, as a share of the run; 5 of 256 epochs in the authors' code.
        auxiliary_weight: lambda_a.
    """

    sampled_counts: Float[Tensor, " C"]
    needs = Needs(all_strong="compares the predictions of strong and weak views of all images")
    labels: Tensor
    """Votes by which each image was admitted, N x C; zeros for an image that is not."""
    admitted: Float[Tensor, " C"]
    """n_a."""

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.95,
        agreement: Fraction = 0.8,
        least: Fraction = 0.25,
        warm_up: Fraction = 0.12,
        window: Share = 0.05,
        auxiliary_weight: NotNegative = 1.0,
    ):
        super().__init__(problem)
        self.threshold = threshold
        self.agreement = agreement
        self.least = least
        self.warm_up = warm_up
        self.window = window
        self.auxiliary_weight = auxiliary_weight
        check_ranges(self, "method.")
        self.head = nn.Linear(problem.num_features, problem.num_classes)
        counts = torch.tensor(problem.sampled_counts, dtype=torch.float32)
        self.register_buffer("sampled_counts", counts, persistent=False)
        self.register_buffer("admitted", torch.zeros_like(counts))
        self.memory = VoteMemory(problem.num_unlabeled, problem.num_classes)
        self.register_buffer("labels", torch.zeros_like(self.memory.votes))
        self.windows = Windows(warm_up, window)

    @property
    def prior(self) -> Float[Tensor, " C"]:
        """pi."""
        counts = self.sampled_counts + self.admitted
        return counts / counts.sum()

    @property
    def admitted_prior(self) -> Float[Tensor, " C"]:
        """pi_a."""
        few = self.admitted <= self.sampled_counts.min()
        least = self.admitted.masked_fill(few, torch.inf).amin()
        counts = torch.where(few, least, self.admitted).nan_to_num(posinf=1.0)
        return counts / counts.sum()

    def forward(self, views: Views) -> Step:
        ended = self.windows.ended(views.progress)
        if ended is not None:
            self._admit(ended)
        weak, strong = (adjust(view.logits.detach(), self.admitted_prior, 1.0) for view in (views.weak, views.strong))
        votes = self.labels[views.index].to(weak.dtype)
        total = votes.sum(-1, keepdim=True)
        target = torch.where(total > 0, votes / total.clamp(min=1), weak.softmax(-1))
        step = self.step(views, PseudoLabels(target=target, weight=(total[:, 0] > 0).to(weak.dtype)))
        if views.progress >= self.warm_up:
            (first, sure), (second, also_sure) = (confident_labels(f, self.threshold) for f in (weak, strong))
            is_vote = (first == second) & (sure * also_sure > 0)
            self.memory.add(views.index, torch.where(is_vote, first, -1))
        return replace(step, losses=step.losses | self._auxiliary(views))

    @torch.no_grad()
    def _admit(self, ended: Bool[Tensor, ""]) -> None:
        """Admits images or not, all that were seen in the window, if it has ended."""
        votes, seen = self.memory.votes, self.memory.seen
        total, leading = votes.sum(1), votes.amax(1)
        is_admitted = (total > 0) & (total >= self.least * seen) & (leading > self.agreement * total)
        self.labels.copy_(torch.where((ended & (seen > 0))[:, None], votes * is_admitted[:, None], self.labels))
        given = F.one_hot(self.labels.argmax(1), len(self.admitted)) * (self.labels.amax(1) > 0)[:, None]
        self.admitted.copy_(given.sum(0))
        self.memory.forget(ended)

    def step(self, views: Views, pseudo: PseudoLabels) -> Step:
        step = super().step(views, pseudo)
        labeled, total = self.sampled_counts.sum(), (self.sampled_counts + self.admitted).sum()
        shares = {"labeled": labeled / total, "unlabeled": self.problem.num_unlabeled / total}
        return replace(step, losses={name: shares[name] * loss for name, loss in step.losses.items()})

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        logits = views.labeled.logits if logits is None else logits
        return super().labeled_loss(views, adjust(logits, self.prior, 1.0))

    def unlabeled_logits(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
        return adjust(logits, self.prior, 1.0)

    def _auxiliary(self, views: Views) -> dict[str, Float[Tensor, ""]]:
        with torch.no_grad():
            target = self.head(views.weak.features).argmax(-1)
        labeled = self.labeled_loss(views, self.head(views.labeled.features))
        unlabeled = F.cross_entropy(self.head(views.strong.features), target)
        return {"auxiliary": self.auxiliary_weight * labeled, "consistency": self.auxiliary_weight * unlabeled}
