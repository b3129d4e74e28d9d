"""Some rows of a matrix of predictions, in memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.labels.debiasing import Rows, pass_over

# Numbers that are kept in memory to be gone through again and again: 256 MiB.
SAMPLE_NUMBERS = 2**26


def read_sample(rows: Rows, title: str, is_quiet: bool, numbers: int = SAMPLE_NUMBERS) -> list[Float[Tensor, "_ C"]]:
    """Logits of all rows where they fit in memory, else of some that are drawn, in their order.

    Raises:
        InputError: a number is not finite.
    """
    num_rows, most = len(rows.names), max(1, numbers // len(rows.classes))
    if num_rows <= most:
        return [*pass_over(rows, 1.0, title, is_quiet)]
    drawn = permutation(0, Purpose.TUNING, 0, num_rows)[:most].sort().values.numpy()
    return [*_drawn(rows, drawn, title, is_quiet)]


def _drawn(rows: Rows, drawn: Int64[np.ndarray, " R"], title: str, is_quiet: bool) -> Iterator[Float[Tensor, "_ C"]]:
    first = 0
    for logits in pass_over(rows, 1.0, title, is_quiet):
        start, stop = np.searchsorted(drawn, (first, first + len(logits)))
        if start < stop:
            yield logits[drawn[start:stop] - first]
        first += len(logits)
