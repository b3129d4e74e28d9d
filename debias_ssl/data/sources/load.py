"""The data set that a setting names."""

from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.digits import read_digits
from debias_ssl.data.sources.folder import read_folder, read_test
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.torchvision_sets import read_torchvision

# Mean and standard deviation of the training images' channels.
STATISTICS = {
    "digits": ((0.3053,), (0.3763,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "STL10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load_data(config: DataConfig) -> Data:
    """Reads what a data setting names; files are listed, not yet decoded.

    Raises:
        InputError: something is missing or does not fit together.
    """
    if config.name == "digits":
        classes, train, num_separate, test = read_digits()
    elif config.name == "folder":
        classes, train, num_separate, test = read_folder(config)
    else:
        classes, train, num_separate, test = read_torchvision(config)
    mean, std = STATISTICS[config.name]
    return Data(
        classes=classes,
        train=train,
        num_separate=num_separate,
        test=test,
        mean=config.mean or mean,
        std=config.std or std,
    )


def load_test(config: DataConfig, classes: tuple[str, ...]) -> Images:
    """The test images alone, for a model that knows these classes."""
    if config.name != "folder":
        return load_data(config).test
    return read_test(config, classes)
