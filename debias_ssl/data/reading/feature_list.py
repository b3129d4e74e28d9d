"""`FeatureList`: the table of image files beside stored features, with one row for each file."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt32
from pyarrow import compute, parquet

from debias_ssl.data.sources.listing import FileNames
from debias_ssl.data.sources.shards import on_disk
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import replacing

# pyarrow.compute creates its functions during the import, so Pyright does not know them.
pc: Any = compute


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureList:
    """The files of images with features, with size and time when the features were computed, in arrays."""

    files: FileNames
    """Paths relative to the common folder, with sizes and times."""
    images: UInt32[np.ndarray, " files"]
    """For a tar file, the number of its images in the list; 0 for an image file."""
    part: UInt32[np.ndarray, " files"]
    """For a tar file with only some of its images in the list, a checksum of their positions; else 0."""

    @classmethod
    def of(cls, names: Sequence[str], root: Path) -> "FeatureList":
        """The files of images below a folder."""
        if isinstance(names, FileNames) and (below := names.below(str(root))) is not None:
            none = np.zeros(len(names), dtype=np.uint32)
            return cls(files=below, images=none, part=none)
        listed = [*on_disk(names)]
        parts = np.array([(*file.part, 0, 0)[:2] for file in listed], dtype=np.uint32).reshape(-1, 2)
        files = FileNames.of((os.path.relpath(file.path, root), file.size, file.mtime_ns, False) for file in listed)
        return cls(files=files, images=parts[:, 0], part=parts[:, 1])

    @cached_property
    def first_rows(self) -> Int64[np.ndarray, " borders"]:
        """The row of each file's first image; the last number is the number of all images."""
        return np.concatenate([[0], np.cumsum(np.maximum(self.images, 1), dtype=np.int64)])

    @property
    def num_rows(self) -> int:
        return int(self.first_rows[-1])

    def is_same(self, other: "FeatureList") -> bool:
        """Whether both lists have the same files with the same sizes and times, in the same order."""
        pairs = zip(self._columns().values(), other._columns().values(), strict=True)
        return len(self.files) == len(other.files) and all(one.equals(two) for one, two in pairs)

    def find(self, names: Iterable[str]) -> Int64[np.ndarray, " N"]:
        """The positions of files, found by their paths relative to the folder; -1 for unknown files."""
        return self._places(pa.array((os.fsencode(name) for name in names), pa.large_binary()))

    def rows_in(self, other: "FeatureList") -> Int64[np.ndarray, " rows"]:
        """For each image its row in another list; -1 if that list has no file with the same name, size and time."""
        places = other._places(self.files.arrow())
        same = places >= 0
        for one, two in (
            (self.files.sizes, other.files.sizes),
            (self.files.mtimes, other.files.mtimes),
            (self.images, other.images),
            (self.part, other.part),
        ):
            same[same] = one[same] == two[places[same]]
        counts = np.maximum(self.images, 1)
        inside = np.arange(self.num_rows) - np.repeat(self.first_rows[:-1], counts)
        return np.where(np.repeat(same, counts), np.repeat(other.first_rows[places], counts) + inside, -1)

    def _places(self, names: pa.Array) -> Int64[np.ndarray, " N"]:
        found = pc.index_in(names, value_set=self.files.arrow())
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def _columns(self) -> dict[str, pa.Array]:
        columns = {"size": self.files.sizes, "mtime_ns": self.files.mtimes, "images": self.images, "part": self.part}
        return {"name": self.files.arrow(), **{name: pa.array(values) for name, values in columns.items()}}

    def write(self, path: Path) -> None:
        """Writes the table as Parquet.

        Raises:
            WriteError: it cannot be written.
        """
        with replacing(path) as aside:
            # Names differ, but have common beginnings.
            encodings = {"name": "DELTA_BYTE_ARRAY"}
            table = pa.table(self._columns())
            parquet.write_table(table, aside, compression="zstd", use_dictionary=False, column_encoding=encodings)

    @classmethod
    def read(cls, path: Path) -> "FeatureList":
        """Reads a table of `write`.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            table = parquet.read_table(path)
            names = table["name"].cast(pa.large_binary()).combine_chunks()
            numbers = {key: table[key].to_numpy() for key in ("size", "mtime_ns", "images", "part")}
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise InputError(
                f"{str(path)!r} cannot be read: {reason(error)}; name another folder of features, or delete that one"
            ) from error
        return cls(
            files=FileNames.of_arrow(names, numbers["size"], numbers["mtime_ns"]),
            images=numbers["images"].astype(np.uint32),
            part=numbers["part"].astype(np.uint32),
        )
