"""Reads matrix files, with the names of rows and columns that they contain."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from debias_ssl.data.sources.label_files import FULL, TOP5, table_beside
from debias_ssl.labels.tables.column_roles import find_roles
from debias_ssl.labels.tables.columns import Column, listed, pc
from debias_ssl.labels.tables.json_columns import read_json_columns
from debias_ssl.labels.tables.ranked_columns import matrix_of_groups
from debias_ssl.labels.tables.text_columns import is_unnamed, read_text_columns
from debias_ssl.labels.tables.truth import are_numbers
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.outputs import check_whole


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The contents of a file, not yet checked."""

    values: np.ndarray
    classes: tuple[str, ...] | None = None
    """Names of the columns, where the file has them."""
    names: Sequence[str] | None = None
    """Names of the rows, likewise."""
    of_classes: str = ""
    """Where the names of the classes are from, for people."""
    of_rows: str = ""
    """Where the names of the rows are from, and what was left out."""


def read_matrix(path: Path, asked: Sequence[str] | None = None, named: Sequence[str] | None = None) -> Matrix:
    """Reads a file by its suffix; a .npy file stays on the disk.

    Args:
        path: the file.
        asked: names of the columns of a table that are classes; None finds them.
        named: names of classes, which may be those of columns.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: name a file")
    check_whole(path)
    if path.name in TOP5:
        raise InputError(f"{str(path)!r} has only the five largest probabilities of each row; for all of them, {FULL}")
    if not path.is_file():
        mend = f"; {FULL}" if path.name == "probs.npy" and table_beside(path).is_file() else ""
        raise InputError(f"there is no file {str(path)!r}{mend}")
    arrays = {".npy": _read_npy, ".npz": _read_npz}
    tables: dict[str, Callable[[Path], list[Column] | np.ndarray]] = {
        **dict.fromkeys((".csv", ".tsv", ".txt"), partial(read_text_columns, classes={*(asked or ()), *(named or ())})),
        **dict.fromkeys((".json", ".jsonl"), read_json_columns),
        ".parquet": _read_parquet,
    }
    suffix = path.suffix.lower()
    if suffix not in arrays and suffix not in tables:
        raise InputError(f"{str(path)!r} is none of {', '.join([*arrays, *tables])}; numpy.save writes .npy")
    content = arrays[suffix](path) if suffix in arrays else tables[suffix](path)
    if isinstance(content, np.ndarray):
        if asked is not None:
            raise InputError(
                f"--columns names columns of a table, but the columns of {path} have no names: leave it out"
            )
        return Matrix(values=content)
    return _of_columns(content, path, asked, named)


def _read_npy(path: Path) -> np.ndarray:
    try:
        return read_array(path, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error


def _read_npz(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it does not hold an array")
    # NumPy and zipfile raise many kinds of exceptions for damaged files.
    except (OSError, ValueError, EOFError, AttributeError, SyntaxError, TokenError, BadZipFile, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _of_archive(arrays, path)


def _of_archive(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    names = [name for name in ("logits", "probs") if name in arrays]
    names = names or [name for name, array in arrays.items() if array.ndim == 2]
    if len(names) != 1:
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; one matrix is needed, or one named logits or probs"
        )
    return arrays[names[0]]


def _read_parquet(path: Path) -> list[Column]:
    try:
        table = parquet.ParquetFile(path).read()
        pandas = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    try:
        names = table.column_names
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    # pandas writes no column for an index that numbers the rows.
    indexes = {index for index in pandas.get("index_columns", []) if isinstance(index, str)}
    return [
        Column(
            name="" if is_unnamed(name) else name,
            values=values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values,
            is_index=name in indexes or is_unnamed(name),
        )
        for name, values in zip(names, table.columns, strict=True)
    ]


def _of_columns(columns: list[Column], path: Path, asked: Sequence[str] | None, named: Sequence[str] | None) -> Matrix:
    """The classes' columns of a table, and the column that names its rows."""
    twice = next((name for name, num in Counter(c.name for c in columns).items() if name and num > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns {twice!r}; names of classes must differ")
    if not columns or not len(columns[0].values):
        raise InputError(f"{path} has 0 rows; at least one row and two classes are needed")
    ranked = matrix_of_groups(columns, path) if asked is None else None
    rest = [c for c in columns if ranked is None or c not in ranked.columns]
    roles = find_roles(columns if ranked is None else rest, path, asked if ranked is None else (), named)
    names, told = (None, "their numbers") if roles.names is None else _row_names(roles.names, path)
    left_out = f"; left out: {listed(roles.left_out, True)}" if roles.left_out else ""
    if ranked is not None:
        values, classes, of_classes = ranked.values, ranked.classes, ranked.told
    else:
        values = np.empty((len(columns[0].values), len(roles.classes)), dtype=np.float32)
        for k, column in enumerate(roles.classes):
            values[:, k] = column.numbers()
        classes, of_classes = roles.class_names, f"columns {listed(roles.classes)}"
    return Matrix(
        values=values, classes=classes, names=names, of_classes=of_classes, of_rows=f"names of rows: {told}{left_out}"
    )


def _row_names(column: Column, path: Path) -> tuple[Sequence[str] | None, str]:
    """The names, or None where they are the rows' numbers, and where they are from."""
    names, told = column.texts(path), f"column {column.called}"
    if (doubled := len(names) - pc.count_distinct(names.arrow()).as_py()) > 0:
        told += f" ({doubled:,} of {len(names):,} are there before)"
    return (None if are_numbers(names) else names), told
