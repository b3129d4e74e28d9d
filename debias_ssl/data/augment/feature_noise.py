"""Strong views of features: noise and dropout, from a pool of random numbers that is filled once."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.sampling.keyed import Purpose, uniform, whole

# Number of positions in the pool where an image may begin.
POOL = 2**22
# The pool is made in parts of ROW x ROWS numbers, which fit into a processor's cache.
ROW, ROWS = 256, 256


@dataclass(frozen=True, kw_only=True)
class FeatureNoise:
    """Noise and dropout of strong views of features, on a device.

    New random numbers for each view would take most of the time of a step. So each image uses consecutive numbers of a
    pool, one for each feature, from a random position. Two views share numbers only by chance, and then nearly always
    for different features.
    """

    deviation: float
    """The standard deviation of the noise."""
    drops: bool
    """Whether features are dropped."""
    pool: Float32[Tensor, " L"]
    """Standard normal numbers; NaN drops a feature, so that a view needs only one addition."""

    @classmethod
    def of(cls, config: AugmentConfig, seed: int, num_features: int, device: torch.device) -> "FeatureNoise":
        """The noise for the settings, with the same numbers on every device."""
        dropout = config.feature_dropout
        pool = _pool(seed, num_features, dropout, device)
        return cls(deviation=config.feature_noise, drops=dropout > 0, pool=pool)

    def __call__(
        self, features: Float32[Tensor, "N D 1 1"], numbers: Float[Tensor, " N"]
    ) -> Float32[Tensor, "N D 1 1"]:
        """Adds normal noise to features of mean 0 and deviation 1, then replaces some by 0.

        Args:
            features: standardized.
            numbers: uniform on [0, 1), on the CPU: the position in the pool where each image begins.
        """
        length, starts = features.shape[1], whole(numbers, POOL).to(features.device, non_blocking=True)
        # The view has all parts of the pool as rows and needs no memory; only the requested rows are copied.
        own = self.pool.as_strided((len(self.pool) - length + 1, length), (1, 1)).index_select(0, starts)
        noisy = torch.add(features.flatten(1), own, alpha=self.deviation, out=own)
        return (noisy.nan_to_num_(nan=0.0) if self.drops else noisy)[..., None, None]


@lru_cache(maxsize=1)
def _pool(seed: int, num_features: int, dropout: float, device: torch.device) -> Float32[Tensor, " L"]:
    """The pool of a seed, cached for the next run."""
    radius, angle = _numbers(seed, Purpose.FEATURE_NOISE, POOL + num_features).chunk(2)
    # The method of Box and Muller for normal numbers.
    radius, angle = (-2 * (1 - radius).log()).sqrt(), 2 * torch.pi * angle
    pool = torch.cat([radius * angle.cos(), radius * angle.sin()])
    if dropout:
        pool[_numbers(seed, Purpose.FEATURE_DROPOUT, POOL + num_features) < dropout] = torch.nan
    return pool.to(device)


def _numbers(seed: int, purpose: Purpose, least: int) -> Float32[Tensor, " L"]:
    """At least `least` uniform numbers, in an even number of rows."""
    rows = 2 * -(-least // (2 * ROW))
    return torch.cat([uniform(seed, purpose, 0, part, ROW) for part in torch.arange(rows).split(ROWS)]).flatten()
