"""Data sets of many classes and a network of one layer for them, as users name their own: many_classes.thousand."""

import numpy as np
from torch import Tensor, nn

from debias_ssl.data.sources import Data, Images, SourceConfig


def _data(num_classes: int, num_train: int, num_test: int) -> Data:
    """Images of 4 x 4 pixels: that of the class, and noise."""

    def images(num: int, part: str) -> Images:
        labels, random = np.arange(num) % num_classes, np.random.default_rng(num)
        of_classes = np.random.default_rng(0).integers(0, 256, (num_classes, 4, 4, 1))
        pixels = np.clip(of_classes[labels] + random.integers(-9, 10, (num, 4, 4, 1)), 0, 255).astype(np.uint8)
        return Images(pixels=pixels, labels=labels, names=[f"{part}/{i}" for i in range(num)])

    train, test = images(num_train, "train"), images(num_test, "test")
    classes = tuple(f"class {k}" for k in range(num_classes))
    return Data(classes=classes, train=train, test=test, mean=(0.5,), std=(0.3,))


def thousand(config: SourceConfig) -> Data:
    return _data(1_000, 4_000, 2_000)


def hundred(config: SourceConfig) -> Data:
    return _data(100, 400, 1_000)


def five_hundred(config: SourceConfig) -> Data:
    """Whose predictions are 120 MB in fp32."""
    return _data(500, 2_000, 60_000)


class Linear(nn.Module):
    def __init__(self, num_classes: int, in_chans: int):
        super().__init__()
        self.num_features = 16 * in_chans
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        return images

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        return maps.flatten(1) if pre_logits else self.fc(maps.flatten(1))

    def get_classifier(self) -> nn.Linear:
        return self.fc
