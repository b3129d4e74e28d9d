"""scikit-learn's handwritten digits."""

from typing import Any

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import Data, Images


def read_digits(config: SourceConfig) -> Data:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every third image is a test image."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    everything = np.arange(len(labels))
    parts = [everything[everything % 3 != 2], everything[everything % 3 == 2]]
    train, test = (
        Images(pixels=pixels[part], labels=labels[part], names=[f"digits/{i}" for i in part]) for part in parts
    )
    return Data(classes=tuple("0123456789"), train=train, test=test, mean=(0.3053,), std=(0.3763,), flips=False)
