"""Many texts in a few arrays: in a list of strings, each string would be an object of about a hundred bytes."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, overload

import numpy as np
from jaxtyping import Int64, UInt8

# Number of texts that are decoded at a time during an iteration.
BLOCK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts(Sequence[str]):
    """Texts, such as paths: their bytes one after another, and the position where each text ends.

    Bytes that are not UTF-8 are surrogates in the text, as in Python's names of files.
    """

    prefix: str = ""
    """The common beginning of all texts, such as a folder and a slash; the arrays do not contain it."""
    text: UInt8[np.ndarray, " bytes"]
    """The rests of all texts, one after another."""
    ends: Int64[np.ndarray, " N"]
    """The position in `text` where each rest ends."""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> "Texts": ...
    def __getitem__(self, key: int | slice) -> "str | Texts":
        if isinstance(key, slice):
            return self.part(np.arange(len(self))[key])
        i = range(len(self))[key]
        return self.prefix + os.fsdecode(self.text[self.ends[i - 1] if i else 0 : self.ends[i]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), BLOCK):
            borders = [int(self.ends[first - 1]) if first else 0, *self.ends[first : first + BLOCK].tolist()]
            block = self.text[borders[0] : borders[-1]].tobytes()
            for start, stop in pairwise(borders):
                yield self.prefix + os.fsdecode(block[start - borders[0] : stop - borders[0]])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | tuple | Texts) and [*self] == [*other]

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def part(self, positions: Int64[np.ndarray, " P"]) -> "Texts":
        """The texts at some positions, in their order."""
        text, ends = self._at(positions)
        return replace(self, text=text, ends=ends)

    def _at(self, positions: Int64[np.ndarray, " P"]) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " P"]]:
        """Bytes and ends of the texts at some positions."""
        starts, ends = np.concatenate([[0], self.ends])[positions], self.ends[positions]
        if len(positions) and (np.diff(positions) == 1).all():
            text = self.text[starts[0] : ends[-1]]
        else:
            blocks = [self._bytes(starts[k : k + BLOCK], ends[k : k + BLOCK]) for k in range(0, len(ends), BLOCK)]
            text = np.concatenate([self.text[:0], *blocks])
        return text, np.cumsum(ends - starts, dtype=np.int64)

    def _bytes(self, starts: Int64[np.ndarray, " P"], ends: Int64[np.ndarray, " P"]) -> UInt8[np.ndarray, " bytes"]:
        lengths = ends - starts
        # How far each byte moves.
        moved = starts - (np.cumsum(lengths) - lengths)
        return self.text[np.repeat(moved, lengths) + np.arange(lengths.sum())]

    def arrow(self) -> Any:
        """The texts without the prefix, as an array of pyarrow over the same memory."""
        # Imported late: the import is slow, and few lists are compared.
        import pyarrow as pa

        ends = np.concatenate([[0], self.ends])
        return pa.Array.from_buffers(pa.large_binary(), len(self), [None, pa.py_buffer(ends), pa.py_buffer(self.text)])

    def written_out(self) -> "Texts":
        """The same texts without a prefix."""
        front, starts = np.frombuffer(os.fsencode(self.prefix), np.uint8), np.concatenate([[0], self.ends])
        blocks = [self.text[:0]]
        for first in range(0, len(self) if len(front) else 0, BLOCK):
            own = starts[first : first + BLOCK + 1]
            where = np.repeat(own[:-1] - own[0], len(front))
            blocks.append(np.insert(self.text[own[0] : own[-1]], where, np.tile(front, len(own) - 1)))
        text = np.concatenate(blocks) if len(front) else self.text
        ends = self.ends + len(front) * np.arange(1, len(self) + 1)
        return replace(self, prefix="", text=text, ends=ends)


def texts_of(strings: Iterable[str]) -> Texts:
    """The strings as `Texts`; they need not be a list."""
    if isinstance(strings, Texts):
        return strings.written_out()
    # Arrays that grow in place.
    text, ends = bytearray(), array("q")
    for string in strings:
        text += os.fsencode(string)
        ends.append(len(text))
    return Texts(text=np.frombuffer(text, dtype=np.uint8), ends=np.frombuffer(ends, dtype=np.int64))


def places_in(texts: Texts, others: Texts) -> Int64[np.ndarray, " N"]:
    """For each text, the position of the first equal text among others; -1 if there is none."""
    from pyarrow import compute

    # pyarrow.compute creates its functions during the import, so Pyright does not know them.
    pc: Any = compute
    found = pc.index_in(texts.written_out().arrow(), value_set=others.written_out().arrow())
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
