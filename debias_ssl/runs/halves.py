"""Estimates whether unlabeled images help: trains runs on disjoint halves of the labels, and measures their agreement.

It holds out no label and reads no test image. Two runs with different labels agree on unlabeled images as far as both
learned from the images, and not from chance in their labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.splits import Split
from debias_ssl.data.task import Task
from debias_ssl.formulas.agreement import class_agreement
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_trained
from debias_ssl.training.evaluation import predict_logits


def halved(split: Split, classes: Int64[np.ndarray, " L"], seed: int, number: int) -> tuple[Split, Split]:
    """The split with one half of its labels, and the split with the other half; both keep all unlabeled images.

    Each class is divided evenly. If its number of labels is odd, the last one goes to each half in turn.

    Args:
        split: the split to divide.
        classes: classes of its labeled images.
        seed: the seed of the run.
        number: number of the division; different divisions are independent.
    """
    order = permutation(seed, Purpose.HALVES, number, len(split.labeled)).numpy()
    halves: tuple[list[int], list[int]] = [], []
    turn = number
    for each in np.unique(classes):
        members = order[classes[order] == each]
        border = (len(members) + (turn % 2 if len(members) % 2 else 0)) // 2
        turn += len(members) % 2
        halves[0].extend(members[:border].tolist())
        halves[1].extend(members[border:].tolist())
    return _part(split, halves[0]), _part(split, halves[1])


def _part(split: Split, positions: Sequence[int]) -> Split:
    kept = np.sort(np.array(positions, dtype=np.int64))
    return Split(
        labeled=split.labeled[kept],
        unlabeled=split.unlabeled,
        validation=split.validation,
        labels=None if split.labels is None else split.labels[kept],
    )


def judged_images(split: Split, seed: int, most: int) -> Int64[np.ndarray, " N"]:
    """Unlabeled images without a label in either half, at most `most`, drawn at random."""
    others = np.setdiff1d(split.unlabeled, split.labeled)
    return np.sort(others[permutation(seed, Purpose.TRIAL_IMAGES, 0, len(others)).numpy()[:most]])


def predicted(run: Path, task: Task, images: Int64[np.ndarray, " N"], place: Place) -> Int64[Tensor, " N"]:
    """The classes that a finished run predicts for training images of the task."""
    trained = load_trained(RunFolder(run), place.device)
    stream = trained.stream(task.readers["train"], images, place)
    return predict_logits(trained.predictor, stream, len(trained.classes)).argmax(-1)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The agreement of the halves for each variant, and the choice."""

    agreements: Mapping[str, Float64[np.ndarray, " D"]]
    """Mean agreement over classes in each division, for each variant and for the labels alone."""
    floors: Mapping[str, str]
    """The labels-only variant of each variant that trains on unlabeled images."""
    margin: float
    """By how much a variant must exceed the labels alone."""

    def gain(self, variant: str) -> float:
        """The agreement of the halves of a variant, minus that of the labels alone; mean over divisions."""
        return float((self.agreements[variant] - self.agreements[self.floors[variant]]).mean())

    @property
    def best(self) -> str:
        """The variant with the largest gain."""
        return max(self.floors, key=self.gain)

    @property
    def helps(self) -> bool:
        """Whether unlabeled images are used."""
        return self.gain(self.best) >= self.margin

    @property
    def chosen(self) -> str:
        """The best variant if it is ahead by the margin, else the labels alone."""
        return self.best if self.helps else self.floors[self.best]

    @property
    def why(self) -> str:
        gain = 100 * self.gain(self.best)
        said = (
            f"with {self.best}, runs on disjoint halves of the labels agree about the unlabeled images "
            f"{abs(gain):.1f} points {'more' if gain >= 0 else 'less'} than with the labels alone; the choice "
            f"requires at least {100 * self.margin:g} more"
        )
        return f"{said}: the choice is {self.best if self.helps else 'the labels alone'}"

    def lines(self) -> list[list[str]]:
        """A table in percent: the mean agreement of each variant, its gain, and that of each division."""
        number = len(next(iter(self.agreements.values())))
        rows = [["variant", "agreement", "gain", *(f"division {i + 1}" for i in range(number))]]
        for name, found in self.agreements.items():
            gains = found - self.agreements[self.floors[name]] if name in self.floors else None
            each = ["-"] * number if gains is None else [f"{100 * value:+.1f}" for value in gains]
            mean = "-" if gains is None else f"{100 * gains.mean():+.1f}"
            marked = name + (" *" if name == self.chosen else "")
            rows.append([marked, f"{100 * found.mean():.1f}", mean, *each])
        return rows

    def record(self) -> dict[str, Any]:
        """The content of `trial.json`."""
        return {
            "chosen": self.chosen,
            "why": self.why,
            "margin": self.margin,
            "agreements": {name: found.tolist() for name, found in self.agreements.items()},
            "gains": {name: self.gain(name) for name in self.floors},
        }


def agreement(one: Path, other: Path, task: Task, images: Int64[np.ndarray, " N"], place: Place) -> float:
    """The agreement of two runs on images, as a mean over classes."""
    first, second = (predicted(run, task, images, place) for run in (one, other))
    return float(class_agreement(first, second, len(task.data.classes)).mean())
