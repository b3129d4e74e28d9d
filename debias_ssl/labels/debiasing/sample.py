"""A sample of rows of a matrix of predictions, in memory."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.labels.debiasing.chunks import rows_of_chunk
from debias_ssl.labels.debiasing.rows import Rows, pass_over

# Numbers to keep in memory for repeated passes: 128 MiB.
SAMPLE_NUMBERS = 2**25


def drawn_rows(num_rows: int, most: int) -> Int64[np.ndarray, " R"]:
    """The places of all rows, or of so many that are drawn, in their order."""
    if num_rows <= most:
        return np.arange(num_rows)
    return permutation(0, Purpose.TUNING, 0, num_rows)[:most].sort().values.numpy()


def read_rows(
    rows: Rows, wanted: Sequence[Int64[np.ndarray, " _"]], title: str, is_quiet: bool
) -> list[Float[Tensor, "_ C"]]:
    """Logits of several selections of rows, in one pass.

    Args:
        rows: the matrix.
        wanted: places of the rows of each selection, in rising order.
        title: of the progress bar.
        is_quiet: no progress bar.

    Raises:
        InputError: a number is not finite.
    """
    # One array for each selection: small arrays between the chunks would keep their memory from being used again.
    found, first = [torch.empty(len(places), len(rows.classes)) for places in wanted], 0
    for logits in pass_over(rows, 1.0, title, is_quiet):
        for own, places in zip(found, wanted, strict=True):
            start, stop = np.searchsorted(places, (first, first + len(logits)))
            own[start:stop] = logits[torch.from_numpy(places[start:stop] - first)]
        first += len(logits)
    return found


def in_chunks(logits: Float[Tensor, "R C"]) -> Sequence[Float[Tensor, "_ C"]]:
    """Rows in parts that are gone through one by one; none of no rows."""
    return logits.split(rows_of_chunk(logits.shape[1])) if len(logits) else ()


def read_sample(rows: Rows, title: str, is_quiet: bool) -> Sequence[Float[Tensor, "_ C"]]:
    """Logits of all rows where they fit in memory, else of some that are drawn, in their order.

    Raises:
        InputError: a number is not finite.
    """
    drawn = drawn_rows(len(rows.names), max(1, SAMPLE_NUMBERS // len(rows.classes)))
    return in_chunks(read_rows(rows, [drawn], title, is_quiet)[0])
