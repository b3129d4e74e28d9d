"""`Augmenter`: makes the views of a batch of images, from pixels or from features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32, Num
from torch import Tensor

from debias_ssl.data.augment import views
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.feature_noise import FeatureNoise
from debias_ssl.data.augment.views import Normalization, Pixels

Numbers = Callable[[int], Float[Tensor, "N num"]]
"""Returns that many random numbers for each image: uniform on [0, 1), on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """Makes normalized weak and strong views, on the device of `normalization`."""

    config: AugmentConfig
    normalization: Normalization
    is_of_features: bool
    seed: int
    """Seed of the noise of features."""

    def prepared(self, images: Sequence[Pixels]) -> Num[Tensor, "M _ _ _"]:
        """Batches of images as one batch on the device; features are standardized."""
        one = (images[0] if len(images) == 1 else torch.cat([*images])).to(self._device, non_blocking=True)
        return views.normalize(one, self.normalization) if self.is_of_features else one

    def weak(self, prepared: Tensor, numbers: Numbers) -> Float32[Tensor, "N K H W"]:
        """Weak views of prepared images. Those of features are the features themselves."""
        if self.is_of_features:
            return prepared
        return views.weak_input(prepared, numbers(views.WEAK_NUMBERS), self.config, self.normalization)

    def strong(self, prepared: Tensor, numbers: Numbers) -> Float32[Tensor, "N K H W"]:
        """Strong views of prepared images."""
        if self.is_of_features:
            is_noisy = self.config.feature_noise or self.config.feature_dropout
            return self._feature_noise(prepared, numbers(1)[:, 0]) if is_noisy else prepared
        return views.strong_input(prepared, numbers(views.num_numbers(self.config)), self.config, self.normalization)

    @property
    def _device(self) -> torch.device:
        return self.normalization.mean.device

    @cached_property
    def _feature_noise(self) -> FeatureNoise:
        return FeatureNoise.of(self.config, self.seed, len(self.normalization.mean), self._device)
