"""Hashes of the contents of image files, which identify an image after its name or time has changed."""

import hashlib
from typing import Any

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import read_member

NUM_BYTES = 16


def content_of(path: str) -> Int64[np.ndarray, " 2"]:
    """The hash (BLAKE2b, 128 bits) of all bytes of an image's file, or of a member of a shard.

    If the file cannot be read, the result is zeros, which mean unknown. The decoder reports the error.

    Raises:
        StoppedError: the shard is gone or has changed.
    """
    if isinstance(path, Member):
        return _numbers(_blake2b(read_member(path)))
    try:
        with open(path, "rb", buffering=0) as file:
            return _numbers(hashlib.file_digest(file, _blake2b))
    except OSError:
        return np.zeros(2, dtype=np.int64)


def _blake2b(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=NUM_BYTES)


def _numbers(digest: Any) -> Int64[np.ndarray, " 2"]:
    return np.frombuffer(digest.digest(), dtype="<i8").astype(np.int64)
