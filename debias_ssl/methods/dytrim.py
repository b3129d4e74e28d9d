"""DyTrim: leaves images out of the losses if they are already learned or if the model prefers their class."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from debias_ssl.contract import BlankKind, Problem, PseudoLabels, Step, View, Views
from debias_ssl.distributed.collectives import all_sum_, gathered, mean_of_rows
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.methods.cdmad import CDMAD
from debias_ssl.methods.labeled_loss import CrossEntropy
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import Fraction, Share, check_ranges


class DyTrim(PseudoLabeling):
    """Dynamic dataset pruning (ICLR 2026, Jiajun0425/DyTrim) over another method.

    beta = softmax(f(I)) with a blank image I. During the warm-up, beta is pi_l, the shares of the classes among labeled
    images. l(x) is the cross-entropy of a labeled image, and l(u) the base's weighted cross-entropy of an unlabeled
    one.

    1. Of the n_c labeled images of class c in a step, the labeled loss leaves out the floor(beta_c n_c) images with the
       smallest l(x). Its gradient is that of the mean over the others.
    2. Unlabeled images with l(u) below the mean of the step are learned. Each is kept with probability `keep`, and then
       has 1 / keep times its weight; else it is left out. The mean is over all images, so its expectation is that of
       the base.

    From the progress `until` on, all images are kept: until = 0 is the base. The log shows the weights and the labeled
    loss of the base, as if all images were kept.

    Differences from the authors' code: They choose images before each epoch, among all images, by the loss when each
    was last seen, and draw steps from the kept images. Here each step chooses among its own images. This saves no time,
    and a class with few images in the step loses none. Their I is 0 in all channels.

    Args:
        problem: what is fixed before training.
        base: the method whose losses are trimmed; null is CDMAD, as in the paper.
        keep: share of the learned unlabeled images to keep.
        blank: the image I; null always uses pi_l, as training on features requires.
        warm_up: share of the run with pi_l; 100 of 500 epochs in the authors' code.
        until: progress from which all images are kept.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        base: Callable[[Problem], PseudoLabeling] | None = None,
        keep: Share = 0.3,
        blank: BlankKind | None = "ones",
        warm_up: Fraction = 0.2,
        until: Fraction = 0.875,
    ):
        super().__init__(problem)
        self.keep = keep
        self.warm_up = warm_up
        self.until = until
        check_ranges(self, "method.")
        self.trimmed = TrimmedLoss(problem)
        self.base = (base or CDMAD)(replace(problem, labeled_loss=self.trimmed))
        if type(self.base).forward is not PseudoLabeling.forward:
            raise InputError(
                f"method.base is {type(self.base).__name__}, which has its own order of a step and cannot be a base: "
                "choose a method such as FixMatch"
            )
        self.blank = self.base.needs.blank or blank
        rest = "drops images by the mean loss of all strong views"
        self.needs = replace(self.base.needs, blank=self.blank, draws=True, all_strong=rest)

    def forward(self, views: Views) -> Step:
        base = self.base
        is_trimmed = views.progress < self.until
        self.trimmed.shares = self.labeled_shares(views) if is_trimmed else None
        base.update(views.weak.logits, views)
        pseudo = base.pseudo_labels(views.weak.logits, views)
        if not is_trimmed:
            return base.step(views, pseudo)
        weight = pseudo.weight * self.factors(views, pseudo)
        return replace(base.step(views, replace(pseudo, weight=weight)), pseudo=pseudo)

    @torch.no_grad()
    def labeled_shares(self, views: Views) -> Float[Tensor, " C"]:
        """beta."""
        if views.blank is None or views.progress < self.warm_up:
            return self.trimmed.prior
        return views.blank.logits[0].softmax(-1)

    @torch.no_grad()
    def factors(self, views: Views, pseudo: PseudoLabels) -> Float[Tensor, " U"]:
        """1 for unlabeled images that are not learned; for learned ones 0 (left out) or 1 / keep (kept)."""
        assert views.draws is not None
        logits = self.base.unlabeled_logits(views.strong.logits)
        loss = pseudo.weight * F.cross_entropy(logits, pseudo.target, reduction="none")
        is_learned = loss < mean_of_rows(loss[:, None])
        return torch.where(is_learned, (views.draws < self.keep) / self.keep, 1.0)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        return self.base.predict(view, blank)

    def on_evaluation(self, confusion: Int[Tensor, "C C"]) -> None:
        self.base.on_evaluation(confusion)


class TrimmedLoss(nn.Module):
    """A loss of labeled images, with the gradient of its mean over the images that are not left out."""

    prior: Float[Tensor, " C"]

    def __init__(self, problem: Problem):
        super().__init__()
        self.loss = problem.labeled_loss or CrossEntropy(problem)
        self.register_buffer("prior", torch.tensor(problem.labeled_prior), persistent=False)
        self.shares: Float[Tensor, " C"] | None = None
        """The share of each class that is left out in this step; None keeps all images."""

    def forward(self, logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
        if self.shares is None:
            return self.loss(logits, labels, progress)
        kept = kept_labeled(logits.detach(), labels, self.shares).to(logits.dtype)
        number = all_sum_(torch.stack([kept.sum(), torch.ones_like(kept).sum()]))
        # Works for every loss that is a mean over rows: its value stays the same, and the gradient of rows is scaled.
        factor = (kept * number[1] / number[0].clamp(min=1))[:, None]
        return self.loss(factor * logits + ((1 - factor) * logits).detach(), labels, progress)


def kept_labeled(
    logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], shares: Float[Tensor, " C"]
) -> Bool[Tensor, " L"]:
    """False for the floor(share n) images with the smallest loss of each class, of its n images on all processes."""
    loss = F.cross_entropy(logits, labels, reduction="none")
    all_labels, all_losses = gathered(torch.stack([labels.to(loss.dtype), loss], 1)).unbind(1)
    is_same = labels[:, None] == all_labels
    rank = (is_same & (all_losses < loss[:, None])).sum(1)
    return rank >= (shares[labels] * is_same.sum(1)).floor()
