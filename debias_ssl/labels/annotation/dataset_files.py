"""Writes labels as Parquet: a table for any reader, a Hugging Face data set with images, and cleanlab's input."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int64
from pyarrow import parquet

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import on_disk, read_member
from debias_ssl.labels.annotation.labeled_rows import LabeledRows
from debias_ssl.labels.output.label_table import Written
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import is_text

# Bytes of images in a file, as the hub divides data sets; and images of a row group, which readers take as a whole.
SHARD_BYTES, GROUP = 500 * 2**20, 100
# Rows of a table that are written at a time.
ROWS = 2**14

Batch = Mapping[str, Any]
"""The cells of some rows, by the names of the columns."""


def table_parts(rows: LabeledRows, probs: Float32[np.ndarray, "N C"] | None) -> Iterator[bytes]:
    """The rows as Parquet: path, label, confidence, plain label and confidence, and a list of all probabilities.

    Labels are text; one that is unknown is null. A path that is no text is binary.
    """
    columns = _label_columns(rows)
    are_text = all(map(is_text, rows.names))
    fields = [pa.field("path", pa.string() if are_text else pa.binary())]
    fields += [pa.field(name, pa.string() if labels else pa.float32()) for name, (_, labels) in columns.items()]
    if probs is not None:
        fields.append(pa.field("probs", pa.list_(pa.float32(), len(rows.classes))))

    def batches() -> Iterator[Batch]:
        for first in range(0, len(rows), ROWS):
            part = slice(first, min(first + ROWS, len(rows)))
            names = [rows.names[i] for i in range(part.start, part.stop)]
            cells: dict[str, Any] = {"path": names if are_text else [os.fsencode(name) for name in names]}
            for name, (values, labels) in columns.items():
                cells[name] = [rows.name_of(k) or None for k in values[part].tolist()] if labels else values[part]
            if probs is not None:
                flat = pa.array(probs[part].ravel())
                cells["probs"] = pa.FixedSizeListArray.from_arrays(flat, len(rows.classes))
            yield cells

    return _parquet(pa.schema(fields), batches())


def shards_of(files: Sequence[str]) -> list[slice]:
    """Which images each file of a data set has, so that none has much more than 500 MiB of them."""
    sizes = np.array([each.size for each in on_disk(files)])
    numbers = (np.cumsum(sizes) - sizes) // SHARD_BYTES
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(files)]
    return [slice(start, stop) for start, stop in pairwise(borders)]


def shard_parts(rows: LabeledRows, files: Sequence[str], part: slice) -> Iterator[bytes]:
    """Some images with their labels as Parquet, whose schema says what Hugging Face's `datasets` makes of each column.

    Args:
        rows: labels of all images; one that is unknown is null.
        files: of all images.
        part: those that are written.
    """
    columns = _label_columns(rows)
    features: dict[str, Any] = {"image": {"_type": "Image"}, "path": _value("string")}
    fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("path", pa.string())]
    for name, (_, labels) in columns.items():
        features[name] = _class_label(rows.classes) if labels else _value("float32")
        fields.append((name, pa.int64() if labels else pa.float32()))

    def batches() -> Iterator[Batch]:
        for first in range(part.start, part.stop, GROUP):
            group = slice(first, min(first + GROUP, part.stop))
            names = [_text(rows.names[i]) for i in range(group.start, group.stop)]
            cells: dict[str, Any] = {
                "image": [
                    {"bytes": bytes_of(file), "path": os.path.basename(name)}
                    for file, name in zip(files[group], names, strict=True)
                ],
                "path": names,
            }
            for name, (values, labels) in columns.items():
                known = values[group]
                cells[name] = pa.array(known, mask=known < 0) if labels else known
            yield cells

    return _parquet(_with_features(pa.schema(fields), features), batches())


def given_labels_parts(rows: LabeledRows) -> Iterator[bytes]:
    """Path and class number of rows that all have a label, as Parquet; `datasets` knows the names of the classes.

    With numbers alone, cleanlab would count the classes that have rows instead.
    """
    schema = pa.schema([("path", pa.string()), ("label", pa.int64())])
    features = {"path": _value("string"), "label": _class_label(rows.classes)}
    cells = {"path": [_text(name) for name in rows.names], "label": rows.label}
    return _parquet(_with_features(schema, features), [cells])


def bytes_of(file: str) -> bytes:
    """An image's file, or a member of a tar file, as it is.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(file, Member):
        return read_member(file)
    try:
        with open(file, "rb") as opened:
            return opened.read()
    except OSError as error:
        raise InputError(f"cannot read {file!r}: {error.strerror}") from error


def _label_columns(
    rows: LabeledRows,
) -> dict[str, tuple[Int64[np.ndarray, " N"] | Float64[np.ndarray, " N"], bool]]:
    """The columns that there are beside the path, and whether each of them holds labels."""
    columns = {
        "label": (rows.label, True),
        "confidence": (rows.confidence, False),
        "plain_label": (rows.plain_label, True),
        "plain_confidence": (rows.plain_confidence, False),
    }
    return {name: (values, labels) for name, (values, labels) in columns.items() if values is not None}


def _text(name: str) -> str:
    return name if is_text(name) else os.fsencode(name).decode("utf-8", "replace")


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _class_label(classes: Sequence[str]) -> dict[str, Any]:
    return {"names": [*classes], "_type": "ClassLabel"}


def _with_features(schema: pa.Schema, features: Mapping[str, Any]) -> pa.Schema:
    """The schema with `datasets.Features` in its metadata, where `datasets` writes and looks for them."""
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _parquet(schema: pa.Schema, batches: Iterable[Batch]) -> Iterator[bytes]:
    """A Parquet file in parts, a row group for each batch."""
    written = Written()
    with parquet.ParquetWriter(written, schema) as writer:
        for cells in batches:
            arrays = [
                cells[field.name]
                if isinstance(cells[field.name], pa.Array)
                else pa.array(cells[field.name], field.type)
                for field in schema
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            yield written.taken()
    yield written.taken()
