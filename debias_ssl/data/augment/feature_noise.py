"""Strong views of features: noise and dropout, taken from a pool of random numbers that is made once."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.sampling.keyed import Purpose, uniform, whole

# How many places in the pool an image may begin at.
POOL = 2**22
# Uniform numbers that a view of an image consumes: where its noise begins in the pool, and where its dropout does.
NOISE_NUMBERS = 2
# Of the pool, numbers that are made at a time: so many fit into a processor's cache.
ROW, ROWS = 256, 256


@dataclass(frozen=True, kw_only=True)
class FeatureNoise:
    """Noise and dropout of strong views of features, on a device.

    Fresh numbers for each view would take most of a step. An image takes as many consecutive numbers of the pool as it
    has features, from a place of its own, so that two views share numbers by accident only, and then mostly for
    different features.
    """

    config: AugmentConfig
    normal: Float32[Tensor, " L"]
    """Normal numbers of deviation 1."""
    kept: Float32[Tensor, " L"]
    """1 where a feature stays, 0 where it is dropped."""

    @classmethod
    def of(cls, config: AugmentConfig, seed: int, num_features: int, device: torch.device) -> "FeatureNoise":
        """The pool of a seed: the same numbers on every device."""
        normal, kept = _pool(seed, num_features, config.feature_dropout, device)
        return cls(config=config, normal=normal, kept=kept)

    def __call__(
        self, features: Float32[Tensor, "N D 1 1"], numbers: Float[Tensor, "N 2"]
    ) -> Float32[Tensor, "N D 1 1"]:
        """Adds normal noise to features of mean 0 and deviation 1, then drops some.

        Args:
            features: standardized.
            numbers: uniform on [0, 1), on the CPU: where noise and dropout begin in the pool.
        """
        views = features.flatten(1)
        noise, dropout = (whole(each, POOL).to(features.device, non_blocking=True) for each in numbers.unbind(1))
        if self.config.feature_noise:
            views = views.add(_stretches(self.normal, noise, views.shape[1]), alpha=self.config.feature_noise)
        if self.config.feature_dropout:
            views = views.mul(_stretches(self.kept, dropout, views.shape[1]))
        return views[..., None, None]


def _stretches(pool: Float32[Tensor, " L"], starts: Int[Tensor, " N"], length: int) -> Float32[Tensor, "N length"]:
    # All stretches as rows of a matrix that needs no memory, of which only those asked for are copied.
    return pool.as_strided((len(pool) - length + 1, length), (1, 1)).index_select(0, starts)


@lru_cache(maxsize=1)
def _pool(
    seed: int, num_features: int, dropout: float, device: torch.device
) -> tuple[Float32[Tensor, " L"], Float32[Tensor, " L"]]:
    """Normal numbers, and which features are kept; runs of one seed that follow each other share them."""
    radius, angle = _numbers(seed, Purpose.FEATURE_NOISE, POOL + num_features).chunk(2)
    # Box and Muller's normal numbers.
    radius, angle = (-2 * (1 - radius).log()).sqrt(), 2 * torch.pi * angle
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()])
    kept = (_numbers(seed, Purpose.FEATURE_DROPOUT, POOL + num_features) >= dropout).float()
    return normal.to(device), kept.to(device)


def _numbers(seed: int, purpose: Purpose, least: int) -> Float32[Tensor, " L"]:
    """At least so many uniform numbers, an even number of rows."""
    rows = 2 * -(-least // (2 * ROW))
    return torch.cat([uniform(seed, purpose, 0, part, ROW) for part in torch.arange(rows).split(ROWS)]).flatten()
