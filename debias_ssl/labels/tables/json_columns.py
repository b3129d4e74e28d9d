"""Reads columns of JSON files of predictions: a list of rows, or a table as pandas writes it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from debias_ssl.labels.tables.columns import Column
from debias_ssl.labels.tables.text_columns import is_unnamed
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.tables import read_text

FORMS = "a list of rows (lists, or records of column and value), or an object that pandas wrote"


def read_json_columns(path: Path) -> list[Column] | np.ndarray:
    """The columns of a .json or .jsonl file; or a matrix, where rows are lists.

    Raises:
        InputError: it cannot be read, or its rows do not fit together.
    """
    content, index = _parsed(path), None
    if isinstance(content, dict):
        content, index = _rows_of(content, path)
    if isinstance(content, dict):
        return _columns(content, index, path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} has no rows; it must be {FORMS}")
    if all(isinstance(row, dict) for row in content):
        names = list(dict.fromkeys(name for row in content for name in row))
        return _columns({name: [row.get(name) for row in content] for name in names}, index, path)
    return _matrix(content, path)


def _parsed(path: Path) -> Any:
    text = read_text(path)
    if path.suffix.lower() != ".jsonl":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            # Records a line are often called .json too.
            if not text.lstrip().startswith("{") or len(lines := text.split("\n", 2)) < 2 or not lines[1].strip():
                raise InputError(f"{path} is not JSON: {reason(error)}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: it is not JSON: {reason(error)}") from error
    return rows


def _rows_of(content: dict[str, Any], path: Path) -> tuple[Any, list[Any] | None]:
    """Columns, or a list of records, of an object, and the index, if there is one."""
    if isinstance(content.get("data"), list) and isinstance(content.get("columns"), list):
        names, rows = [str(name) for name in content["columns"]], content["data"]
        uneven = next((i for i, row in enumerate(rows) if not isinstance(row, list) or len(row) != len(names)), None)
        if uneven is not None or len(set(names)) < len(names):
            what = "has two columns of one name" if uneven is None else f"row {uneven} (from 0) of data is not one"
            raise InputError(f"{path}: {what}, of the {len(names)} columns {', '.join(names[:10])}")
        return {name: [row[k] for row in rows] for k, name in enumerate(names)}, content.get("index")
    if isinstance(content.get("data"), list) and "schema" in content:
        return content["data"], None
    values = list(content.values())
    if values and not any(isinstance(value, list | dict) for value in values):
        return [content], None
    if values and all(isinstance(value, list) for value in values):
        return content, None
    if not values or not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path} must be {FORMS}; pandas' to_json(orient='records') writes one")
    return _of_objects(content, path)


def _of_objects(content: Mapping[str, Mapping[str, Any]], path: Path) -> tuple[dict[str, list[Any]], list[str]]:
    """Objects in an object: columns of rows, which pandas writes, or rows of columns (orient='index').

    Rows that pandas numbers are told by their numbers; else columns are what has values of one kind.
    """
    outer = list(content)
    inner = list(dict.fromkeys(name for values in content.values() for name in values))
    if any(len(values) != len(inner) for values in content.values()):
        raise InputError(f"{path}: its objects do not have the same keys; to_json(orient='records') writes rows")
    are_rows = [keys == [str(i) for i in range(len(keys))] for keys in (outer, inner)]
    if are_rows[0] == are_rows[1]:
        kinds = [
            all(
                len({_kind(value) for value in values}) == 1
                for values in ([*each.values()] for each in content.values())
            )
        ]
        kinds.append(all(len({_kind(each[name]) for each in content.values()}) == 1 for name in inner))
        # Of numbers alone, what looks like a file is a row.
        files = [sum("." in key or "/" in key for key in keys) > len(keys) / 2 for keys in (outer, inner)]
        if kinds[0] == kinds[1] and files[0] == files[1]:
            raise InputError(f"{path}: rows and columns look the same; write the file with to_json(orient='records')")
        are_rows = [files[0], files[1]] if kinds[0] == kinds[1] else [kinds[1], kinds[0]]
    if are_rows[1]:
        return {name: [content[name][key] for key in inner] for name in outer}, inner
    return {name: [content[key][name] for key in outer] for name in inner}, outer


def _kind(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _columns(content: Mapping[str, list[Any]], index: Sequence[Any] | None, path: Path) -> list[Column]:
    lengths = {name: len(values) for name, values in content.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"{path}: its columns have {', '.join(map(str, sorted(set(lengths.values()))))} rows")
    columns = [] if index is None else [Column(name="", values=_array(list(index)), is_index=True)]
    for i, (name, values) in enumerate(content.items()):
        is_index = i == 0 and is_unnamed(name)
        columns.append(Column(name="" if is_unnamed(name) else name, values=_array(values), is_index=is_index))
    return columns


def _array(values: list[Any]) -> pa.Array:
    """Values of one kind; others as text."""
    kinds = {_kind(value) for value in values if value is not None}
    try:
        if kinds == {"number"} and any(isinstance(value, float) for value in values):
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
        if len(kinds) <= 1:
            return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    text = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array([None if value is None else _bytes(value) for value in text], pa.binary())


def _bytes(text: str) -> bytes:
    """Text of names of files that are no text, as Python has them, or of escapes that are none."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def _matrix(rows: list[Any], path: Path) -> np.ndarray:
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            what = f"{len(row)} entries" if isinstance(row, list) else f"{json.dumps(row)[:30]} and no entries"
            raise InputError(f"{path}: row {i} (from 0) has {what}, the first has {width}; it must be {FORMS}")
        wrong = next((value for value in row if _kind(value) not in ("number", "NoneType")), None)
        if wrong is not None:
            raise InputError(f"{path}: row {i} (from 0) has {json.dumps(wrong)[:30]}, which is not a number")
    return np.array(rows, dtype=np.float64)
