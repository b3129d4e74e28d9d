"""`RowNames`: names of images in Arrow files, computed on access; millions of strings may not fit into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.shard_index import Member, Shard
from debias_ssl.system.texts import BLOCK


@dataclass(frozen=True, kw_only=True, eq=False)
class RowNames(Sequence[str]):
    """Names of images in Arrow files, `DATASET/SPLIT[ROW]`, with the position of their bytes: 32 bytes an image.

    An image is read from its position in the file, like a member of a tar file. The table is not in memory.
    """

    shards: tuple[Shard, ...]
    """The Arrow files."""
    splits: tuple[str, ...]
    """For each Arrow file, the beginning of the names of its images: `DATASET/SPLIT`."""
    columns: tuple[str, ...]
    """For each Arrow file, the end of the names of its images: empty, or `.COLUMN` if users have set the column."""
    numbers: Int64[np.ndarray, " N"]
    """The number of the Arrow file of each image."""
    rows: Int64[np.ndarray, " N"]
    """The row of each image in its split."""
    offsets: Int64[np.ndarray, " N"]
    """Position of each image's first byte in the Arrow file."""
    lengths: Int64[np.ndarray, " N"]
    """Size of each image in bytes."""

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        i = range(len(self))[key]
        return self._member(*(int(values[i]) for values in self._columns))

    def __iter__(self) -> Iterator[str]:
        # In blocks: to turn many numbers into Python numbers at once takes 0.33 times as long.
        for first in range(0, len(self), BLOCK):
            block: list[list[int]] = [values[first : first + BLOCK].tolist() for values in self._columns]
            yield from map(self._member, *block)

    @property
    def _columns(self) -> tuple[Int64[np.ndarray, " N"], ...]:
        return self.numbers, self.rows, self.offsets, self.lengths

    def _member(self, number: int, row: int, offset: int, length: int) -> Member:
        inner = f"[{row}]{self.columns[number]}"
        return Member(self.shards[number], inner, offset, length, self.splits[number] + inner)

    def part(self, positions: Int64[np.ndarray, " P"]) -> "RowNames":
        """The names at some positions, in their order."""
        numbers, rows, offsets, lengths = (values[positions] for values in self._columns)
        return replace(self, numbers=numbers, rows=rows, offsets=offsets, lengths=lengths)

    @classmethod
    def joined(cls, lists: Sequence["RowNames"]) -> "RowNames":
        """The names of several lists, one after another."""
        before = np.cumsum([0] + [len(names.shards) for names in lists])
        return cls(
            shards=tuple(shard for names in lists for shard in names.shards),
            splits=tuple(split for names in lists for split in names.splits),
            columns=tuple(column for names in lists for column in names.columns),
            numbers=np.concatenate([names.numbers + k for names, k in zip(lists, before[:-1], strict=True)]),
            rows=np.concatenate([names.rows for names in lists]),
            offsets=np.concatenate([names.offsets for names in lists]),
            lengths=np.concatenate([names.lengths for names in lists]),
        )
