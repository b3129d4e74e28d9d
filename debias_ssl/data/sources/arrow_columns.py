"""Finds the positions of images and their classes in Arrow files of the package datasets.

These files are not compressed, so each image has a fixed position in its file, from which it is read later. Arrow maps
the file into memory, and only the pages that are read take memory.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from debias_ssl.data.sources.rows import RowNames
from debias_ssl.data.sources.shard_index import Shard
from debias_ssl.system.errors import InputError

# The class of an image without a class.
NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Images and classes of all rows of a split."""

    shards: tuple[Shard, ...]
    """The Arrow files."""
    offsets: Int64[np.ndarray, " N"]
    lengths: Int64[np.ndarray, " N"]
    """Position and size of each image in its file, in bytes."""
    codes: Int64[np.ndarray, " N"]
    """Class of each image as a position in `classes`; negative if unknown."""
    classes: tuple[str, ...]
    is_fixed: bool
    """Whether the type of the column lists the classes, in their order."""

    @classmethod
    def read(cls, dataset: Any, image: str, label: str | None, where: str) -> "Columns":
        """Reads the Arrow files of a split: classes, and positions of images, but no image.

        Args:
            dataset: a `datasets.Dataset`.
            image: the column of the images.
            label: the column of the classes; without it, classes are unknown.
            where: the name of the split in errors.

        Raises:
            InputError: a row has no image or a wrong class, or the rows are not the rows of the files.
        """
        if dataset._indices is not None:
            raise InputError(f"{where}: its rows are selected by an index: call flatten_indices() and save it again")
        if label is not None and label not in dataset.features:
            label = None
        feature = None if label is None else dataset.features[label]
        shards, places, labels, first = [], [], [], 0
        for file in dataset.cache_files:
            path = file["filename"]
            stat = os.stat(path)
            with pa.memory_map(path) as mapped:
                whole = mapped.read_buffer()
                before = first
                for batch in pa.ipc.open_stream(whole):
                    places.append(_places(batch.column(image), whole, f"{where}, column {image!r}", first))
                    if label is not None:
                        labels.append(_texts(batch.column(label), f"{where}, column {label!r}"))
                    first += len(batch)
            shards.append(Shard(path, stat.st_size, stat.st_mtime_ns, first - before))
        offsets, lengths = np.concatenate(places, axis=1) if places else np.zeros((2, 0), dtype=np.int64)
        if first != len(dataset):
            raise InputError(f"{where}: {len(dataset)} rows, {first} of them in Arrow files: write it by save_to_disk")
        names = getattr(feature, "names", None)
        codes, classes = _classes(labels, names, first, where)
        return cls(
            shards=tuple(shards),
            offsets=offsets,
            lengths=lengths,
            codes=codes,
            classes=classes,
            is_fixed=names is not None,
        )

    def names(self, split: str, suffix: str) -> RowNames:
        """The names of all images, which begin with `split` and end in `suffix`."""
        counts = [shard.num_images for shard in self.shards]
        return RowNames(
            shards=self.shards,
            splits=(split,) * len(self.shards),
            columns=(suffix,) * len(self.shards),
            numbers=np.repeat(np.arange(len(counts)), counts),
            rows=np.arange(sum(counts)),
            offsets=self.offsets,
            lengths=self.lengths,
        )


def bytes_type(kind: pa.DataType) -> pa.DataType | None:
    """The type of the bytes of images: of the column itself, or of its field `bytes`; None without such bytes."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return None if place < 0 else bytes_type(kind.field(place).type)
    return kind if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _places(column: pa.Array, whole: pa.Buffer, where: str, first: int) -> Int64[np.ndarray, "2 n"]:
    """Position and size of each image in the file from which a batch of rows is mapped."""
    known = column.is_valid()
    values = column.field("bytes") if isinstance(column, pa.StructArray) else column
    lacking = np.flatnonzero(~(known.to_numpy(False) & values.is_valid().to_numpy(False)))
    if len(lacking):
        raise InputError(
            f"{where}: row {first + int(lacking[0])} has no bytes of an image; a data set that names files instead is "
            "read as they are (data.name folder), or written again by its save_to_disk, which takes them in"
        )
    _, borders, data = values.buffers()
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    ends = np.frombuffer(borders, kind)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    lengths = np.diff(ends)
    # An empty buffer may have no address.
    start = 0 if data is None else data.address - whole.address
    offsets = np.where(lengths == 0, 0, start + ends[:-1])
    if (lengths < 0).any() or (offsets < 0).any() or (offsets + lengths > whole.size).any():
        raise InputError(f"{where}: its Arrow file is compressed or damaged: write the data set again, by save_to_disk")
    return np.stack([offsets, lengths])


def _texts(column: pa.Array, where: str) -> pa.Array:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"{where} has the type {kind}: classes must be texts or whole numbers")
    return column.cast(pa.large_string())


def _classes(
    labels: Sequence[pa.Array], names: Sequence[str] | None, number: int, where: str
) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...]]:
    """The classes, and for all rows the position of their class; negative if unknown."""
    if not labels:
        return np.full(number, NO_CLASS, dtype=np.int64), tuple(names or ())
    found = pa.chunked_array(labels, pa.large_string()).dictionary_encode().unify_dictionaries()
    texts = found.chunk(0).dictionary.to_pylist()
    codes = np.concatenate([each.indices.fill_null(len(texts)).to_numpy().astype(np.int64) for each in found.chunks])
    wrong = [] if names is None else [text for text in texts if not -1 <= int(text) < len(names)]
    if wrong:
        raise InputError(f"{where}: the label {wrong[0]} is not one of its {len(names or ())} classes")
    places = range(len(texts)) if names is None else map(int, texts)
    return np.array([*places, NO_CLASS], dtype=np.int64)[codes], tuple(texts if names is None else names)
