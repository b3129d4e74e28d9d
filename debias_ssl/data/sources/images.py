"""Lists of images with labels and names."""

import hashlib
import os.path
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from debias_ssl.data.sources.shards import ShardedNames, on_disk

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Images:
    """A list of images with their classes (negative where unknown) and names."""

    pixels: UInt8[np.ndarray, "N H W K"] | None
    """Decoded images, or None where `names` are files to read."""
    labels: Int64[np.ndarray, " N"]
    names: Sequence[str]
    """A name for people; the path of a file."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, positions: slice | Sequence[int] | Int64[np.ndarray, " P"]) -> "Images":
        index = np.arange(len(self))[positions]
        order: list[int] = index.tolist()
        pixels = None if self.pixels is None else self.pixels[order]
        if isinstance(self.names, ShardedNames) and (np.diff(index) > 0).all():
            names: Sequence[str] = self.names.part(index)
        else:
            names = [self.names[i] for i in order]
        return Images(pixels=pixels, labels=self.labels[order], names=names)

    def __add__(self, other: "Images") -> "Images":
        pixels = None if self.pixels is None or other.pixels is None else np.concatenate([self.pixels, other.pixels])
        if isinstance(other.names, ShardedNames):
            names: Sequence[str] = replace(other.names, before=[*self.names, *other.names.before])
        else:
            names = [*self.names, *other.names]
        return Images(pixels=pixels, labels=np.concatenate([self.labels, other.labels]), names=names)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Test images, and training images, the last `num_separate` of which are an unlabeled set of its own."""

    classes: tuple[str, ...]
    train: Images
    num_separate: int
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, or of each feature."""


def fingerprint(images: Images) -> str:
    """Hash of the pixels, or of the files' names and sizes, and of the labels: what a run must find again on resume."""
    digest = hashlib.sha256(images.labels.tobytes())
    if images.pixels is not None:
        digest.update(np.ascontiguousarray(images.pixels).data)
    else:
        files = on_disk(images.names)
        parent = common_parent([file.path for file in files])
        for file in files:
            fields = (os.path.relpath(file.path, parent), file.size, *file.part)
            digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def common_parent(names: Sequence[str]) -> Path:
    """The folder below which all files lie."""
    return Path(os.path.commonpath([os.path.abspath(Path(name).parent) for name in names]))


Parts = tuple[tuple[str, ...], Images, int, Images]
