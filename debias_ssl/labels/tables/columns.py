"""Columns of a table, and the kind of values of each column."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from pyarrow import compute

from debias_ssl.system import tables
from debias_ssl.system.errors import InputError
from debias_ssl.system.texts import BLOCK, Texts, texts_of

# The module creates most of its functions during the import, so type checkers do not know them.
pc: Any = compute
# A number in text, with a point or a comma.
NUMBER = r"[ \t]*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?[ \t]*"
# A digit after its point that is not 0, or a negative power of ten.
FRACTION = r"^[ \t]*[+-]?(\d*[.,]\d*[1-9]\d*([eE][+-]?\d+)?|\d+([.,]\d*)?[eE]-\d+)[ \t]*$"
# Usual names of columns that name rows, without blanks and underscores: the first of them that is there does.
ROWS = (*tables.PATHS, *filter(str.isalpha, tables.ROWS), "level0")


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A column of a table, as in its file."""

    name: str
    """Blank where it has none."""
    values: Any = field(repr=False)
    """An array of pyarrow's."""
    is_index: bool = False
    """Whether the file says that it numbers or names the rows."""

    @cached_property
    def kind(self) -> str:
        """`integers`, `whole numbers` (with a decimal point), `fractions`, `text`, `lists`, `empty`, or another."""
        type_ = self.values.type
        if self.values.null_count == len(self.values):
            return "empty"
        if is_text(type_):
            return "text" if pc.any(pc.greater(pc.binary_length(self.values), 0)).as_py() else "empty"
        if pa.types.is_integer(type_):
            return "integers"
        if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
            numbers = self._doubles()
            numbers = numbers[np.isfinite(numbers)]
            # A few rows of most columns are enough to see it.
            is_whole = (numbers[:100] == np.rint(numbers[:100])).all() and (numbers == np.rint(numbers)).all()
            return "whole numbers" if is_whole else "fractions"
        if is_list(type_):
            return "lists"
        if pa.types.is_boolean(type_):
            return "true or false"
        return "dates" if pa.types.is_temporal(type_) else "other values"

    @property
    def key(self) -> str:
        """The name as it is compared with usual names."""
        return re.sub(r"[\s_.-]", "", self.name).lower()

    @property
    def is_number(self) -> bool:
        return self.kind in ("integers", "whole numbers", "fractions")

    @property
    def called(self) -> str:
        """The name on one line, for people."""
        return (self.name if self.name.isprintable() else repr(self.name)) or "(no name)"

    def numbers(self) -> Float32[np.ndarray, " N"]:
        """The values; nan where there is none."""
        # A number that is too large becomes infinite, and the message says so.
        with np.errstate(over="ignore"):
            return self._doubles().astype(np.float32)

    def _doubles(self) -> np.ndarray:
        values = self.values.cast(pa.float64()) if pa.types.is_decimal(self.values.type) else self.values
        return values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy()

    @property
    def is_within_0_and_1(self) -> bool:
        numbers = self.numbers()
        return bool(np.nanmin(numbers) >= 0 and np.nanmax(numbers) <= 1)

    def share_of_numbers(self) -> float:
        return self.share_of(f"^{NUMBER}$")

    def share_of(self, pattern: str) -> float:
        """How many of the filled cells of a column of text fit a pattern."""
        filled = pc.sum(pc.greater(pc.binary_length(self.values), 0)).as_py()
        return (pc.sum(pc.match_substring_regex(self.values, pattern)).as_py() or 0) / max(filled or 0, 1)

    def texts(self, path: Path) -> Texts:
        """The values as text: whole numbers without a point, bytes that are no UTF-8 as surrogates.

        Raises:
            InputError: a value is missing, or cannot be written.
        """
        return texts_of(self._texts(path))

    def _texts(self, path: Path) -> Iterator[str]:
        for first in range(0, len(self.values), BLOCK):
            for i, value in enumerate(map(_text, self.values.slice(first, BLOCK).to_pylist()), first):
                if not value.strip():
                    raise InputError(f"{path}: row {i} (from 0) has no name in column {self.called!r}; fill it in")
                if not value.isascii():
                    try:
                        value.encode(errors="surrogateescape")
                    except UnicodeEncodeError as error:
                        raise InputError(f"{path}: the name of row {i} (from 0) is no text; fix it") from error
                yield value


def is_text(type_: Any) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(type_) for is_kind in kinds)


def is_list(type_: Any) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(type_) for is_kind in kinds)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def listed(columns: Sequence[Column], with_kinds: bool = False) -> str:
    """Names of the first of some columns, for people."""
    names = [f"{column.called} ({column.kind})" if with_kinds else column.called for column in columns[:10]]
    return ", ".join(names) + (f" and {len(columns) - 10:,} more" if len(columns) > 10 else "")
