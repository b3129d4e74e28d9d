"""Permutations of images for the orders: made together, and cached."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sampling.keyed import WORD, permutation, philox

# Longer permutations are made one by one.
LONG = 2**14
# Size of the permutations in the cache beyond those in use, in numbers.
SPARE = 2**16


def permutations(seed: int, purpose: int, numbers: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
    """`permutation` for each number and length. Many short ones together take less time to start operations."""
    stops = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(stops[-1]) - np.repeat(stops - lengths, lengths)
    zero = np.zeros_like(places)
    counter = (places, zero, np.repeat(np.asarray(numbers), lengths), zero + purpose)
    high, low, _, _ = philox(counter, (seed & WORD, seed >> 32 & WORD))
    # Sorted by row, then by word; both sorts are stable.
    return np.split(places[np.lexsort([high >> 2 << 32 | low, rows])], stops[:-1])


class Permutations:
    """Permutations of one purpose; the last used ones are kept.

    Args:
        seed: the seed of the permutations.
        purpose: the purpose of the permutations.
        in_use: the total length of the permutations that an order uses at a time.
    """

    def __init__(self, seed: int, purpose: int, in_use: int):
        self.seed = seed
        self.purpose = purpose
        # Twice: each permutation in use and the finished one that it has replaced may both be in the cache.
        self.most = 2 * in_use + SPARE
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._size = 0

    def at(
        self, numbers: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"], places: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """The values at some positions of permutations. A permutation number always has the same length."""
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        runs = numbers[starts].tolist()
        self._make(dict(zip(runs, lengths[starts].tolist(), strict=True)))
        stops = [*starts[1:].tolist(), len(numbers)]
        drawn = np.empty(len(numbers), dtype=np.int64)
        for number, start, stop in zip(runs, starts.tolist(), stops, strict=True):
            drawn[start:stop] = self._kept[number][places[start:stop]]
        return drawn

    def _make(self, lengths: dict[int, int]) -> None:
        """Makes the missing permutations, and removes the least recently used ones."""
        missing = {}
        for number, length in lengths.items():
            if number in self._kept:
                self._kept.move_to_end(number)
            elif length > LONG:
                self._keep(number, permutation(self.seed, self.purpose, number, length).numpy())
            else:
                missing[number] = length
        if missing:
            made = permutations(self.seed, self.purpose, [*missing], [*missing.values()])
            for number, each in zip(missing, made, strict=True):
                self._keep(number, each)
        while self._size > self.most and len(self._kept) > len(lengths):
            self._size -= len(self._kept.popitem(last=False)[1])

    def _keep(self, number: int, values: np.ndarray) -> None:
        # int32 halves the memory, and is large enough for any list of images.
        self._kept[number] = values.astype(np.int32)
        self._size += len(values)
