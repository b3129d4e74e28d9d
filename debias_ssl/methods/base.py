"""What a method is given and what it returns.

Axes: L labeled images, U unlabeled images of this process's part of the global batch, N images, C classes, D features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.errors import InputError, check_settings, not_negative
from debias_ssl.functional import weighted_cross_entropy


def cross_entropy(logits: Float[Tensor, "L C"], labels: Int[Tensor, " L"], progress: float) -> Float[Tensor, ""]:
    """The plain loss of labeled images, the same at all times."""
    return F.cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is fixed before training."""

    num_classes: int
    num_features: int
    labeled_counts: tuple[int, ...]
    """Labeled images of each class."""
    num_unlabeled: int
    labeled_loss: Callable[[Tensor, Tensor, float], Tensor] = cross_entropy
    """Of logits (L C), labels (L) and progress, a scalar: every method takes its labeled loss from here."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks for, in the images of a step and beside them."""

    num_weak: int = 1
    num_strong: int = 1
    """Weak and strong views of each unlabeled image."""
    strong_labeled: bool = False
    blank: bool = False
    given: bool = False
    given_labeled: bool = False
    """Whether it reads the field of `Views` that has this name."""
    weak_gradient: bool = False
    """Whether, having no strong view, it trains the weak ones: `strong` is then what `weak` is, with gradient."""
    mixup_alpha: float = 0.0
    """Where it is not 0, labeled images are mixed with one another before the network sees them, in shares drawn from
    Beta(alpha, alpha), once for each step; `Method.labeled_loss` knows of it."""
    validation: bool = False
    """Whether it learns from `Method.on_evaluation`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the network says of a batch of images, in fp32 whatever the precision of the run."""

    logits: Float[Tensor, "N C"]
    features: Float[Tensor, "N D"]


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the network says of the images of one step."""

    labeled: View
    labels: Int[Tensor, " L"]
    weak: View
    """The unlabeled images, weakly augmented, without gradient."""
    strong: View
    """The same images, strongly augmented. Where the method needs no strong view it is empty or, if the method says
    `weak_gradient`, the weak view with gradient."""
    index: Int[Tensor, " U"]
    """Which unlabeled images these are, 0..num_unlabeled-1, for methods that remember each image."""
    progress: float
    """Finished fraction of the run, in [0, 1]."""
    further_weak: tuple[View, ...] = ()
    further_strong: tuple[View, ...] = ()
    """More views of the same unlabeled images, as many as the method needs."""
    strong_labeled: View | None = None
    """The labeled images, strongly augmented. This and what follows is there where `Method.needs` says so."""
    blank: View | None = None
    """A white image, without gradient and with averaged statistics."""
    given: Float[Tensor, "U C"] | None = None
    """Class probabilities that somebody else, such as CLIP, gives to the unlabeled images; a row of zeros where it says
    nothing."""
    given_labeled: Float[Tensor, "L C"] | None = None
    """Likewise of the labeled images."""
    partner_labels: Int[Tensor, " L"] | None = None
    share: float = 1.0
    """Where labeled images are mixed, one is `share` of an image of class `labels` and the rest of one of class
    `partner_labels`."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What the unlabeled images were trained towards, and how much each counted."""

    target: Int[Tensor, " U"] | Float[Tensor, "U C"]
    weight: Float[Tensor, " U"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a method returns: the sum of `losses` is the loss, their names are the log."""

    losses: dict[str, Float[Tensor, ""]]
    pseudo: PseudoLabels


class Method(nn.Module):
    """One paper: its formula is `forward`, its hyper-parameters are the constructor's keyword arguments.

    State is kept in buffers and trackers, so that it follows the device, is saved and is restored with no code of its
    own; parameters are optimized, averaged and exported with the model's.
    """

    needs: Needs = Needs()

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem

    def forward(self, views: Views) -> Step:
        raise NotImplementedError

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        """The run's loss of the labeled images, by these logits or those of their weak views."""
        logits = views.labeled.logits if logits is None else logits
        loss = self.problem.labeled_loss(logits, views.labels, views.progress)
        if views.partner_labels is None:
            return loss
        of_partners = self.problem.labeled_loss(logits, views.partner_labels, views.progress)
        return views.share * loss + (1 - views.share) * of_partners

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        """Logits at test time; `blank` is the view of a white image where the method needs one."""
        return view.logits

    def on_evaluation(self, confusion: Int[Tensor, "C C"]) -> None:
        """Called on every process with the confusion matrix of validation images, where there are any."""


def class_shares(prior: Sequence[float], num_classes: int) -> Float[Tensor, " C"]:
    """The setting `prior` as shares that sum to 1.

    Raises:
        InputError: it is not one share for each class.
    """
    if len(prior) != num_classes or min(prior) < 0 or not 0 < sum(prior) < math.inf:
        raise InputError(f"method.prior must be {num_classes} shares, one for each class: {prior}")
    return torch.tensor(prior) / sum(prior)


class PseudoLabeling(Method):
    """A method whose strong views are trained towards targets that are made of the weak ones.

    L = labeled loss + lambda_u * mean_u weight * CE(f(strong(u)), target)

    The mean is over all unlabeled images, whatever their weight. A paper's formula is `pseudo_labels`; what it is to
    remember of a step is taken in by `update`. Both are given the logits, so that DebiasPL can hand them debiased ones.

    Args:
        problem: what is fixed before training.
        unlabeled_weight: lambda_u.
    """

    def __init__(self, problem: Problem, *, unlabeled_weight: float = 1.0):
        super().__init__(problem)
        self.unlabeled_weight = unlabeled_weight
        check_settings(self, "method.", unlabeled_weight=not_negative)

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        """Takes a step's weak logits into the state; once a step, before any pseudo-label of it is made."""

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        """Targets and weights, in [0, 1], from the logits of weak views; leaves the state as it is."""
        raise NotImplementedError

    def further_losses(self, logits: Float[Tensor, "U C"], pseudo: PseudoLabels) -> dict[str, Float[Tensor, ""]]:
        """More losses of the strong logits."""
        return {}

    def forward(self, views: Views) -> Step:
        self.update(views.weak.logits, views)
        pseudo = self.pseudo_labels(views.weak.logits, views)
        logits = views.strong.logits
        losses = {
            "labeled": self.labeled_loss(views),
            "unlabeled": self.unlabeled_weight * weighted_cross_entropy(logits, pseudo.target, pseudo.weight),
        }
        return Step(losses=losses | self.further_losses(logits, pseudo), pseudo=pseudo)
