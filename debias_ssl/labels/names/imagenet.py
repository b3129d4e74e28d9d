"""ImageNet's 1,000 classes: open_clip's names, and the WordNet ids that name the folders of the data set."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache

# What an id looks like.
WNID = re.compile(r"n\d{8}")


@cache
def imagenet_prompts() -> tuple[str, ...]:
    """What prompts call the classes, in the order of ImageNet's numbers."""
    import open_clip

    return tuple(open_clip.IMAGENET_CLASSNAMES)


@cache
def imagenet_names() -> tuple[str, ...]:
    """Names that differ, in the same order."""
    prompts = imagenet_prompts()
    num = Counter(prompts)
    # Two names stand for two classes each.
    return tuple(name if num[name] == 1 else f"{name} ({k})" for k, name in enumerate(prompts))


@cache
def wnids() -> Mapping[str, int]:
    """The numbers of the classes by their ids, such as n01440764, whose order is that of the numbers (timm's list)."""
    from timm.data.imagenet_info import ImageNetInfo

    return {wnid: k for k, wnid in enumerate(ImageNetInfo().label_names())}


def numbers_of(classes: tuple[str, ...]) -> dict[str, int]:
    """The numbers of classes by what files and folders call them: their names and, of ImageNet's classes, their ids.

    Args:
        classes: their names.
    """
    number = {name: k for k, name in enumerate(classes)}
    # What knows ImageNet is slow to import.
    is_imagenet = len(classes) == 1000 and classes[0] == "tench" and classes == imagenet_names()
    return {**wnids(), **number} if is_imagenet else number
