"""The images to label, with their true classes where these are known."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.folder import find_files, folder_of, images_in_shards, listed_images
from debias_ssl.data.sources.images import UNKNOWN, Images, common_parent
from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import is_shards, member_named
from debias_ssl.system.errors import InputError


def images_to_label(where: str | Sequence[str | Path], classes: tuple[str, ...]) -> tuple[Images, Path]:
    """The images to label, with their true classes where these are known, and the folder that they lie below.

    True classes, which are for figures only, are the labels of a CSV file or the .cls members of tar files, else the
    first folders of the paths. Of paths that are given one by one they are not known.

    Raises:
        InputError: there are no images, or a CSV file or a .cls member has a label that is not a class.
    """
    if not isinstance(where, str):
        images = listed_images(where, "images")
        return images, common_parent(images.names)
    path = Path(where)
    number = {name: k for k, name in enumerate(classes)}
    if is_shards(where):
        images = images_in_shards(where, classes, "--images")
        root = folder_of(where, images)
        if (images.labels == UNKNOWN).all():
            inner = [member.inner for member in images.names if isinstance(member, Member)]
            images = replace(images, labels=_first_folders(inner, number))
        return images, root
    if path.suffix.lower() == ".csv" and path.is_file():
        paths, labels = read_label_file(path, None)
        files, left_out = [member_named(str(file)) or str(file) for file in paths], ()
        wrong = next((i for i, label in enumerate(labels) if label and label not in number), None)
        if wrong is not None:
            raise InputError(
                f"{where}: {files[wrong]!r} has the label {labels[wrong]!r}, which is not a class of --classes; "
                "leave it empty if it is unknown"
            )
    else:
        found = find_files(where, "--images")
        files, labels, left_out = found.names, [], found.left_out
    images = Images(pixels=None, labels=np.full(len(files), UNKNOWN), names=files, left_out=left_out)
    root = folder_of(where, images)
    if any(labels):
        truth = np.array([number.get(label, UNKNOWN) for label in labels], dtype=np.int64)
    else:
        truth = _first_folders([os.path.relpath(file, root) for file in files], number)
    return replace(images, labels=truth), root


def _first_folders(paths: Sequence[str], number: dict[str, int]) -> Int64[np.ndarray, " N"]:
    """Numbers of the classes that paths begin with, if they do."""
    folders = [path.rpartition("/")[0].partition("/")[0] for path in paths]
    return np.array([number.get(folder, UNKNOWN) for folder in folders], dtype=np.int64)
