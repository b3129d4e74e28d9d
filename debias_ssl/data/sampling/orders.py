"""Orders: the images of each global batch, as functions of the step, so that a checkpoint saves no iterator."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose
from debias_ssl.data.sampling.permutations import Permutations


@runtime_checkable
class BatchOrder(Protocol):
    """The items of a list, such as the unlabeled images, in the global batch of each step."""

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """The items at some positions of the global batch of a step."""
        ...


@dataclass(frozen=True, kw_only=True)
class PassOrder:
    """The global batch of each step, as positions in a list of items that is visited in passes.

    Each item occurs once per pass. The order of pass n is permutation number n.
    """

    length: int
    batch_size: int
    seed: int
    purpose: Purpose

    @cached_property
    def _orders(self) -> Permutations:
        return Permutations(self.seed, self.purpose, in_use=self.length)

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """The items at positions of the global batch of a step."""
        numbers, places = np.divmod(step * self.batch_size + positions.numpy(), self.length)
        return torch.from_numpy(self._orders.at(numbers, np.full_like(numbers, self.length), places))


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """Like `PassOrder`, for items in shards: a process reads few shards at a time, and always the same ones.

    The list is divided into `lanes` equal parts, and each batch as well. Each lane makes passes over its part: one
    permutation orders the shards, and another one the items in a shard. Shards may have any size. A shard across the
    border of two parts is in two lanes.
    """

    borders: Int64[np.ndarray, " borders"]
    """Position of each shard's first item, and the end of the list. Items before the first shard are one more shard."""
    batch_size: int
    lanes: int
    seed: int

    @cached_property
    def _stretches(self) -> Int64[np.ndarray, " borders"]:
        return np.arange(self.lanes + 1) * self.borders[-1] // self.lanes

    @cached_property
    def _pieces(self) -> Int64[np.ndarray, " borders"]:
        """The start of each piece, which is the part of a shard in one lane, and the end of the list."""
        return np.unique(np.concatenate([self._stretches, self.borders]))

    @cached_property
    def _first_pieces(self) -> Int64[np.ndarray, " borders"]:
        """The first piece of each lane, and the number of pieces."""
        return np.searchsorted(self._pieces, self._stretches)

    @cached_property
    def _orders(self) -> Permutations:
        """Orders of the pieces of a lane."""
        return Permutations(self.seed, Purpose.SHARD_ORDER, in_use=len(self._pieces))

    @cached_property
    def _inner_orders(self) -> Permutations:
        """Orders of the items in a piece; each lane uses one at a time."""
        largest, length = int(np.diff(self._pieces).max()), int(self.borders[-1])
        return Permutations(self.seed, Purpose.UNLABELED_ORDER, in_use=min(self.lanes * largest, length))

    @cached_property
    def _turns(self) -> OrderedDict[int, tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]]:
        """For recent passes of lanes: the pieces in order, and the number of draws after which each is finished."""
        return OrderedDict()

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        width = self.batch_size // self.lanes
        lanes, inside = np.divmod(positions.numpy(), width)
        sizes = np.diff(self._stretches)[lanes]
        numbers, places = np.divmod(step * width + inside, sizes)
        passes = numbers * self.lanes + lanes
        pieces, offsets = np.empty_like(passes), np.empty_like(passes)
        starts = np.flatnonzero(np.diff(passes, prepend=passes[:1] - 1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(passes)], strict=True):
            order, ends = self._pass(int(passes[start]), int(lanes[start]))
            turns = np.searchsorted(ends, places[start:stop], side="right")
            pieces[start:stop] = order[turns]
            offsets[start:stop] = places[start:stop] - ends[turns]
        lengths = self._pieces[pieces + 1] - self._pieces[pieces]
        keys = numbers * (len(self._pieces) - 1) + pieces
        return torch.from_numpy(self._pieces[pieces] + self._inner_orders.at(keys, lengths, offsets + lengths))

    def _pass(self, key: int, lane: int) -> tuple[Int64[np.ndarray, " pieces"], Int64[np.ndarray, " pieces"]]:
        """The pieces of a lane in the order of a pass, and the number of draws after which each is finished."""
        if key not in self._turns:
            first, stop = self._first_pieces[lane : lane + 2].tolist()
            each = np.arange(stop - first)
            order = first + self._orders.at(np.full_like(each, key), np.full_like(each, stop - first), each)
            self._turns[key] = order, np.cumsum(self._pieces[order + 1] - self._pieces[order])
            if len(self._turns) > 2 * self.lanes:
                self._turns.popitem(last=False)
        return self._turns[key]


@dataclass(frozen=True, kw_only=True)
class BalancedOrder:
    """Like `PassOrder`, with every class equally often: passes over the classes, and in each class over its items."""

    labels: Int[Tensor, " L"]
    batch_size: int
    seed: int

    @cached_property
    def _members(self) -> Int64[np.ndarray, " L"]:
        """The items sorted by class."""
        return self.labels.argsort(stable=True).numpy()

    @cached_property
    def _counts(self) -> Int64[np.ndarray, " present"]:
        """The number of items of each class that has items."""
        return self.labels.unique(return_counts=True)[1].numpy()

    @cached_property
    def _class_order(self) -> PassOrder:
        return PassOrder(
            length=len(self._counts), batch_size=self.batch_size, seed=self.seed, purpose=Purpose.CLASS_ORDER
        )

    @cached_property
    def _orders(self) -> Permutations:
        """Orders of the items of a class."""
        return Permutations(self.seed, Purpose.LABELED_ORDER, in_use=len(self.labels))

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        num, counts = len(self._counts), self._counts
        classes = self._class_order(step, positions).numpy()
        # A class occurs once per pass over the classes, so its n-th draw is in pass n.
        draws = (step * self.batch_size + positions.numpy()) // num
        numbers, places = np.divmod(draws, counts[classes])
        inside = self._orders.at(numbers * num + classes, counts[classes], places)
        return torch.from_numpy(self._members[(np.cumsum(counts) - counts)[classes] + inside])
