"""Classifiers that are changed without training: a number for each class, chosen on held-out images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.finetune.stage import Head, Stage, StageTwo
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY, confusion_matrix
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StrengthSearch(StageTwo):
    """One strength tau, the one whose head is best on held-out images.

    Args:
        largest: of the strengths that are tried, from 0 on.
        num: how many.
    """

    largest: float = 3.0
    num: int = 61

    def at(self, stage: Stage, strength: float) -> Head:
        """The head of a strength; of 0 it is the run's."""
        raise NotImplementedError

    def __call__(self, stage: Stage) -> Head:
        # From small to large: of equals the first is chosen, which changes least.
        strengths = torch.linspace(0, self.largest, self.num).tolist()
        return max((self.at(stage, strength) for strength in strengths), key=stage.rank)


@dataclass(frozen=True, kw_only=True)
class TauNormalization(StrengthSearch):
    """f_y / ||w_y||^tau (arXiv 1910.09217). The paper's classifiers have no biases; here they are divided too."""

    def at(self, stage: Stage, strength: float) -> Head:
        norms = stage.head.weight.norm(dim=1).clamp(min=SMALLEST_PROBABILITY)
        return stage.head.scaled(norms**-strength)


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(StrengthSearch):
    """f_y - tau log pi_y (arXiv 2007.07314), pi the labeled shares; a class without labels counts as of one image."""

    def at(self, stage: Stage, strength: float) -> Head:
        counts = stage.labeled_counts.clamp(min=1).to(stage.head.bias)
        return stage.head.shifted(-strength * (counts / counts.sum()).log())


def _evenly(first: int, last: int, num: int) -> list[int]:
    """At most so many whole numbers in first..last."""
    return torch.linspace(first, last, min(num, last - first + 1)).round().long().unique().tolist()


def balancing_shift(logits: Float[Tensor, "V C"], rounds: int = 100) -> Float[Tensor, " C"]:
    """What makes the mean softmax equal for all classes when it is added to logits (Sinkhorn's iteration)."""
    shift = torch.zeros_like(logits[0])
    for _ in range(rounds):
        shift = shift - (logits + shift).softmax(-1).mean(0).log()
    return shift - shift.mean()


@dataclass(frozen=True, kw_only=True)
class BiasSearch(StageTwo):
    """f_y + b_y: one b_y after the other is set to what is best on held-out images, until none changes.

    With a coverage it also begins where all classes have the same mean probability, since one b_y alone cannot free
    predictions for several classes.

    Args:
        candidates: values of b_y that are tried, evenly among those between two images' margins; as many are tried
            again around the best of them.
        rounds: at most so many through all classes.
    """

    candidates: int = 100
    rounds: int = 10

    def __post_init__(self):
        if self.candidates < 1 or self.rounds < 1:
            raise InputError("method.candidates and method.rounds must be at least 1")

    def __call__(self, stage: Stage) -> Head:
        logits, num = stage.head(stage.held_out).double(), stage.num_classes

        def rank(shift: Float[Tensor, " C"]) -> tuple[float, float]:
            return stage.goal.rank(confusion_matrix(stage.truth, (logits + shift).argmax(-1), num))

        starts = [torch.zeros(num, dtype=torch.float64, device=logits.device)]
        if stage.goal.coverage is not None:
            starts.append(balancing_shift(logits))
        shift = max((self._climbed(start, logits, rank) for start in starts), key=rank)
        return stage.head.shifted((shift - shift.mean()).to(stage.head.bias))

    def _climbed(
        self, shift: Float[Tensor, " C"], logits: Float[Tensor, "V C"], rank: Callable[[Tensor], tuple[float, float]]
    ) -> Float[Tensor, " C"]:
        """The shift after all rounds."""
        best, before = rank(shift), None
        for _ in range(self.rounds):
            if best == before:
                break
            before = best
            for k in range(len(shift)):
                kept = shift
                place = torch.tensor([k]).to(shift.device)
                steps = self._steps(logits + shift, k)
                first, last = 0, len(steps) - 1
                # Evenly among all, and again between the neighbors of the best.
                for _ in range(2):
                    tried = _evenly(first, last, self.candidates)
                    # The smallest change first: of equals it is chosen.
                    tried.sort(key=lambda number: abs(steps[number].item()))
                    moved = [shift.index_add(0, place, steps[number, None]) for number in tried]
                    ranks = [rank(each) for each in moved]
                    found = ranks.index(max(ranks))
                    if ranks[found] > best:
                        best, kept = ranks[found], moved[found]
                    width = -(-(last - first) // self.candidates)
                    first, last = max(first, tried[found] - width), min(last, tried[found] + width)
                shift = kept
        return shift

    def _steps(self, logits: Float[Tensor, "V C"], k: int) -> Float[Tensor, " S"]:
        """Changes of b_k in their order: each is between the margins of two images, by which k wins or loses."""
        others = logits.clone()
        others[:, k] = -torch.inf
        margins = (others.max(1).values - logits[:, k]).sort().values
        # A class may also be predicted for no image, or for all.
        margins = torch.cat([margins[:1] - 1, margins, margins[-1:] + 1])
        return (margins[1:] + margins[:-1]) / 2
