"""Types that the layers pass to each other: batches, views, pseudo-labels, and what a method needs to know.

Axes: L labeled and U unlabeled images in this process's part of the global batch, N images, C classes, D features.
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
    """Labeled images of each class. To correct for the shares of the classes in steps, use `sampled_counts` or
    `labeled_prior` instead."""
    num_unlabeled: int
    class_balanced: bool = False
    """Whether each class with labels is drawn equally often, else each labeled image is."""
    labeled_loss: Callable[[Tensor, Tensor, float], Tensor] | None = None
    """The loss of labeled images that every method uses: a function of logits (L C), labels (L) and progress that
    returns a scalar. None is cross-entropy."""

    @property
    def sampled_counts(self) -> tuple[float, ...]:
        """`labeled_counts`, scaled to the shares of the classes among the labeled images of steps; same sum."""
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
    """The views and other values that a method needs in a step."""

    num_weak: int = 1
    num_strong: int = 1
    """Weak and strong views of each unlabeled image."""
    strong_labeled: bool = False
    teacher_probs: bool = False
    labeled_teacher_probs: bool = False
    """Whether the method reads the field of `Views` with the same name; likewise for the two fields before it."""
    blank: BlankKind | None = None
    """The image without content in `Views.blank`. `ones` is 1 in every channel after normalization: the data's mean
    plus one standard deviation. `white` is 1 before normalization. None: the method does not read it."""
    weak_gradient: bool = False
    """Whether a method without strong views trains the weak ones: `strong` is then the weak view with gradient."""
    mixup_alpha: float = 0.0
    """If not 0, labeled images are mixed with each other before the network sees them, in shares drawn from
    Beta(alpha, alpha), once for each step. `Method.labeled_loss` then mixes the losses."""
    draws: bool = False
    """Whether the method reads the field of `Views` with the same name."""
    validation: bool = False
    """Whether the method learns from `Method.on_evaluation`."""
    all_strong: str | None = "does not say that it needs no others (Needs.all_strong)"
    """Why all strong views must pass through the network, in words that follow the method's name in a message. None:
    the losses need only those whose pseudo-labels count, and the method asks for them by `Views.counted`."""


@dataclass(frozen=True, kw_only=True)
class View:
    """The network's output for a batch of images, in fp32 at every precision of the run."""

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
    """The same images, strongly augmented. If the method needs no strong view, this is empty or, with `weak_gradient`,
    the weak view with gradient."""
    index: Int[Tensor, " U"]
    """Numbers of these unlabeled images, 0..num_unlabeled-1, for methods with a memory of each image."""
    progress: float
    """Finished fraction of the run, in [0, 1]."""
    further_weak: tuple[View, ...] = ()
    further_strong: tuple[View, ...] = ()
    """More views of the same unlabeled images, as many as the method needs."""
    strong_labeled: View | None = None
    """The labeled images, strongly augmented. `Method.needs` decides whether this and the next fields have a value."""
    blank: View | None = None
    """An image without content, without gradient and with averaged statistics."""
    teacher_probs: Float[Tensor, "U C"] | None = None
    """Class probabilities of the unlabeled images from another model, such as CLIP; a row of zeros is unknown."""
    labeled_teacher_probs: Float[Tensor, "L C"] | None = None
    """The same for the labeled images."""
    draws: Float[Tensor, " U"] | None = None
    """A random number in [0, 1) for each unlabeled image, the same for any number of processes."""
    partner_labels: Int[Tensor, " L"] | None = None
    mixup_lambda: float = 1.0
    """With mixup, an image is `mixup_lambda` of an image of class `labels`, and the rest is one of class
    `partner_labels`."""
    passing: "Callable[[Views, Tensor], Views] | None" = None
    """With `strong_views: counted`, labeled and strong images have not passed through the network yet, and cannot be
    read. This function passes those that count, by weights (U)."""

    def counted(self, weight: Float[Tensor, " U"]) -> "Views":
        """These views, with the labeled and strong images that the losses need.

        With the setting `strong_views: counted`, a method first makes its pseudo-labels from weak views. Strong views
        of images with weight 0 then do not pass through the network: their rows may be zeros, and no loss may depend on
        them.

        Args:
            weight: how much each unlabeled image counts in the losses; 0 if it counts in none.
        """
        return self if self.passing is None else self.passing(self, weight)


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """The pseudo-labels of the unlabeled images of a step, and their weights."""

    target: Int[Tensor, " U"] | Float[Tensor, "U C"]
    weight: Float[Tensor, " U"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """The result of a method: the sum of `losses` is minimized, and the log shows each under its name."""

    losses: dict[str, Float[Tensor, ""]]
    pseudo: PseudoLabels
    strong_share: float = 1.0
    """Share of the strong views that passed through the network; set by the learner, not by the method."""


CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Place:
    """The rank of this process among those that share the work, and its device."""

    rank: int = 0
    num_processes: int = 1
    device: torch.device = CPU


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's part of the images of one step, normalized for the network."""

    labeled: Float[Tensor, "L K H W"]
    labels: Int[Tensor, " L"]
    weak: tuple[Float[Tensor, "U K H W"], ...]
    strong: tuple[Float[Tensor, "U K H W"], ...]
    index: Int[Tensor, " U"]
    """Positions in the unlabeled set, 0..num_unlabeled-1."""
    truth: Int[Tensor, " U"]
    """True classes of the unlabeled images, negative if unknown. For the log only; methods never see them."""
    strong_labeled: Float[Tensor, "L K H W"] | None = None
    teacher_probs: Float[Tensor, "U C"] | None = None
    """Class probabilities of the unlabeled images from another model or from a file."""
    labeled_teacher_probs: Float[Tensor, "L C"] | None = None
    """The same for the labeled images."""
    draws: Float[Tensor, " U"] | None = None
    """Random numbers for the method."""
    partner_labels: Int[Tensor, " L"] | None = None
    """With mixup, the classes of the images that are mixed in."""
    mixup_lambda: float = 1.0
    """With mixup, the share of the image whose class is in `labels`."""


@runtime_checkable
class BatchStream(Protocol):
    """The batches of a run."""

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start..stop-1."""
        ...
