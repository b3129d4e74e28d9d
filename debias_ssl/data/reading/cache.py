"""Decoded images, and lists of unreadable files, that are kept on disk."""

import hashlib
import json
import os
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.decode import center_crop, decode, in_threads, unreadable
from debias_ssl.data.sources.images import Images
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import cache_folder, read_array, replacing, write_aside

# Of the checksum after an array in the cache.
CHECK_BYTES = 4


def _cache_key(files: Sequence[str], *settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for file in on_disk(files):
        path = os.path.abspath(file.path)
        fields = (path, file.size, file.mtime_ns, *file.part)
        digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def decoded_array(
    files: Sequence[str], size: int, side: int | None, config: DataConfig, progress: bool
) -> UInt8[np.ndarray, "N H W K"]:
    """All images, decoded, from a file of the cache; it is made if it is not there or not whole."""
    path = cache_folder(config.cache) / f"{_cache_key(files, size, side)}.npy"
    shape = (len(files), size, size, 3)
    found = _whole_array(path, shape)
    if found is not None:
        return found
    decoded = in_threads(lambda file: center_crop(decode(file, side=side), size), files)
    try:
        # Written, not mapped: where a disk is full, a write is an error, and a mapped page the end of the process.
        with replacing(path) as aside, aside.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            check = 0
            for pixels in tqdm(decoded, "decoding", len(files), disable=not progress, unit="img", leave=False):
                image = np.ascontiguousarray(pixels).tobytes()
                check = zlib.crc32(image, check)
                file.write(image)
            file.write(check.to_bytes(CHECK_BYTES))
    except OSError as error:
        raise InputError(f"cannot write to {str(path.parent)!r}: {error.strerror}; set data.cache") from error
    found = _whole_array(path, shape)
    if found is None:
        raise InputError(f"{str(path)!r} is not what was written to it: set data.cache to a folder on another disk")
    return found


def _whole_array(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W K"] | None:
    """A mapped array of the cache, if it is there, of this shape, and as it was written."""
    try:
        array = read_array(path, "c")
        with path.open("rb") as file:
            file.seek(-CHECK_BYTES, os.SEEK_END)
            check = int.from_bytes(file.read())
    except (OSError, ValueError):
        return None
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
        return None
    found = 0
    for image in array:
        found = zlib.crc32(np.ascontiguousarray(image).data, found)
    return np.asarray(array) if found == check else None


def _listed(path: Path) -> dict[str, str] | None:
    """Files and reasons as they were written; None where there is no such list, or it is damaged."""
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) and all(isinstance(why, str) for why in listed.values()) else None


def without_unreadable(images: Images, config: DataConfig, progress: bool = True) -> tuple[Images, dict[str, str]]:
    """The images that can be decoded, and why the others cannot; the finding is cached."""
    if images.pixels is not None:
        return images, {}
    bad: dict[str, str] = {}
    groups = [*images.names.groups()] if isinstance(images.names, ShardedNames) else [images.names]
    # Several processes that begin together go different ways, and find what the others have done.
    for names in random.SystemRandom().sample(groups, len(groups)):
        known = cache_folder(config.cache) / f"{_cache_key(names, 'unreadable')}.json"
        found = _listed(known)
        if found is None:
            found = unreadable(names, progress)
            write_aside(known, json.dumps(found))
        bad |= found
    if 0 < len(images) == len(bad):
        raise InputError(f"none of {len(images)} images can be read, such as {images.names[0]!r}")
    return images.part([i for i, name in enumerate(images.names) if name not in bad]) if bad else images, bad
