"""The input of a stage-two method from a trained run, and the training of a classifier."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.formulas.objectives import Goal
from debias_ssl.formulas.schedules import learning_rate_factor
from debias_ssl.system.ranges import AtLeastOne, BelowOne, NotNegative, Positive, check_ranges


@dataclass(frozen=True, kw_only=True)
class Head:
    """A linear classifier of features."""

    weight: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]

    def __call__(self, features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N C"]:
        return features @ self.weight.T + self.bias

    def scaled(self, scale: Float[Tensor, " C"]) -> "Head":
        """The head whose logits are scale_y f_y."""
        return Head(weight=self.weight * scale.unsqueeze(1), bias=self.bias * scale)

    def shifted(self, shift: Float[Tensor, " C"]) -> "Head":
        """The head whose logits are f_y + shift_y."""
        return replace(self, bias=self.bias + shift)

    def double(self) -> "Head":
        return Head(weight=self.weight.double(), bias=self.bias.double())

    def detached(self) -> "Head":
        """A copy without gradient."""
        return Head(weight=self.weight.detach().clone(), bias=self.bias.detach().clone())


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The input of a method of stage two: features from the frozen network of a trained run, and its classifier."""

    head: Head
    labeled: Float[Tensor, "L D"]
    labels: Int[Tensor, " L"]
    unlabeled: Float[Tensor, "U D"]
    """A method knows no classes of these, only the pseudo-labels of its head."""
    held_out: Float[Tensor, "V D"]
    truth: Int[Tensor, " V"]
    """Classes of the held-out images."""
    goal: Goal
    seed: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.head.bias)

    @property
    def labeled_counts(self) -> Int[Tensor, " C"]:
        return self.labels.bincount(minlength=self.num_classes)

    def confusion(self, head: Head) -> Int[Tensor, "C C"]:
        """Counts of the held-out images by (true class, predicted class)."""
        return confusion_matrix(self.truth, head(self.held_out).argmax(-1), self.num_classes)

    def rank(self, head: Head) -> tuple[float, float]:
        """How good a head is on held-out images; see `Goal.rank`."""
        return self.goal.rank(self.confusion(head))


class StageTwo:
    """A method of stage two: a frozen dataclass of settings whose call gives a new head."""

    def __post_init__(self):
        check_ranges(self, "method.")

    def __call__(self, stage: Stage) -> Head:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Training(StageTwo):
    """Trains the head by SGD with momentum and a cosine schedule to zero, and keeps its best state on held-out images.

    Args:
        steps: optimizer steps.
        batch_size: images, or pairs of images, of a step.
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: of the class weights.
        refresh_every: steps between evaluations on held-out images.
        keep: the best head on held-out images, or the last one.
    """

    steps: AtLeastOne = 2000
    batch_size: AtLeastOne = 64
    lr: Positive = 0.003
    momentum: BelowOne = 0.9
    weight_decay: NotNegative = 5e-4
    refresh_every: AtLeastOne = 10
    keep: Literal["best", "last"] = "best"

    def start(self, stage: Stage) -> Head:
        """The head to begin with."""
        return stage.head

    def rates(self) -> tuple[float, float]:
        """Learning rates of the classifier and of the scale of each logit, as factors of `lr`."""
        return 1.0, 0.0

    def prepare(self, stage: Stage, head: Head) -> Any:
        """The data that `loss` needs until the next refresh; None ends the training, because nothing can be gained."""
        raise NotImplementedError

    def loss(self, stage: Stage, head: Head, prepared: Any, random: torch.Generator) -> Float[Tensor, ""]:
        """The loss of a batch, which it draws from `random`."""
        raise NotImplementedError

    def __call__(self, stage: Stage) -> Head:
        heads = list(self.heads(stage))
        # The last of equal states: many are equal on few held-out images, and later ones are trained longer.
        return max(reversed(heads), key=stage.rank) if self.keep == "best" else heads[-1]

    def heads(self, stage: Stage) -> Iterator[Head]:
        """The head at each refresh, and the last one."""
        start = self.start(stage)
        weight, bias, scale = (
            value.detach().clone().requires_grad_() for value in (start.weight, start.bias, torch.ones_like(start.bias))
        )
        of_classifier, of_scale = self.rates()
        factors = (of_classifier, of_classifier, of_scale)
        optimizer = torch.optim.SGD(
            [{"params": [weight], "weight_decay": self.weight_decay}, {"params": [bias]}, {"params": [scale]}],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
        )
        random = torch.Generator().manual_seed(stage.seed)
        prepared = None

        def trained() -> Head:
            return Head(weight=weight, bias=bias).scaled(scale)

        for step in range(self.steps):
            if step % self.refresh_every == 0:
                now = trained().detached()
                yield now
                prepared = self.prepare(stage, now)
                if prepared is None:
                    return
            rate = self.lr * learning_rate_factor(step / self.steps, "cosine")
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
            self.loss(stage, trained(), prepared, random).backward()
            optimizer.step()
        yield trained().detached()


def members(classes: Int[Tensor, " N"], num_classes: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " C"]]:
    """Indices of items sorted by class, and the number of items of each class."""
    return torch.argsort(classes, stable=True), classes.bincount(minlength=num_classes)


def draw_members(
    wanted: Int[Tensor, " B"], of_classes: tuple[Int[Tensor, " N"], Int[Tensor, " C"]], random: torch.Generator
) -> Int[Tensor, " B"]:
    """The index of a random item of each wanted class.

    Args:
        wanted: classes, each with at least one item.
        of_classes: the result of `members`.
        random: draws the items.
    """
    order, counts = of_classes
    numbers = torch.rand(len(wanted), generator=random).to(counts.device)
    first = counts.cumsum(0) - counts
    return order[first[wanted] + (numbers * counts[wanted]).long()]
