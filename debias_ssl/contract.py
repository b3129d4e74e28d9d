"""Types that the layers pass to each other: batches, views, pseudo-labels, and what a method needs to know.

Axes: L labeled images, U unlabeled images of this process's part of the global batch, N images, C classes, D features.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The facts of a run that are fixed before training."""

    num_classes: int
    num_features: int
    labeled_counts: tuple[int, ...]
    """Labeled images of each class: how much there is to learn it from. What corrects for the shares in which a step
    holds the classes takes `sampled_counts` or `labeled_prior`."""
    num_unlabeled: int
    class_balanced: bool = False
    """Whether labeled images are drawn equally often from each class that has some, instead of as they are."""
    labeled_loss: Callable[[Tensor, Tensor, float], Tensor] | None = None
    """The loss of labeled images that every method uses: logits (L C), labels (L) and progress to a scalar. None is
    cross-entropy."""

    @property
    def sampled_counts(self) -> tuple[float, ...]:
        """Labeled images of each class, if there were as many of it as its share in the labeled images of steps."""
        if not self.class_balanced:
            return tuple(float(count) for count in self.labeled_counts)
        each = sum(self.labeled_counts) / sum(count > 0 for count in self.labeled_counts)
        return tuple(each if count else 0.0 for count in self.labeled_counts)

    @property
    def labeled_prior(self) -> tuple[float, ...]:
        """The share of each class among the labeled images of steps."""
        return tuple(count / sum(self.labeled_counts) for count in self.sampled_counts)


BlankKind = Literal["ones", "white"]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs, in the images of a step and beside them."""

    num_weak: int = 1
    num_strong: int = 1
    """Weak and strong views of each unlabeled image."""
    strong_labeled: bool = False
    teacher_probs: bool = False
    labeled_teacher_probs: bool = False
    """Whether it reads the field of `Views` that has this name."""
    blank: BlankKind | None = None
    """Which image without content `Views.blank` is of: 1 in every channel as the network takes it, which is the data's
    mean plus one deviation, or white before it is normalized. None where the method does not read it."""
    weak_gradient: bool = False
    """Whether, having no strong view, it trains the weak ones: `strong` is then what `weak` is, with gradient."""
    mixup_alpha: float = 0.0
    """Where it is not 0, labeled images are mixed with one another before the network sees them, in shares drawn from
    Beta(alpha, alpha), once for each step; `Method.labeled_loss` knows of it."""
    draws: bool = False
    """Whether it reads the field of `Views` that has this name."""
    validation: bool = False
    """Whether it learns from `Method.on_evaluation`."""
    all_strong: str | None = "does not say that it needs no others (Needs.all_strong)"
    """Why all strong views have to pass through the network, in the words that follow the method's name. None where the
    losses need those alone whose pseudo-labels count, and the method asks for them by `Views.counted`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The network's output for a batch of images, in fp32 for every precision of the run."""

    logits: Float[Tensor, "N C"]
    features: Float[Tensor, "N D"]


@dataclass(frozen=True, kw_only=True)
class Views:
    """The network's output for the images of one step."""

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
    """An image without content, without gradient and with averaged statistics."""
    teacher_probs: Float[Tensor, "U C"] | None = None
    """Class probabilities that somebody else, such as CLIP, gives to the unlabeled images; a row of zeros where it says
    nothing."""
    labeled_teacher_probs: Float[Tensor, "L C"] | None = None
    """Likewise of the labeled images."""
    draws: Float[Tensor, " U"] | None = None
    """A random number in [0, 1) for each unlabeled image, the same for any number of processes."""
    partner_labels: Int[Tensor, " L"] | None = None
    mixup_lambda: float = 1.0
    """Where labeled images are mixed, one is `mixup_lambda` of an image of class `labels` and the rest of one of class
    `partner_labels`."""
    passing: "Callable[[Views, Tensor], Views] | None" = None
    """Where labeled and strong images have not passed through the network yet, and cannot be read: has those pass that
    count, by weights (U)."""

    def counted(self, weight: Float[Tensor, " U"]) -> "Views":
        """These views with all that the losses need of labeled and strong images.

        With the setting `strong_views: counted`, a method first makes its pseudo-labels, of weak views. Strong views of
        images whose weight is 0 then need not pass through the network: their rows may be zeros, and no loss may depend
        on them.

        Args:
            weight: how much each unlabeled image counts in any loss; 0 is not at all.
        """
        return self if self.passing is None else self.passing(self, weight)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """The pseudo-labels of the unlabeled images of a step, and their weights."""

    target: Int[Tensor, " U"] | Float[Tensor, "U C"]
    weight: Float[Tensor, " U"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The result of a method: the sum of `losses` is minimized, and their names are those in the log."""

    losses: dict[str, Float[Tensor, ""]]
    pseudo: PseudoLabels
    strong_share: float = 1.0
    """Share of the strong views that passed through the network; the learner's word, not the method's."""


CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The number of this process among those that share the work, and its device."""

    rank: int = 0
    num_processes: int = 1
    device: torch.device = CPU


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's part of the images of one step, as the network takes them."""

    labeled: Float[Tensor, "L K H W"]
    labels: Int[Tensor, " L"]
    weak: tuple[Float[Tensor, "U K H W"], ...]
    strong: tuple[Float[Tensor, "U K H W"], ...]
    index: Int[Tensor, " U"]
    """Positions in the unlabeled set, 0..num_unlabeled-1."""
    truth: Int[Tensor, " U"]
    """True classes of the unlabeled images, negative where unknown: for the log only, methods never see it."""
    strong_labeled: Float[Tensor, "L K H W"] | None = None
    teacher_probs: Float[Tensor, "U C"] | None = None
    """Class probabilities that were given to the unlabeled images from outside."""
    labeled_teacher_probs: Float[Tensor, "L C"] | None = None
    """Likewise to the labeled images."""
    draws: Float[Tensor, " U"] | None = None
    """Random numbers for the method."""
    partner_labels: Int[Tensor, " L"] | None = None
    """Where labeled images are mixed with others: the classes of these."""
    mixup_lambda: float = 1.0
    """How much of each mixture is the image that `labels` is of."""


@runtime_checkable
class BatchStream(Protocol):
    """The batches of a run."""

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start..stop-1."""
        ...
