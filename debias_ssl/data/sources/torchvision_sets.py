"""torchvision's data sets."""

from typing import Any

import numpy as np

from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.images import Images, Parts
from debias_ssl.system.errors import InputError


def read_torchvision(config: DataConfig) -> Parts:
    import torchvision.datasets as sets

    name = config.name
    where = {"root": config.root or "data", "download": config.download}

    def read(part: str) -> tuple[Images, tuple[str, ...]]:
        source: Any
        try:
            if name == "STL10":
                source = sets.STL10(split=part, folds=config.fold if part == "train" else None, **where)
            elif name == "SVHN":
                source = sets.SVHN(split=part, **where)
            else:
                source = getattr(sets, name)(train=part == "train", **where)
        except (RuntimeError, OSError) as error:
            fix = "check the network" if config.download else "pass --data.download true, or another --data.root"
            raise InputError(f"{name} cannot be read from {where['root']!r}: {fix}") from error
        pixels = np.asarray(source.data)
        if name in ("STL10", "SVHN"):
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        elif pixels.ndim == 3:
            pixels = pixels[..., None]
        labels = np.asarray(source.targets if hasattr(source, "targets") else source.labels, dtype=np.int64)
        classes = getattr(source, "classes", None) or [str(k) for k in range(10)]
        names = [f"{name}/{part}/{i}" for i in range(len(labels))]
        return Images(pixels=pixels, labels=labels, names=names), tuple(classes)

    (train, classes), (test, _) = read("train"), read("test")
    num_separate = 0
    if name == "STL10":
        unlabeled, _ = read("unlabeled")
        train, num_separate = train + unlabeled, len(unlabeled)
    return classes, train, num_separate, test
