"""Files of matrices: .npy, .npz, .csv and .parquet, with what they say of rows and columns."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.outputs import check_whole

# Columns of a table that are no class: those of labels.csv, and names of rows.
NO_CLASSES = {"path", "row", "name", "label", "confidence", "top2_gap", "plain_label", "plain_confidence"}
# Before the names of classes in the columns of `debias-ssl predict`.
PREFIX = "p_"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a file holds, not yet checked."""

    values: np.ndarray
    classes: tuple[str, ...] | None
    """Names of the columns, where the file has them."""
    names: Sequence[str] | None = None
    """Names of the rows, likewise."""


def read_matrix(path: Path) -> Matrix:
    """Reads a file by its suffix; a .npy file stays on the disk.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: name a file")
    check_whole(path)
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}")
    readers = {".npy": _read_npy, ".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"{str(path)!r} is none of {', '.join(readers)}; numpy.save writes .npy")
    return readers[path.suffix.lower()](path)


def _read_npy(path: Path) -> Matrix:
    try:
        values = read_array(path, "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return Matrix(values=values, classes=None)


def _read_npz(path: Path) -> Matrix:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it does not hold an array")
    # NumPy and zipfile raise nearly anything for files that are damaged.
    except (OSError, ValueError, EOFError, AttributeError, SyntaxError, TokenError, BadZipFile, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return Matrix(values=_of_archive(arrays, path), classes=None)


def _of_archive(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    names = [name for name in ("logits", "probs") if name in arrays]
    names = names or [name for name, array in arrays.items() if array.ndim == 2]
    if len(names) != 1:
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'}; one matrix is needed, or one named logits or probs"
        )
    return arrays[names[0]]


def _read_csv(path: Path) -> Matrix:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        head = next(csv.reader(file), [])
    numbered = [str(k) for k in range(len(head))]
    # A line 0,1,2,... are the names that pandas gives to columns without any.
    has_names = head == numbered or not all(map(_is_number, head))
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=None if has_names else numbered),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        )
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _from_table(table, path)


def _read_parquet(path: Path) -> Matrix:
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return _from_table(table, path)


def _from_table(table: Any, path: Path) -> Matrix:
    """The classes' columns of a table, and the column that names its rows."""
    try:
        table.column_names  # noqa: B018 - pyarrow decodes them here
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    blank = next((i for i, name in enumerate(table.column_names) if not name.strip()), None)
    if blank is not None:
        raise InputError(f"{path}: column {blank + 1} has no name; pandas leaves its index out by index=False")
    twice = next((name for name, num in Counter(table.column_names).items() if num > 1), None)
    if twice is not None:
        raise InputError(f"{path} has two columns {twice!r}; names of classes must differ")
    columns = [name for name in table.column_names if name not in NO_CLASSES]
    prefixed = [name for name in columns if name.startswith(PREFIX)]
    has_prefix = len(prefixed) > 1
    classes, arrays = [], []
    for name in prefixed if has_prefix else columns:
        array = table[name].to_numpy()
        if array.dtype.kind in "fiu":
            classes.append(name.removeprefix(PREFIX) if has_prefix else name)
            arrays.append(array.astype(np.float32))
        elif has_prefix or any(_is_number(str(value)) for value in array):
            raise InputError(f"{path}: column {name!r} has text among its numbers; fix it, or remove the column")
    if table.num_rows and len(classes) < 2:
        raise InputError(
            f"{path} has {len(classes)} columns of numbers, {', '.join(map(repr, table.column_names))[:200]}; at least "
            "two classes are needed, divided by commas, with decimal points"
        )
    key = next((name for name in ("path", "name") if name in table.column_names), None)
    return Matrix(
        values=np.stack(arrays, axis=1) if arrays else np.zeros((table.num_rows, 0), dtype=np.float32),
        classes=tuple(classes),
        names=None if key is None else [str(name) for name in table[key].to_pylist()],
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
