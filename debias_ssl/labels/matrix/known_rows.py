"""Rows of logits, read chunk by chunk, so that they may be larger than memory."""

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from debias_ssl.labels.debiasing.chunks import rows_of_chunk
from debias_ssl.system.files import writes

# The size of a chunk: computing on it takes about ten arrays of fp64.
MOST_NUMBERS = 2**19


@dataclass(frozen=True, kw_only=True)
class KnownRows:
    """The rows of a matrix whose labels are known; they can be read several times."""

    matrix: Iterable[Float[Tensor, "_ C"]]
    """Logits of all rows, in order, in chunks."""
    labels: Int[Tensor, " N"]
    """Of all rows, negative for those that are not among these."""

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "n C"], Int[Tensor, " n"]]]:
        """Logits and labels, in chunks."""
        first = 0
        for logits in _small(self.matrix):
            labels = self.labels[first : first + len(logits)]
            first += len(logits)
            if (labels >= 0).any():
                yield logits[labels >= 0], labels[labels >= 0]

    def __len__(self) -> int:
        return len(self.known)

    @cached_property
    def known(self) -> Int[Tensor, " M"]:
        """Labels of these rows."""
        return self.labels[self.labels >= 0]

    def part(self, inside: Bool[Tensor, " M"]) -> "KnownRows":
        """Some of these rows."""
        labels = self.labels.clone()
        labels[self.labels >= 0] = torch.where(inside, self.known, -1)
        return replace(self, labels=labels)


def _small(matrix: Iterable[Float[Tensor, "_ C"]]) -> Iterator[Float[Tensor, "_ C"]]:
    for logits in matrix:
        yield from logits.split(max(1, MOST_NUMBERS // logits.shape[1]))


class LogitFile:
    """A matrix of fp32 in a temporary file without a name, which is deleted with this object."""

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        with writes(self._folder()):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._row_bytes = 4 * num_classes

    def write(self, first: int, logits: Float[Tensor, "n C"]) -> None:
        """Writes rows, of which the first has the number `first`."""
        with writes(self._folder()):
            self._file.seek(first * self._row_bytes)
            self._file.write(np.ascontiguousarray(logits.numpy(), dtype=np.float32).data)

    def _folder(self) -> Path:
        """Of files that are not kept."""
        return Path(tempfile.gettempdir())

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        first, size = 0, rows_of_chunk(self.num_classes) * self._row_bytes
        while True:
            # Several readers may take turns.
            self._file.seek(first)
            part = bytearray(self._file.read(size))
            if not part:
                return
            first += len(part)
            yield torch.from_numpy(np.frombuffer(part, dtype=np.float32).reshape(-1, self.num_classes))
