"""The data set `digits`: scikit-learn's handwritten digits."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import Data, Images


def read_digits(config: SourceConfig) -> Data:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every third image is a test image."""
    # Reads the file of `load_digits` directly, because the import of scikit-learn takes longer than that of torch.
    found = find_spec("sklearn")
    assert found is not None and found.origin is not None
    with gzip.open(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    pixels = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1]
    everything = np.arange(len(labels))
    parts = [everything[everything % 3 != 2], everything[everything % 3 == 2]]
    train, test = (
        Images(pixels=pixels[part], labels=labels[part], names=[f"digits/{i}" for i in part]) for part in parts
    )
    return Data(classes=tuple("0123456789"), train=train, test=test, mean=(0.3053,), std=(0.3763,), flips=False)
