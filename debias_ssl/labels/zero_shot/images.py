"""Finds the images to label, and their true classes where they are known."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.dataset_rows import folder_of_hf, is_hf, rows_of_hf
from debias_ssl.data.sources.folder import (
    find_files,
    folder_of,
    images_in_shards,
    is_list,
    is_table,
    listed_images,
)
from debias_ssl.data.sources.images import UNKNOWN, Images, common_parent
from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import is_shards
from debias_ssl.labels.names.imagenet import numbers_of
from debias_ssl.system.errors import InputError


def images_to_label(
    where: str | Sequence[str | Path],
    classes: tuple[str, ...],
    root: str | None = None,
    setting: str = "--images",
    of: str = "--classes",
) -> tuple[Images, Path]:
    """The images to label, with their true classes where these are known, and the folder that they lie below.

    True classes, which are for figures only, are the labels of a CSV file, the class column of a data set of Hugging
    Face or the .cls members of tar files, else the first folders of the paths. They are told by their names or, of
    ImageNet's classes, by their ids. Of paths that are given one by one they are not known.

    Args:
        where: a folder, a list, a CSV file, tar files or `hf:PATH`; or paths.
        classes: their names.
        root: what the paths of a list are relative to, below which they must lie; None is the folder of the list.
        setting: what errors call `where`.
        of: what has the classes, for errors.

    Raises:
        InputError: there are no images, or a CSV file or a .cls member has a label that is not a class.
    """
    if not isinstance(where, str):
        images = listed_images(where, "images")
        return images, common_parent(images.names)
    path, labels = Path(where), []
    number = numbers_of(classes)
    if is_hf(where):
        rows = rows_of_hf(where, setting)
        return Images(pixels=None, labels=rows.labels(number), names=rows.names), folder_of_hf(where)
    if is_shards(where):
        images = images_in_shards(where, classes, setting, numbers=number)
        folder = folder_of(where, images)
        if (images.labels == UNKNOWN).all():
            inner = (member.inner for member in images.names if isinstance(member, Member))
            images = replace(images, labels=_first_folders(inner, number))
        return images, folder
    if is_list(where) and is_table(path):
        listed = read_label_file(path, None if root is None else Path(root), classes, root_setting="--root")
        labels = listed.labels
        i = next((i for i, label in enumerate(labels) if label and label not in number), None)
        if i is not None:
            line, label = listed.lines[i], labels[i]
            raise InputError(f"{where}, line {line}: {label!r} is not a class of {of}; leave it empty if it is unknown")
        unknown = np.full(len(labels), UNKNOWN)
        images = Images(pixels=None, labels=unknown, names=listed.files, notes=listed.notes)
    else:
        images = find_files(where, setting, root)
    folder = folder_of(where, images, root)
    if any(labels):
        truth = np.fromiter((number.get(label, UNKNOWN) for label in labels), np.int64, len(labels))
    else:
        truth = _first_folders(names_below(images.names, folder), number)
    return replace(images, labels=truth), folder


def _first_folders(paths: Iterable[str], number: dict[str, int]) -> Int64[np.ndarray, " N"]:
    """Numbers of the classes that paths begin with, if they do."""
    folders = (path.rpartition("/")[0].partition("/")[0] for path in paths)
    return np.fromiter((number.get(folder, UNKNOWN) for folder in folders), dtype=np.int64)


def likely_folder(where: str, images: Sequence[str], classes: tuple[str, ...]) -> Path | None:
    """The folder that was probably meant where `--images` names one, and none of the classes is right below it.

    It lies deeper, if the deeper folders of most images are named as classes; or it is the one above, if the folder
    itself and another beside it are named as classes.

    Args:
        where: what `--images` names.
        images: paths of the images below it, whose first folders are no classes.
        classes: names of all classes.
    """
    folder, names = Path(where), {*numbers_of(classes)}
    if not folder.is_dir():
        return None
    deeper: Counter[Path] = Counter()
    for inner, num in Counter(os.path.dirname(image) for image in images).items():
        below = Path(os.path.relpath(inner, folder)).parts
        depth = next((k for k, name in enumerate(below) if name in names), None)
        if depth is not None:
            deeper[folder.joinpath(*below[:depth])] += num
    if 2 * deeper.total() > len(images):
        return deeper.most_common(1)[0][0]
    above = folder.resolve().parent
    others = {child.name for child in above.iterdir() if child.is_dir()} - {folder.resolve().name}
    return above if folder.resolve().name in names and others & names else None
