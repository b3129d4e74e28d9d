"""A data set of the user: a function that takes the settings of a source and returns `Data`."""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames
from debias_ssl.system.errors import InputError, StoppedError
from debias_ssl.system.imports import imported, told


def read_own(config: SourceConfig) -> Data:
    """The result of the function or class that `data.name` names, for these settings.

    Raises:
        InputError: it cannot be imported, it raises an exception, or its result is wrong.
    """
    function = imported(config.name, "data.name")
    where = f"data.name {config.name!r}"
    if not callable(function):
        raise InputError(f"{where} is a {type(function).__name__}, not a function of SourceConfig that returns Data")
    try:
        data = function(config)
    except (InputError, StoppedError):
        raise
    except Exception as error:  # a function of the user can raise any exception
        raise InputError(f"{where} raised {told(error)}") from error
    if not isinstance(data, Data):
        raise InputError(f"{where} returned a {type(data).__name__}, must return Data of debias_ssl.data.sources")
    wrong = _wrong(data)
    if wrong is not None:
        raise InputError(f"{where} returned Data whose {wrong}")
    # Plain numbers and texts, because a run saves them as JSON.
    mean, std = (tuple(float(value) for value in numbers) for numbers in (data.mean, data.std))
    return replace(data, classes=tuple(map(str, data.classes)), mean=mean, std=std)


def _wrong(data: Data) -> str | None:
    """The first mistake in a data set, as a text; None if there is none."""
    if not data.classes or len(set(data.classes)) < len(data.classes):
        return "classes are not different names"
    for part, images in (("train", data.train), ("test", data.test)):
        wrong = _wrong_images(images, len(data.classes))
        if wrong is not None:
            return f"{part} {wrong}"
        if not len(images):
            return f"{part} has no images"
    if not 0 <= data.num_separate <= len(data.train):
        return f"num_separate is {data.num_separate}, must be from 0 to the number of training images"
    if len(data.mean) != len(data.std) or not all(value > 0 for value in data.std):
        return "mean and std are not two numbers for each channel, the second above 0"
    return None


def _wrong_images(images: Any, num_classes: int) -> str | None:
    if not isinstance(images, Images):
        return f"is a {type(images).__name__}, must be Images of debias_ssl.data.sources"
    labels, pixels, names = images.labels, images.pixels, images.names
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype != np.int64:
        return "labels are not an int64 array of one number for each image"
    if (labels >= num_classes).any():
        return f"labels reach {labels.max()}, must be below the number of classes, {num_classes}"
    if len(names) != len(labels):
        return f"has {len(names)} names and {len(labels)} labels"
    if pixels is not None:
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 4 or pixels.dtype != np.uint8:
            return "pixels are not a uint8 array of images x height x width x channels"
        return None if len(pixels) == len(labels) else f"has {len(pixels)} pixels and {len(labels)} labels"
    if isinstance(names, ShardedNames):
        return None
    gone = next((name for name in names if not isinstance(name, Member) and not os.path.isfile(name)), None)
    return None if gone is None else f"has a file {gone!r} that is not there"
