"""Methods without training: they change the classifier by one number for each class, chosen on held-out images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.finetune.stage import Head, Stage, StageTwo
from debias_ssl.formulas.logits import SMALLEST_PROBABILITY, confusion_matrix, finite_log
from debias_ssl.formulas.priors import balancing
from debias_ssl.system.ranges import AtLeastOne, NotNegative


@dataclass(frozen=True, kw_only=True)
class StrengthSearch(StageTwo):
    """Chooses the strength tau whose head is best on held-out images.

    Args:
        largest: the largest strength to try; the smallest is 0.
        num: number of strengths to try.
    """

    largest: NotNegative = 3.0
    num: AtLeastOne = 61

    def at(self, stage: Stage, strength: float) -> Head:
        """The head of a strength; the strength 0 gives the run's own."""
        raise NotImplementedError

    def __call__(self, stage: Stage) -> Head:
        # From small to large: max takes the first of equal values, which changes the classifier least.
        strengths = torch.linspace(0, self.largest, self.num).tolist()
        return max((self.at(stage, strength) for strength in strengths), key=stage.rank)


@dataclass(frozen=True, kw_only=True)
class TauNormalization(StrengthSearch):
    """f_y / ||w_y||^tau (arXiv 1910.09217). The paper's classifiers have no biases; here, biases are divided too."""

    def at(self, stage: Stage, strength: float) -> Head:
        norms = stage.head.weight.norm(dim=1).clamp(min=SMALLEST_PROBABILITY)
        return stage.head.scaled(norms**-strength)


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(StrengthSearch):
    """f_y - tau log pi_y (arXiv 2007.07314), pi the labeled shares; a class without labels counts as if it had one."""

    def at(self, stage: Stage, strength: float) -> Head:
        counts = stage.labeled_counts.clamp(min=1).to(stage.head.bias)
        return stage.head.shifted(-strength * (counts / counts.sum()).log())


def _evenly(first: int, last: int, num: int) -> list[int]:
    """At most `num` whole numbers from first to last, evenly spaced."""
    return torch.linspace(first, last, min(num, last - first + 1)).round().long().unique().tolist()


def balancing_shift(logits: Float[Tensor, "V C"], rounds: AtLeastOne = 100) -> Float[Tensor, " C"]:
    """The shift of logits that makes the mean softmax equal for all classes, after `rounds` of Sinkhorn's iteration."""
    uniform = torch.full_like(logits[0], 1 / logits.shape[1])
    log_prior = finite_log(balancing([logits], uniform, iterations=rounds, tolerance=0.0, annealed=()).prior)
    return log_prior.mean() - log_prior


@dataclass(frozen=True, kw_only=True)
class BiasSearch(StageTwo):
    """f_y + b_y: sets one b_y after the other to its best value on held-out images, until none changes.

    With a coverage it also starts from equal mean probabilities of all classes, and keeps the better result: a change
    of one b_y alone cannot raise the coverage of several classes.

    Args:
        candidates: number of values to try for each b_y, evenly spaced among those that change a prediction; the same
            number is tried again around the best of them.
        rounds: largest number of passes through all classes.
    """

    candidates: AtLeastOne = 100
    rounds: AtLeastOne = 10

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
        """The best shift that is found from a start."""
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
                # First over the whole range, then between the neighbors of the best.
                for _ in range(2):
                    tried = _evenly(first, last, self.candidates)
                    # The smallest change comes first, so that it is taken among equals.
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
        """Sorted changes of b_k, one for each set of images that can be predicted as k.

        The margin of an image is the change from which on k wins it; each value lies between two margins.
        """
        others = logits.clone()
        others[:, k] = -torch.inf
        margins = (others.max(1).values - logits[:, k]).sort().values
        # At both ends: k is predicted for no image, and for all.
        margins = torch.cat([margins[:1] - 1, margins, margins[-1:] + 1])
        return (margins[1:] + margins[:-1]) / 2
