"""torchvision's data sets; each knows the mean and standard deviation of its training images."""

from typing import Any

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.system.errors import InputError

Numbers = tuple[float, ...]


def read_cifar10(config: SourceConfig) -> Data:
    """CIFAR-10: 32 x 32 pixels, 50,000 training and 10,000 test images."""
    return _train_and_test(config, "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))


def read_cifar100(config: SourceConfig) -> Data:
    """CIFAR-100: 32 x 32 pixels, 50,000 training and 10,000 test images of 100 classes."""
    return _train_and_test(config, "CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def read_fashion_mnist(config: SourceConfig) -> Data:
    """FashionMNIST: 28 x 28 gray pixels, 60,000 training and 10,000 test images."""
    return _train_and_test(config, "FashionMNIST", (0.2860,), (0.3530,))


def read_svhn(config: SourceConfig) -> Data:
    """Street view house numbers: 32 x 32 pixels, 73,257 training and 26,032 test images; without the `extra` ones."""
    train, test = (_read(config, "SVHN", part, split=part) for part in ("train", "test"))
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    return Data(classes=tuple("0123456789"), train=train[0], test=test[0], mean=mean, std=std, flips=False)


def read_stl10(config: SourceConfig) -> Data:
    """STL-10: 96 x 96 pixels, 5,000 labeled training images or a fold of 1,000 of them, and 100,000 unlabeled ones."""
    labeled, classes = _read(config, "STL10", "train", split="train", folds=config.fold)
    test, _ = _read(config, "STL10", "test", split="test")
    unlabeled, _ = _read(config, "STL10", "unlabeled", split="unlabeled")
    return Data(
        classes=classes,
        train=labeled + unlabeled,
        num_separate=len(unlabeled),
        test=test,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
    )


def _train_and_test(config: SourceConfig, name: str, mean: Numbers, std: Numbers) -> Data:
    (train, classes), (test, _) = (_read(config, name, part, train=part == "train") for part in ("train", "test"))
    return Data(classes=classes, train=train, test=test, mean=mean, std=std)


def _read(config: SourceConfig, name: str, part: str, **chosen: Any) -> tuple[Images, tuple[str, ...]]:
    """A part of a data set and its class names; torchvision's class of this name receives the arguments `chosen`."""
    import torchvision.datasets as sets

    root = config.root or "data"
    try:
        source = getattr(sets, name)(root=root, download=config.download, **chosen)
    except (RuntimeError, OSError) as error:
        fix = "check the network" if config.download else "pass --data.download true, or another --data.root"
        raise InputError(f"{name} cannot be read from {root!r}: {fix}") from error
    pixels = np.asarray(source.data)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif name in ("STL10", "SVHN"):
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    labels = np.asarray(source.targets if hasattr(source, "targets") else source.labels, dtype=np.int64)
    names = [f"{name}/{part}/{i}" for i in range(len(labels))]
    return Images(pixels=pixels, labels=labels, names=names), tuple(getattr(source, "classes", None) or ())
