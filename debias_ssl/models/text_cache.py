"""Caches the text vectors of prompts on disk: encoding the prompts of many classes takes minutes on a CPU."""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.system.errors import InputError
from debias_ssl.system.files import CHECK_BYTES, cache_folder, is_whole, writing_to_cache


def kept(key: str, shape: tuple[int, int]) -> Float[Tensor, "n D"] | None:
    """The vectors that were kept under a key, to the last bit; None if there are none, or the file is damaged.

    Args:
        key: a hash of all that they depend on.
        shape: the required shape.
    """
    with suppress(InputError, OSError):
        path = _file(key)
        if is_whole(path) and path.stat().st_size == 4 * shape[0] * shape[1] + CHECK_BYTES:
            values = np.frombuffer(path.read_bytes()[:-CHECK_BYTES], dtype=np.float32).reshape(shape)
            return torch.from_numpy(values.copy())
    return None


def keep(key: str, vectors: Float[Tensor, "n D"]) -> str | None:
    """Stores vectors under a key, in a file of plain numbers with a checksum, written completely or not at all.

    Returns:
        The reason if this was not possible. Only time is lost then.
    """
    try:
        with writing_to_cache(_file(key)) as write:
            write(vectors.contiguous().numpy().tobytes())
    except InputError as error:
        return str(error)
    return None


def _file(key: str) -> Path:
    return cache_folder(None) / "texts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.f32"
