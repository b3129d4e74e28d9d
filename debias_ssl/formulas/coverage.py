"""Chooses the images that represent all images best: greedy, by weighted coverage of their features."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Numbers of features that remain of more.
MOST_DIMENSIONS = 128
# h^2 as a part of the mean squared distance of two images; of directions without a mean that is about 2, so h is 1.
BANDWIDTH = 0.5
# Images whose similarity to all is in memory at a time: at first, and where gains are computed again.
BLOCK, AGAIN = 256, 128


class Directions:
    """Directions of features from their mean, in the subspace of largest variance (PCA): x / |x| of x = W (f - m).

    Args:
        features: of the images by which mean and subspace are found.
    """

    def __init__(self, features: Float[Tensor, "N D"]):
        self.mean = features.mean(0)
        centered = features - self.mean
        _, vectors = torch.linalg.eigh(centered.T @ centered)
        self.basis = vectors[:, -MOST_DIMENSIONS:]

    def __call__(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return torch.nn.functional.normalize((features - self.mean) @ self.basis, dim=-1)


class Coverage:
    """How well chosen images represent all: C(S) = sum_n u_n max_{s in S} k(x_n, x_s), k = exp(-|x - x'|^2 / h^2).

    Weights of 1 give MaxHerding (arXiv 2407.12212), which needs no labels; weights that say how uncertain the label of
    an image is give Uncertainty Herding (arXiv 2412.20644). C is submodular: the gain of an image never grows, so that
    an earlier gain bounds it, and few gains are computed again for each choice (Minoux, 1978). A greedy choice reaches
    1 - 1/e of the largest C at least.

    Args:
        images: x.
        weight: u, not negative.
    """

    def __init__(self, images: Float[Tensor, "N K"], weight: Float[Tensor, " N"]):
        self.images, self.weight = images, weight / weight.sum()
        self.squares = images.square().sum(-1)
        spread = 2 * (self.squares.mean() - images.mean(0).square().sum())
        self.width = float(BANDWIDTH * spread.clamp_min(torch.finfo(images.dtype).tiny))
        self.covered = torch.zeros(len(images))
        self.bound: Tensor | None = None

    @property
    def value(self) -> float:
        """C(S) as a part of the sum of the weights."""
        return float(self.covered @ self.weight)

    def add(self, others: Float[Tensor, "L K"]) -> None:
        """Counts images as chosen, whether they are among those to stand for or not."""
        for some in others.split(BLOCK) if len(others) else ():
            self.covered = torch.maximum(self.covered, self._similarity(some).amax(0))

    def choose(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """Chooses, of some images, the one that adds most to C; the first one of several.

        Args:
            allowed: these images, of which there is one at least.

        Returns:
            Its number, and what it adds as a part of the sum of the weights.
        """
        if self.bound is None:
            self.bound = torch.cat([self._gains(rows) for rows in torch.arange(len(self.images)).split(BLOCK)])
        bound = torch.where(allowed, self.bound, -1.0)
        known = torch.zeros_like(allowed)
        while not known[best := int(bound.argmax())]:
            rows = bound.masked_fill(known, -1.0).topk(min(AGAIN, len(bound))).indices
            rows = rows[allowed[rows] & ~known[rows]]
            bound[rows] = self.bound[rows] = self._gains(rows)
            known[rows] = True
        self.add(self.images[best : best + 1])
        return best, float(bound[best])

    def _gains(self, rows: Tensor) -> Float[Tensor, " r"]:
        return (self._similarity(self.images[rows]) - self.covered).clamp_(min=0) @ self.weight

    def _similarity(self, others: Float[Tensor, "r K"]) -> Float[Tensor, "r N"]:
        distance = others.square().sum(-1)[:, None] + self.squares - 2 * others @ self.images.T
        return distance.clamp_(min=0).div_(-self.width).exp_()
