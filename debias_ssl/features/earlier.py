"""Decides whether stored features fit a list of images, and which of them can be used again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.reading.feature_list import FeatureList
from debias_ssl.models.resizing import RESIZED
from debias_ssl.system.errors import InputError

# Number of images whose contents are compared to decide whether stored features are of the same images.
SAMPLE = 256


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Features of an earlier list of images, and the rows in it of the images of the new list."""

    generation: int
    num: int
    """The number of images in the earlier list."""
    shard_size: int
    rows: Int64[np.ndarray, " N"]
    """For each image of the new list its row in the earlier one; -1 if no image there has its name, size and time."""

    @classmethod
    def of(cls, manifest: dict[str, Any], found: FeatureList, own: FeatureList) -> "Earlier":
        return cls(
            generation=manifest["generation"],
            num=found.num_rows,
            shard_size=manifest["shard_size"],
            rows=own.rows_in(found),
        )


def is_same(found: dict[str, Any], found_list: FeatureList, own: dict[str, Any], own_list: FeatureList) -> bool:
    """Whether stored features belong to a list of images, row by row."""
    return found["shard_size"] == own["shard_size"] and found_list.is_same(own_list)


def elsewhere(flag: str) -> str:
    """The advice for features that a flag names and that may not be used."""
    return f"choose another folder with {flag}, or delete that one"


def difference(found: dict[str, Any], own: dict[str, Any], flag: str) -> str | None:
    """The model or setting in which stored features differ from the requested ones, and what to do; None if equal."""
    before, now = (manifest["model"] | {"dim": manifest["dim"]} for manifest in (found, own))
    differing = [key for key in sorted(now.keys() | before.keys()) if before.get(key) != now.get(key)]
    if not differing:
        return None
    if differing == ["precision"]:
        was = before["precision"]
        return f"features of --precision {was}, not {now['precision']}: pass --precision {was}, {elsewhere(flag)}"
    if differing == ["view"]:
        was, is_now = before.get("view") or {}, now.get("view") or {}
        names = [name for name in is_now if was.get(name) != is_now[name]]
        return f"features of other views ({' and '.join(names)} differ): {elsewhere(flag)}"
    if before.get("decoder") != DECODER:
        return (
            "features from another version, which read some images differently (EXIF orientation, transparency): "
            + elsewhere(flag)
        )
    if differing == [RESIZED]:
        return (
            "features from another version, which resized images differently (pixels differ by one or two "
            "levels): " + elsewhere(flag)
        )
    return f"features of another model ({' and '.join(differing)} differ): {elsewhere(flag)}"


def compared(
    folder: Path,
    current: Earlier,
    moved: tuple[str, str] | None,
    files: Sequence[str],
    has: Callable[[str], bool],
    flag: str,
) -> str:
    """A note about features that are used again for a list of images with small differences.

    If more than half of the features would be lost by names, sizes and times, some images are read: they may be the
    same images with other names or times.

    Args:
        folder: the folder of the features.
        current: the features that are complete or were begun.
        moved: the folder of the images before and now, if it differs.
        files: the images.
        has: whether an image with the content of a file has features.
        flag: the flag that names the folder.

    Raises:
        InputError: most of the images are other images.
    """
    others = np.flatnonzero(current.rows < 0)
    kept = len(current.rows) - len(others)
    if 2 * kept < current.num:
        asked: list[int] = others[np.linspace(0, len(others) - 1, min(SAMPLE, len(others))).astype(np.int64)].tolist()
        likely = kept + round(len(others) * sum(has(files[i]) for i in asked) / max(len(asked), 1))
        if moved is not None and not likely:
            raise InputError(
                f"{str(folder)!r} holds features of images in {moved[0]!r}, not in {moved[1]!r}: {elsewhere(flag)}"
            )
        if 2 * likely < current.num:
            about = "about " if len(asked) < len(others) else ""
            raise InputError(
                f"{str(folder)!r} holds features of {current.num:,} images; {about}{likely:,} of them are among these "
                f"{len(current.rows):,}, unchanged: {elsewhere(flag)}"
            )
    return (
        f"{folder}: features of {kept:,} of {current.num:,} images are used again; {len(others):,} images are "
        "new, or have another name, size or time: they are read, and those with known contents keep their "
        "features"
    )
