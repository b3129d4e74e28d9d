"""`Images` and `Data`, which every source returns: images with labels and names, and a hash that identifies them."""

import hashlib
import os.path
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from debias_ssl.data.sources.left_out import LeftOut
from debias_ssl.data.sources.listing import joined, picked
from debias_ssl.data.sources.shards import ShardedNames, on_disk, paths_on_disk

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Images:
    """A list of images with their classes and names."""

    pixels: UInt8[np.ndarray, "N H W K"] | None
    """Decoded images, or None where `names` are files to read."""
    labels: Int64[np.ndarray, " N"]
    """Positions in the list of classes, negative if unknown."""
    names: Sequence[str]
    """Different names of decoded images, for messages; or the paths of the files."""
    notes: tuple[str, ...] = ()
    """Notes for users about how a list was read; parts of a list have no notes."""
    left_out: tuple[LeftOut, ...] = ()
    """Entries of the folders and tar files that are left out."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, positions: slice | Sequence[int] | Int64[np.ndarray, " P"]) -> "Images":
        index = np.arange(len(self))[positions]
        order: list[int] = index.tolist()
        pixels = None if self.pixels is None else self.pixels[order]
        if isinstance(self.names, ShardedNames) and (np.diff(index) > 0).all():
            names: Sequence[str] = self.names.part(index)
        else:
            names = picked(self.names, index)
        return replace(self, pixels=pixels, labels=self.labels[order], names=names)

    def __add__(self, other: "Images") -> "Images":
        pixels = None if self.pixels is None or other.pixels is None else np.concatenate([self.pixels, other.pixels])
        if isinstance(other.names, ShardedNames):
            names: Sequence[str] = replace(other.names, before=joined(self.names, other.names.before))
        else:
            names = joined(self.names, other.names)
        labels, left_out = np.concatenate([self.labels, other.labels]), (*self.left_out, *other.left_out)
        return Images(pixels=pixels, labels=labels, names=names, left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The result of a source: training and test images, and the classes of their labels.

    The last `num_separate` training images are a separate unlabeled set: their labels are not used, and unlabeled
    images come only from them and from shared images. The `num_shared` images before them are in both sets: they are
    unlabeled too, unless they are held out. If both are 0, unlabeled images are training images whose labels are not
    used. The order of the images must be the same in every run, because splits are positions in it.
    """

    classes: tuple[str, ...]
    """Names of the classes; a label is a position in this list."""
    train: Images
    num_separate: int = 0
    num_shared: int = 0
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation of each channel of the training images, with pixels in [0, 1]; or of each feature."""
    flips: bool = True
    """Whether a mirrored image has the same class; false for digits."""
    notes: tuple[str, ...] = ()
    """Notes for users about the images, for example that some are listed twice."""


def left_out_notes(*several: Images) -> list[str]:
    """Notes for users about entries that are left out, one for each folder or tar file."""
    notes = [each.note for images in several for each in images.left_out]
    return [note for note in dict.fromkeys(notes) if note is not None]


def fingerprint(images: Images, num_separate: int = 0) -> str:
    """Hash of the labels and of the pixels, or of the names and sizes of files; a resumed run must find the same hash.

    Names are relative to the common folder of the files; the last `num_separate` images may have another folder.
    """
    digest = hashlib.sha256(images.labels.tobytes())
    if images.pixels is not None:
        digest.update(np.ascontiguousarray(images.pixels).data)
    else:
        paths, files = paths_on_disk(images.names), on_disk(images.names)
        for number in (len(images) - num_separate, None):
            folders = {os.path.dirname(path) for path in islice(paths, number)}
            parent = _common(folders) if folders else None
            below = {folder: os.path.relpath(folder or ".", parent) for folder in folders}
            for file in islice(files, number):
                folder, name = os.path.split(file.path)
                fields = (name if below[folder] == "." else os.path.join(below[folder], name), file.size, *file.part)
                digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def common_parent(names: Iterable[str]) -> Path:
    """The deepest folder that contains all files."""
    return _common({os.path.dirname(name) for name in names})


def _common(folders: Iterable[str]) -> Path:
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
