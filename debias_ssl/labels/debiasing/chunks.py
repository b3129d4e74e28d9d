"""Chunks of rows: parts of a matrix that fit in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from debias_ssl.system.errors import InputError

# Numbers that are held of a matrix at a time.
CHUNK_NUMBERS = 2**22


def rows_of_chunk(num_classes: int) -> int:
    return max(1, CHUNK_NUMBERS // num_classes)


def chunks_of(values: Num[np.ndarray, "N C"]) -> Iterator[tuple[int, Float[Tensor, "n C"]]]:
    """Parts of a matrix in fp32, each with the number of its first row."""
    step = rows_of_chunk(values.shape[1])
    for first in range(0, len(values), step):
        part = values[first : first + step]
        if part.dtype == np.float16:
            # NumPy converts them eight times as slowly.
            yield first, torch.from_numpy(np.array(part)).float()
            continue
        # A number that is too large becomes infinite, and the message says so.
        with np.errstate(over="ignore"):
            yield first, torch.from_numpy(np.array(part, dtype=np.float32))


def check_finite(logits: Float[Tensor, "n C"], first_row: int, classes: Sequence[str]) -> None:
    """Raises InputError where a number is infinite or none; the first of these rows is the `first_row` of all."""
    # The sum of finite numbers may overflow, that of others is never finite.
    if not logits.sum().isfinite() and len(bad := (~logits.isfinite()).nonzero()):
        row, k = bad[0].tolist()
        raise InputError(
            f"row {first_row + row} (from 0), class {classes[k]!r}: {logits[row, k].item()} is not a finite number; "
            "remove the row, or fix what made it"
        )
