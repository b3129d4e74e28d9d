"""Chooses the images to label next: those that represent the most uncertain images, with some of each class."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.formulas import shares
from debias_ssl.formulas.coverage import Coverage, Directions
from debias_ssl.formulas.shares import Shares
from debias_ssl.labels.annotation.candidates import Candidates, FeaturesOf
from debias_ssl.labels.debiasing.sample import drawn_rows
from debias_ssl.system.errors import InputError

# If there are many images, the choice is among a sample: FOR_EACH for each suggested image, but at least FEWEST and
# at most MOST. Time grows with the square of the sample.
FOR_EACH, FEWEST, MOST = 16, 2**13, 2**15
# The sample has at least this number of candidates of each predicted class, if there are enough.
OF_EACH_CLASS = 16
# Number of labeled images whose features are in memory at a time.
BLOCK = 4096
# The largest number of rows for intervals of shares, and the number of bootstrap draws.
MOST_ROWS, DRAWS, SEED = 4096, 100, 3
NOTHING = -1


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The predictions of images, reduced to what suggestions need."""

    label: Int64[np.ndarray, " N"]
    second: Int64[np.ndarray, " N"]
    """The class with the second largest logit."""
    confidence: Float32[np.ndarray, " N"]
    gap: Float32[np.ndarray, " N"]
    """The difference of the two largest logits."""
    share: Float64[np.ndarray, " C"]
    """Mean probabilities of all images."""
    shares: Shares
    """Mean probabilities with intervals."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One suggested image."""

    row: int
    covers: float
    """How much the image adds to the coverage, as a share of the summed uncertainty of all candidates."""
    of_class: int = NOTHING
    """The class for which it was chosen; negative if it was chosen among all images."""


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Images to label next, in the order of their choice."""

    chosen: tuple[Suggestion, ...]
    seen: Seen | None
    """None if the images have no predictions."""
    class_order: Int64[np.ndarray, " C"]
    """Classes, the one with the most uncertain share first."""
    before: float
    """Coverage by the labeled images."""
    num_candidates: int
    num_unreadable: int

    @property
    def after(self) -> float:
        """Coverage with the suggested images."""
        return self.before + sum(each.covers for each in self.chosen)


def suggest_images(
    images: Candidates, is_labeled: Bool[np.ndarray, " N"], *, num: int, per_class: int, seed: int
) -> Suggestions:
    """Chooses images to label by a greedy weighted coverage (Uncertainty Herding, arXiv 2412.20644).

    The weight of an image is the share of the candidates whose gap between the two largest logits is at least as large.
    Unlike probabilities, this does not depend on the temperature of the logits: models trained on few labels are rarely
    calibrated. Without predictions all weights are 1 (MaxHerding, arXiv 2407.12212).

    First, `per_class` images are chosen for each predicted class, in rounds of one image for each class; classes with
    the most uncertain shares come first. The remaining images are chosen among all. If there are many images,
    candidates are drawn by a keyed permutation.

    Args:
        images: the images.
        is_labeled: whether each image is labeled. Labeled images are not chosen, and count as chosen before.
        num: number of images to choose; if fewer are left, all are chosen.
        per_class: smallest number of images for each predicted class, as far as `num` allows.
        seed: seed with which candidates are drawn.

    Raises:
        InputError: all images are labeled, or no unlabeled image has features.
    """
    if is_labeled.all():
        raise InputError("--labeled has labels of all images: there is nothing to suggest")
    seen = _look(images.logits, len(images.names)) if images.classes else None
    rows = candidates(None if seen is None else seen.label, is_labeled, num, seed)
    features = images.features(rows)
    readable = features.isfinite().all(1)
    num_unreadable = int((~readable).sum())
    rows, features = rows[readable.numpy()], features[readable]
    if not len(rows):
        raise InputError("none of the candidate images has finite features: compute them again")
    directions = Directions(features)
    weight = torch.ones(len(rows)) if seen is None else unsure(seen.gap[rows])
    coverage = Coverage(directions(features), weight)
    del features
    for some in _blocks(images.features, np.flatnonzero(is_labeled)):
        coverage.add(directions(some))
    before, order = coverage.value, np.arange(0) if seen is None else by_uncertainty(seen.shares)
    label = np.full(len(rows), NOTHING) if seen is None else seen.label[rows]
    chosen = [*_choose(coverage, label, order, num, per_class)]
    return Suggestions(
        chosen=tuple(Suggestion(row=int(rows[i]), covers=covers, of_class=k) for i, covers, k in chosen),
        seen=seen,
        class_order=order,
        before=before,
        num_candidates=len(rows),
        num_unreadable=num_unreadable,
    )


def candidates(
    label: Int64[np.ndarray, " N"] | None, is_labeled: Bool[np.ndarray, " N"], num: int, seed: int
) -> Int64[np.ndarray, " R"]:
    """Images to choose from: all images without a label, or a random sample of them with some of each class."""
    drawn = permutation(seed, Purpose.SUGGESTED, 0, len(is_labeled)).numpy()
    drawn = drawn[~is_labeled[drawn]]
    is_in = np.arange(len(drawn)) < np.clip(FOR_EACH * num, FEWEST, MOST)
    if label is not None and not is_in.all():
        # The rank of each image within its class, in the order of drawing.
        order, counts = np.argsort(label[drawn], kind="stable"), np.bincount(label[drawn])
        rank = np.empty(len(drawn), dtype=np.int64)
        rank[order] = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
        is_in |= rank < OF_EACH_CLASS
    return np.sort(drawn[is_in])


def unsure(gap: Float[np.ndarray, " R"]) -> Float[Tensor, " R"]:
    """Weights of images: the share of all images whose gap is at least as large."""
    sureness = scipy.stats.rankdata(-gap.astype(np.float64), method="max")
    return torch.from_numpy(sureness / len(gap)).float()


def by_uncertainty(found: Shares) -> Int64[np.ndarray, " C"]:
    """Classes, sorted by the width of the interval of their share relative to the share; the widest first."""
    width = (found.high - found.low) / np.maximum(found.share, np.finfo(np.float64).tiny)
    return np.argsort(-width, kind="stable")


def class_shares(logits: Float[Tensor, "M C"], share: Float64[np.ndarray, " C"], num_rows: int) -> Shares:
    """Mean probabilities with 95 % intervals from bootstrap draws of the rows.

    For each draw, expectation maximization estimates the shares, with the mean probabilities as the prior of the
    classifier. Classes that the classifier confuses get wide intervals.

    Args:
        logits: logits of some rows.
        share: mean probabilities of all rows.
        num_rows: the number of all rows.
    """
    probs = logits.softmax(-1)
    weights = shares.bootstrap_weights(len(logits), DRAWS, SEED)
    own = probs.mean(0)
    draws = shares.share_draws(probs, weights, own.clamp_min(1e-12).log().expand(DRAWS, -1), own)
    narrower = (len(logits) / num_rows) ** 0.5
    low, high = (draws - own).quantile(torch.tensor(shares.ENDS, dtype=torch.float64), dim=0).numpy() * narrower
    return Shares(share=share, low=np.clip(share + low, 0, 1), high=np.clip(share + high, 0, 1))


def _look(chunks: Iterable[Float[Tensor, "_ C"]], num_rows: int) -> Seen:
    """Reads all logits once."""
    sample, first, some, total = drawn_rows(num_rows, MOST_ROWS), 0, [], None
    found: list[list[np.ndarray]] = [[], [], [], []]
    for logits in chunks:
        probs, top = logits.softmax(-1), logits.topk(2)
        for column, values in zip(
            found,
            (top.indices[:, 0], top.indices[:, 1], probs.amax(-1), top.values[:, 0] - top.values[:, 1]),
            strict=True,
        ):
            column.append(values.numpy().copy())
        total = probs.double().sum(0) + (0 if total is None else total)
        inside = sample[(sample >= first) & (sample < first + len(logits))] - first
        some.append(logits[torch.from_numpy(inside)])
        first += len(logits)
    assert total is not None
    label, second, confidence, gap = map(np.concatenate, found)
    share = (total / num_rows).numpy()
    return Seen(
        label=label,
        second=second,
        confidence=confidence,
        gap=gap,
        share=share,
        shares=class_shares(torch.cat(some), share, num_rows),
    )


def _choose(
    coverage: Coverage, label: Int64[np.ndarray, " R"], order: Int64[np.ndarray, " C"], num: int, per_class: int
) -> Iterator[tuple[int, float, int]]:
    """The chosen candidates, the gain of each, and the class for which it was chosen."""
    is_open = torch.ones(len(label), dtype=torch.bool)
    wanted = [*order.tolist() * per_class, *[NOTHING] * len(label)]
    for k in wanted:
        allowed = is_open if k == NOTHING else is_open & torch.from_numpy(label == k)
        if num and allowed.any():
            i, covers = coverage.choose(allowed)
            is_open[i] = False
            num -= 1
            yield i, covers, k


def _blocks(features: FeaturesOf, rows: Int64[np.ndarray, " L"]) -> Iterator[Float[Tensor, "n D"]]:
    """Features of labeled images, without rows that are not finite."""
    for first in range(0, len(rows), BLOCK):
        some = features(rows[first : first + BLOCK])
        yield some[some.isfinite().all(1)]
