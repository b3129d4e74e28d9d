"""`KnownContents`: finds images by the hash of their contents, among millions that already have features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64


class Place(NamedTuple):
    """The place of features in a store."""

    source: int
    """The number of the list of images."""
    row: int
    """The row of the image in the list."""


@dataclass(frozen=True, kw_only=True)
class KnownContents:
    """Hashes with places, in the order of the first half of the hash."""

    first: Int64[np.ndarray, " N"]
    second: Int64[np.ndarray, " N"]
    """The halves of the hashes."""
    places: Int64[np.ndarray, "N 2"]

    @classmethod
    def of(cls, found: Sequence[tuple[int, int, Int64[np.ndarray, "_ 2"]]]) -> "KnownContents":
        """Hashes of parts of lists: the number of the list, its first row and its contents; a zero hash is unknown."""
        contents, places = [np.zeros((0, 2), dtype=np.int64)], [np.zeros((0, 2), dtype=np.int64)]
        for source, first, part in found:
            known = np.flatnonzero(part.any(1))
            contents.append(part[known])
            places.append(np.stack([np.full(len(known), source), first + known], axis=1))
        first, second = np.concatenate(contents).T
        order = np.argsort(first, kind="stable")
        return cls(first=first[order], second=second[order], places=np.concatenate(places)[order])

    def find(self, content: Int64[np.ndarray, " 2"]) -> Place | None:
        """The place of the first image with these contents; None if there is no such image."""
        i = int(np.searchsorted(self.first, content[0]))
        # Among ten million hashes, two share the first half with a probability of 3e-6; then one of them is not found.
        if i == len(self.first) or (self.first[i], self.second[i]) != tuple(content):
            return None
        return Place(*self.places[i].tolist())
