"""Permutations of images, from which the orders draw."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sampling.keyed import WORD, permutation, philox

# Of more numbers than this, a permutation is made by itself.
LONG = 2**14
# Numbers that are kept of permutations that no step has needed lately.
SPARE = 2**16


def permutations(seed: int, purpose: int, numbers: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
    """`permutation` of each number and length, in one go: of short ones, the time goes into starting operations."""
    stops = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(stops[-1]) - np.repeat(stops - lengths, lengths)
    zero = np.zeros_like(places)
    counter = (places, zero, np.repeat(np.asarray(numbers), lengths), zero + purpose)
    high, low, _, _ = philox(counter, (seed & WORD, seed >> 32 & WORD))
    # By row, then by word; both sorts keep the order of equals.
    return np.split(places[np.lexsort([high >> 2 << 32 | low, rows])], stops[:-1])


class Permutations:
    """Permutations of one purpose; the last used ones are kept.

    Args:
        seed: of the permutations.
        purpose: of the permutations.
        in_use: how many numbers there are in the permutations that an order goes through at a time.
    """

    def __init__(self, seed: int, purpose: int, in_use: int):
        self.seed = seed
        self.purpose = purpose
        # One that is used up is followed by another, and those in use come first for longer than it.
        self.most = 2 * in_use + SPARE
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._size = 0

    def at(
        self, numbers: Int64[np.ndarray, " n"], lengths: Int64[np.ndarray, " n"], places: Int64[np.ndarray, " n"]
    ) -> Int64[np.ndarray, " n"]:
        """What stands at some places of permutations, each of a number that has always the same length."""
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        runs = numbers[starts].tolist()
        self._make(dict(zip(runs, lengths[starts].tolist(), strict=True)))
        stops = [*starts[1:].tolist(), len(numbers)]
        drawn = np.empty(len(numbers), dtype=np.int64)
        for number, start, stop in zip(runs, starts.tolist(), stops, strict=True):
            drawn[start:stop] = self._kept[number][places[start:stop]]
        return drawn

    def _make(self, lengths: dict[int, int]) -> None:
        """Makes what is missing of these, and forgets what was not used for longest."""
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
        # Half the memory: no list has more images than this holds.
        self._kept[number] = values.astype(np.int32)
        self._size += len(values)
