"""Some rows of a matrix of predictions, in memory."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.labels.debiasing import Rows, pass_over, rows_of_chunk

# Numbers that are kept in memory to be gone through again and again: 128 MiB.
SAMPLE_NUMBERS = 2**25


def read_sample(rows: Rows, title: str, is_quiet: bool) -> Sequence[Float[Tensor, "_ C"]]:
    """Logits of all rows where they fit in memory, else of some that are drawn, in their order.

    Raises:
        InputError: a number is not finite.
    """
    num_rows, most = len(rows.names), max(1, SAMPLE_NUMBERS // len(rows.classes))
    drawn = np.arange(num_rows)
    if num_rows > most:
        drawn = permutation(0, Purpose.TUNING, 0, num_rows)[:most].sort().values.numpy()
    # One array: small ones that stay would keep the memory of each chunk from the next.
    sample, first = torch.empty(len(drawn), len(rows.classes)), 0
    for logits in pass_over(rows, 1.0, title, is_quiet):
        start, stop = np.searchsorted(drawn, (first, first + len(logits)))
        sample[start:stop] = logits[drawn[start:stop] - first]
        first += len(logits)
    return sample.split(rows_of_chunk(len(rows.classes)))
