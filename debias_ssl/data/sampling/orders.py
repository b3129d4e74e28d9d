"""Which images each global batch holds: a function of the step alone, so that there is no iterator to save."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation

# Of all images, which may be a hundred million: the end of a pass and the beginning of the next, of two lists.
_cached_permutation = lru_cache(maxsize=4)(permutation)
# Of the images of a class or of a shard, of which a step needs many.
_cached_short_permutation = lru_cache(maxsize=512)(lambda *key: permutation(*key).numpy())


@runtime_checkable
class BatchOrder(Protocol):
    """Which items of a list, such as the unlabeled images, the global batch of each step holds."""

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """The items at some positions of the global batch of a step."""
        ...


@dataclass(frozen=True, kw_only=True)
class PassOrder:
    """The global batch of each step, as positions in a list of items that is gone through in passes.

    Each item comes once per pass; pass n has the order of permutation number n.
    """

    length: int
    batch_size: int
    seed: int
    purpose: Purpose

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """The items at positions of the global batch of a step."""
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            number, offset = divmod(start, self.length)
            order = _cached_permutation(self.seed, self.purpose, number, self.length)
            parts.append(order[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)[positions]


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """Like `PassOrder`, for items in shards: a process reads few shards at a time, and always the same ones.

    The list is cut into `lanes` equal stretches, and so is each batch. A lane goes through its stretch in passes of its
    own: the shards in it in the order of one permutation, the items of a shard in the order of another. Shards may be
    of any size, and one that lies across a border of stretches is in two lanes. The positions asked for are ascending.
    """

    borders: Int64[np.ndarray, " borders"]
    """Position of each shard's first item, and the end of the list; items before the first are like one more shard."""
    batch_size: int
    lanes: int
    seed: int

    @cached_property
    def _stretches(self) -> Int64[np.ndarray, " borders"]:
        return np.arange(self.lanes + 1) * self.borders[-1] // self.lanes

    @cached_property
    def _pieces(self) -> Int64[np.ndarray, " borders"]:
        """Where what is in one shard and one lane begins, and the end of the list."""
        return np.unique(np.concatenate([self._stretches, self.borders]))

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        width = self.batch_size // self.lanes
        lanes = (positions // width).numpy()
        draws = step * width + (positions % width).numpy()
        parts = [self._drawn(lane, draws[lanes == lane]) for lane in np.unique(lanes).tolist()]
        return torch.from_numpy(np.concatenate(parts))

    def _drawn(self, lane: int, draws: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The items that a lane draws, by the ascending numbers of the draws."""
        stretch = self._stretches[lane : lane + 2]
        first, stop = np.searchsorted(self._pieces, stretch).tolist()
        num_pieces = len(self._pieces) - 1
        numbers, places = np.divmod(draws, stretch[1] - stretch[0])
        parts = []
        for number in np.unique(numbers).tolist():
            key = number * self.lanes + lane
            order = first + _cached_short_permutation(self.seed, Purpose.SHARD_ORDER, key, stop - first)
            ends = np.cumsum(self._pieces[order + 1] - self._pieces[order])
            inside = places[numbers == number]
            turns = np.searchsorted(ends, inside, side="right")
            for turn in np.unique(turns).tolist():
                piece = int(order[turn])
                start, length = int(self._pieces[piece]), int(self._pieces[piece + 1] - self._pieces[piece])
                key = number * num_pieces + piece
                items = _cached_short_permutation(self.seed, Purpose.UNLABELED_ORDER, key, length)
                parts.append(start + items[inside[turns == turn] - (int(ends[turn]) - length)])
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class BalancedOrder:
    """Like `PassOrder`, with every class equally often: passes over the classes, and in each class over its items."""

    labels: Int[Tensor, " L"]
    batch_size: int
    seed: int

    @cached_property
    def _members(self) -> list[Int[Tensor, " members"]]:
        """The items of each class that has some."""
        return [torch.nonzero(self.labels == label).flatten() for label in self.labels.unique()]

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        num = len(self._members)
        of_classes = PassOrder(length=num, batch_size=self.batch_size, seed=self.seed, purpose=Purpose.CLASS_ORDER)
        # A class comes once per pass over the classes, so its n-th draw is in pass n.
        draws = (step * self.batch_size + positions) // num
        items = []
        for k, draw in zip(of_classes(step, positions).tolist(), draws.tolist(), strict=True):
            members = self._members[k]
            number, offset = divmod(draw, len(members))
            order = _cached_short_permutation(self.seed, Purpose.LABELED_ORDER, number * num + k, len(members))
            items.append(members[order[offset]])
        return torch.stack(items)
