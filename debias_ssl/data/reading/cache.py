"""The cache on disk: decoded images, and lists of unreadable files."""

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from debias_ssl.data.reading.config import DECODER, Decoding, ReadingConfig
from debias_ssl.data.reading.decode import center_crop, decode, in_threads, unreadable
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import (
    CHECK_BYTES,
    READ_BYTES,
    cache_folder,
    is_whole,
    read_array,
    write_aside,
    writing_to_cache,
)

# Results are written after this number of decoded images, or of images that were tried.
PART, LIST_PART = 1024, 16_384


def _cache_key(files: Sequence[str], *settings: object) -> str:
    digest = hashlib.sha256(repr((DECODER, *settings)).encode())
    for file in on_disk(files):
        path = os.path.abspath(file.path)
        fields = (path, file.size, file.mtime_ns, *file.part)
        digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def decoded_array(
    files: Sequence[str], size: int, side: int | None, decoding: Decoding, cache: str | None, progress: bool
) -> UInt8[np.ndarray, "N H W K"]:
    """All images, decoded, from a file in the cache, which is made if it is missing or incomplete.

    Decoded images are kept in parts until all are decoded, so that interrupted decoding continues.
    """
    path = cache_folder(cache) / f"{_cache_key(files, size, side, decoding.of_pixels)}.npy"
    shape = (len(files), size, size, 3)
    found = _whole_array(path, shape)
    if found is not None:
        return found
    parts = path.with_suffix(".parts")
    try:
        with tqdm(desc="decoding", total=len(files), disable=not progress, unit="img", leave=False) as bar:
            for number, first in enumerate(range(0, len(files), PART)):
                some = files[first : first + PART]
                part = parts / f"{number:06d}"
                if not is_whole(part):
                    _decode_part(part, some, size, side, decoding, bar)
                else:
                    bar.update(len(some))
        _join(path, parts, shape)
    except (InputError, OSError) as error:
        # Another host that shares the cache may have joined the parts in the meantime.
        found = _whole_array(path, shape)
        if found is None:
            # The user will remove or repair an unreadable image: then the list and its key change.
            shutil.rmtree(parts, ignore_errors=True)
            if isinstance(error, OSError):
                raise InputError(f"cannot read {str(parts)!r}: {error.strerror}; set data.cache") from error
            raise
    shutil.rmtree(parts, ignore_errors=True)
    found = _whole_array(path, shape)
    if found is None:
        raise InputError(
            f"{str(path)!r} does not contain what was written to it: set data.cache to a folder on another disk"
        )
    return found


def _decode_part(path: Path, files: Sequence[str], size: int, side: int | None, decoding: Decoding, bar: tqdm) -> None:
    """Writes the pixels of some images, so that decoding after an interruption does not repeat them."""
    # Written, not mapped: on a full disk a write is an error, but a mapped page would kill the process.
    with writing_to_cache(path) as write:
        for pixels in in_threads(lambda file: center_crop(decode(file, side=side, decoding=decoding), size), files):
            write(np.ascontiguousarray(pixels).tobytes())
            bar.update()


def _join(path: Path, parts: Path, shape: tuple[int, ...]) -> None:
    """Joins complete parts into one array; a single part becomes the array itself."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with writing_to_cache(path) as write:
        write(header.getvalue())
        for part in range(-(-shape[0] // PART)):
            with (parts / f"{part:06d}").open("rb") as file:
                left = os.fstat(file.fileno()).st_size - CHECK_BYTES
                while left > 0:
                    chunk = file.read(min(left, READ_BYTES))
                    write(chunk)
                    left -= len(chunk)


def _whole_array(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W K"] | None:
    """A memory-mapped array of the cache; None if it is missing, has another shape or was changed."""
    if not is_whole(path):
        return None
    try:
        array = read_array(path, "c")
    except (OSError, ValueError):
        return None
    return np.asarray(array) if array.shape == shape else None


def _listed(path: Path) -> dict[str, str] | None:
    """Unreadable files and reasons from a list in the cache; None if the list is missing or damaged."""
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) and all(isinstance(why, str) for why in listed.values()) else None


def without_unreadable(images: Images, config: ReadingConfig, progress: bool = True) -> tuple[Images, dict[str, str]]:
    """The images that can be decoded, and the reasons why the others cannot; the result is cached."""
    if images.pixels is not None:
        return images, {}
    bad: dict[str, str] = {}
    names = images.names
    groups = (
        [*names.groups()]
        if isinstance(names, ShardedNames)
        else [names[first : first + LIST_PART] for first in range(0, len(names), LIST_PART)]
    )
    # In random order: processes that start together then work on different groups, and use each other's results.
    for names in random.SystemRandom().sample(groups, len(groups)):
        known = cache_folder(config.cache) / f"{_cache_key(names, 'unreadable', config.bits, config.max_pixels)}.json"
        found = _listed(known)
        if found is None:
            found = unreadable(names, progress, config.decoding)
            write_aside(known, json.dumps(found))
        bad |= found
    if 0 < len(images) == len(bad):
        raise InputError(f"none of {len(images)} images can be read, such as {images.names[0]!r}")
    return images.part([i for i, name in enumerate(images.names) if name not in bad]) if bad else images, bad


def readable(data: Data, config: ReadingConfig, progress: bool = True) -> tuple[Data, dict[str, str]]:
    """The readable images of a data set, and the reasons for the others; all images if `on_error` is `stop`."""
    if config.on_error == "stop":
        return data, {}
    border = len(data.train) - data.num_separate
    shared = border - data.num_shared
    labeled, bad_labeled = without_unreadable(data.train.part(slice(shared)), config, progress)
    both, bad_both = without_unreadable(data.train.part(slice(shared, border)), config, progress)
    separate, bad_separate = without_unreadable(data.train.part(slice(border, None)), config, progress)
    test, bad_test = without_unreadable(data.test, config, progress)
    train = labeled + both + separate
    data = replace(data, train=train, num_separate=len(separate), num_shared=len(both), test=test)
    return data, bad_labeled | bad_both | bad_separate | bad_test
