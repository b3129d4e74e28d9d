"""Decoded images, and lists of unreadable files, that are kept in a cache on disk."""

import hashlib
import io
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from debias_ssl.data.reading.config import Decoding, ReadingConfig
from debias_ssl.data.reading.decode import center_crop, decode, in_threads, unreadable
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import cache_folder, is_whole, read_array, write_aside, writing_to_cache

# Of what is kept, which depends on how files become pixels.
VERSION = 2


def _cache_key(files: Sequence[str], *settings: object) -> str:
    digest = hashlib.sha256(repr((VERSION, *settings)).encode())
    for file in on_disk(files):
        path = os.path.abspath(file.path)
        fields = (path, file.size, file.mtime_ns, *file.part)
        digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def decoded_array(
    files: Sequence[str], size: int, side: int | None, decoding: Decoding, cache: str | None, progress: bool
) -> UInt8[np.ndarray, "N H W K"]:
    """All images, decoded, from a file of the cache; it is made if it is not there or not whole."""
    path = cache_folder(cache) / f"{_cache_key(files, size, side, decoding.bits)}.npy"
    shape = (len(files), size, size, 3)
    found = _whole_array(path, shape)
    if found is not None:
        return found
    decoded = in_threads(lambda file: center_crop(decode(file, side=side, decoding=decoding), size), files)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    # Written, not mapped: where a disk is full, a write is an error, and a mapped page the end of the process.
    with writing_to_cache(path) as write:
        write(header.getvalue())
        for pixels in tqdm(decoded, "decoding", len(files), disable=not progress, unit="img", leave=False):
            write(np.ascontiguousarray(pixels).tobytes())
    found = _whole_array(path, shape)
    if found is None:
        raise InputError(f"{str(path)!r} is not what was written to it: set data.cache to a folder on another disk")
    return found


def _whole_array(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W K"] | None:
    """A mapped array of the cache, if it is there, of this shape, and as it was written."""
    if not is_whole(path):
        return None
    try:
        array = read_array(path, "c")
    except (OSError, ValueError):
        return None
    return np.asarray(array) if array.shape == shape else None


def _listed(path: Path) -> dict[str, str] | None:
    """Files and reasons as they were written; None where there is no such list, or it is damaged."""
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) and all(isinstance(why, str) for why in listed.values()) else None


def without_unreadable(images: Images, config: ReadingConfig, progress: bool = True) -> tuple[Images, dict[str, str]]:
    """The images that can be decoded, and why the others cannot; the finding is cached."""
    if images.pixels is not None:
        return images, {}
    bad: dict[str, str] = {}
    groups = [*images.names.groups()] if isinstance(images.names, ShardedNames) else [images.names]
    # Several processes that begin together go different ways, and find what the others have done.
    for names in random.SystemRandom().sample(groups, len(groups)):
        known = cache_folder(config.cache) / f"{_cache_key(names, 'unreadable', config.decoding)}.json"
        found = _listed(known)
        if found is None:
            found = unreadable(names, progress, config.decoding)
            write_aside(known, json.dumps(found))
        bad |= found
    if 0 < len(images) == len(bad):
        raise InputError(f"none of {len(images)} images can be read, such as {images.names[0]!r}")
    return images.part([i for i, name in enumerate(images.names) if name not in bad]) if bad else images, bad


def readable(data: Data, config: ReadingConfig, progress: bool = True) -> tuple[Data, dict[str, str]]:
    """The images of a data set that can be read, and why the others cannot; all of it where `on_error` is `stop`."""
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
