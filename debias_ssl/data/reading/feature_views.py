"""Stored features of weak and strong views of images.

They are in the folders `weak_0`, `weak_1`, ..., `strong_0`, ... inside a folder of features. Each of these folders has
the format of `features.py`, and the same list of files.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from debias_ssl.data.reading.features import (
    MANIFEST,
    KeptFeatures,
    Located,
    ViewKind,
    check_finite,
    locate,
    read_manifest,
    shard_path,
    view_folder,
)
from debias_ssl.system.errors import InputError

KINDS: tuple[ViewKind, ...] = ("weak", "strong")


def find_views(folders: Sequence[str], paths: Sequence[str]) -> dict[ViewKind, Float16[np.ndarray, "V N D"]]:
    """The features of the images' views, by kind. A kind without views is left out.

    Raises:
        InputError: folders hold different numbers of views, or views of other images than their plain features.
    """
    if not any(_folders_of(Path(folder), kind) for folder in folders for kind in KINDS):
        return {}
    found, views = locate(folders, paths), {}
    for kind in KINDS:
        # Only folders with images of this list: folders of test images need no views.
        inner = [_folders_of(each.kept.folder, kind) for each in found]
        numbers = [len(each) for each in inner]
        if len(set(numbers)) > 1:
            one, other = found[0].kept.folder, found[numbers.index(next(n for n in numbers if n != numbers[0]))].kept
            raise InputError(
                f"{str(one)!r} holds {numbers[0]} {kind} views of each image, {str(other.folder)!r} another number: "
                "make as many for both, or set data.feature_views none"
            )
        if numbers[0]:
            views[kind] = np.empty((numbers[0], len(paths), found[0].kept.manifest["dim"]), dtype=np.float16)
        for number in range(numbers[0]):
            _read(found, [each[number] for each in inner], views[kind][number])
            check_finite(views[kind][number], paths)
    return views


def _read(found: Sequence[Located], folders: Sequence[Path], to: Float16[np.ndarray, "N D"]) -> None:
    """Copies the features of one view of all images."""
    for each, folder in zip(found, folders, strict=True):
        kept = KeptFeatures(folder=folder, manifest=read_manifest(folder))
        if not kept.listed.is_same(each.kept.listed):
            raise InputError(
                f"{str(folder)!r} holds views of other images than {str(each.kept.folder)!r} has features of: make "
                "them again, or set data.feature_views none"
            )
        kept.read(shard_path, each.rows, to, each.positions)


def hash_of_views(folders: Sequence[str]) -> str:
    """A hash of the number of views and of the settings that made them."""
    made = [
        [[read_manifest(folder)["model"] for folder in _folders_of(Path(each), kind)] for kind in KINDS]
        for each in folders
    ]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]


def _folders_of(folder: Path, kind: ViewKind) -> list[Path]:
    """The folders of a kind of views, in the order of their numbers."""
    named = (view_folder(folder, kind, number) for number in count())
    return [*takewhile(lambda each: (each / MANIFEST).exists(), named)]
