"""Loads the data set that the settings name: a built-in one, or a function of the user."""

from collections.abc import Callable
from pathlib import Path

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.digits import read_digits
from debias_ssl.data.sources.folder import deeper_classes, read_folder, read_test
from debias_ssl.data.sources.hugging_face import read_hf, read_hf_test
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.own import read_own
from debias_ssl.data.sources.torchvision_sets import (
    read_cifar10,
    read_cifar100,
    read_fashion_mnist,
    read_stl10,
    read_svhn,
)
from debias_ssl.system.errors import InputError
from debias_ssl.system.imports import near

# The values of `data.name`; a value with a dot is a function of the user.
SOURCES: dict[str, Callable[[SourceConfig], Data]] = {
    "digits": read_digits,
    "CIFAR10": read_cifar10,
    "CIFAR100": read_cifar100,
    "STL10": read_stl10,
    "SVHN": read_svhn,
    "FashionMNIST": read_fashion_mnist,
    "folder": read_folder,
    "hf": read_hf,
}


def check_name(name: str) -> None:
    """Raises InputError for an unknown data set. A function of the user is not imported before it is called."""
    if "." not in name and name not in SOURCES:
        raise InputError(
            f"data.name is {name!r}, must be one of {', '.join(SOURCES)}, or package.module.function of your own"
            f"{near(name, [*SOURCES])}"
        )


def load_data(config: SourceConfig) -> Data:
    """Reads the data set of the settings. Files are listed, but not decoded.

    Raises:
        InputError: files or settings are missing, or do not fit together.
    """
    if config.is_own:
        return read_own(config)
    check_name(config.name)
    return SOURCES[config.name](config)


def check_classes(config: SourceConfig, classes: tuple[str, ...]) -> None:
    """Raises InputError if there is only one class, usually because the folder is one level too high or too low."""
    first, *others = classes
    if others:
        return
    if config.labeled is None or config.name != "folder":
        raise InputError(f"data.name {config.name!r} has only the class {first!r}: at least two classes are needed")
    labeled = Path(config.labeled)
    if labeled.is_file():
        raise InputError(f"{config.labeled} has only the class {first!r}: it needs rows of at least two classes")
    deeper = deeper_classes(labeled)
    hint = "there must be one for each class" if deeper is None else f"set it to {str(deeper)!r}, which has several"
    raise InputError(f"data.labeled is {config.labeled!r}: it has only the class folder {first!r}; {hint}")


def load_test(config: SourceConfig, classes: tuple[str, ...]) -> Images:
    """The test images alone, for a model with these classes. Files of other images are not read.

    Raises:
        InputError: files are missing, or the classes differ.
    """
    if config.name == "folder":
        return read_test(config, classes)
    if config.name == "hf":
        return read_hf_test(config, classes)
    data = load_data(config)
    if data.classes != classes:
        differing = sorted(set(data.classes) ^ set(classes))
        raise InputError(
            f"data.name {config.name!r} has other classes than the model, such as {differing[0]!r}"
            if differing
            else f"data.name {config.name!r} has the classes of the model in another order"
        )
    return data.test
