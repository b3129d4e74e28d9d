"""Coverage: chooses the images that represent all images best, one after another, by similarity of features."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Features with more dimensions are reduced to this number.
MOST_DIMENSIONS = 128
# h^2 as a part of the mean squared distance of two images. For unit vectors with mean 0 this distance is 2, so h is 1.
BANDWIDTH = 0.5
# Number of images whose similarity to all is in memory at a time: at first, and when gains are computed again.
BLOCK, AGAIN = 256, 128


class Directions:
    """Directions of features from their mean, in the subspace of largest variance (PCA): x / |x| of x = W (f - m).

    Args:
        features: of the images from which mean and subspace are computed.
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

    Weights of 1 give MaxHerding (arXiv 2407.12212), which needs no labels. Weights that are the uncertainty of an
    image's label give Uncertainty Herding (arXiv 2412.20644). C is submodular: the gain of an image never grows. So an
    earlier gain is an upper bound, and each choice computes few gains again (Minoux, 1978). Greedy choices reach at
    least 1 - 1/e of the largest C.

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
        """C(S), divided by the sum of the weights."""
        return float(self.covered @ self.weight)

    def add(self, others: Float[Tensor, "L K"]) -> None:
        """Counts images as chosen. They need not be among the images to represent."""
        for some in others.split(BLOCK) if len(others) else ():
            self.covered = torch.maximum(self.covered, self._similarity(some).amax(0))

    def choose(self, allowed: Bool[Tensor, " N"]) -> tuple[int, float]:
        """Chooses the allowed image that adds most to C; the first one if several add the same.

        Args:
            allowed: whether each image may be chosen; at least one may.

        Returns:
            The number of the image, and how much it adds to `value`.
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
