"""The inputs of scripts/peers/peers.py: steps of random logits, and softmax and cross-entropy in NumPy."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Problem, Step, View, Views

Array = np.ndarray
Scalar = Array | np.floating | float
KINDS = ("losses", "weights", "state")
COUNTS = (100, 60, 30, 10, 5)
C, D, L, U, NUM = len(COUNTS), 6, 8, 400, 1000
PROBLEM = Problem(num_classes=C, num_features=D, labeled_counts=COUNTS, num_unlabeled=NUM)
# Momentum of all running means: the state changes more in a few steps than with 0.999.
M = 0.9
UNIFORM = np.full(C, 1 / C)


@dataclass(kw_only=True)
class Comparison:
    """What was found beside one peer."""

    source: str
    """Repository, file and commit."""
    largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    departures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What departs on purpose: our value and theirs."""

    def see(self, kind: str, ours: Tensor, theirs: Scalar) -> None:
        difference = (np.abs(numbers(ours) - theirs) / np.maximum(1, np.abs(theirs))).max()
        self.largest[kind] = max(self.largest[kind], float(difference))

    def see_step(self, step: Step, labeled: Scalar, unlabeled: Scalar, weight: Array, target: Array) -> None:
        self.see("losses", step.losses["labeled"], labeled)
        self.see("losses", step.losses["unlabeled"], unlabeled)
        self.see("weights", step.pseudo.weight, weight)
        self.see("weights", step.pseudo.target, target)

    def depart(self, what: str, ours: Tensor | float, theirs: Scalar) -> None:
        self.departures[what] = (ours.item() if isinstance(ours, Tensor) else ours, float(theirs))


def numbers(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def softmax(f: Float[Array, "N C"]) -> Float[Array, "N C"]:
    return np.exp(f - f.max(1, keepdims=True)) / np.exp(f - f.max(1, keepdims=True)).sum(1, keepdims=True)


def one_hot(labels: Int[Array, " N"]) -> Float[Array, "N C"]:
    return np.eye(C)[labels]


def entropy(f: Float[Array, "N C"], target: Array) -> Float[Array, " N"]:
    """Cross-entropy of each row, whose target is a class or probabilities."""
    return -((target if target.ndim == 2 else one_hot(target.astype(int))) * np.log(softmax(f))).sum(1)


def normalized(p: Array) -> Array:
    return p / p.sum(-1, keepdims=True)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The views of a step as arrays."""

    labeled: Array
    labels: Array
    weak: tuple[Array, ...]
    strong: tuple[Array, ...]
    strong_labeled: Array
    blank: Array

    @property
    def p(self) -> Float[Array, "U C"]:
        return softmax(self.weak[0])

    @property
    def labeled_entropy(self) -> np.floating:
        return entropy(self.labeled, self.labels).mean()


def steps(num: int) -> Iterator[tuple[Views, Given]]:
    """Views of a network that prefers the first classes and grows surer."""
    generator = torch.Generator().manual_seed(0)
    for i in range(num):
        sharp = 1 + 3 * i / num

        def view(rows: int, sharp: float = sharp) -> View:
            logits = sharp * (torch.randn(rows, C, generator=generator) + torch.linspace(1, -1, C))
            return View(logits=logits, features=torch.randn(rows, D, generator=generator))

        weak, strong = (view(U), view(U)), (view(U), view(U))
        views = Views(
            labeled=view(L),
            labels=torch.randint(C, (L,), generator=generator),
            weak=weak[0],
            strong=strong[0],
            index=torch.randperm(NUM, generator=generator)[:U],
            progress=i / num,
            strong_labeled=view(L),
            blank=view(1),
            further_weak=weak[1:],
            further_strong=strong[1:],
        )
        assert views.strong_labeled is not None and views.blank is not None
        yield (
            views,
            Given(
                labeled=numbers(views.labeled.logits),
                labels=views.labels.numpy(),
                weak=tuple(numbers(each.logits) for each in weak),
                strong=tuple(numbers(each.logits) for each in strong),
                strong_labeled=numbers(views.strong_labeled.logits),
                blank=numbers(views.blank.logits),
            ),
        )
