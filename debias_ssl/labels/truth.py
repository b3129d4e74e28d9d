"""What files say of the rows of a matrix: the labels of some of them, and the shares of the classes among them."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.label_files import read_text
from debias_ssl.system.errors import InputError, reason, shortened
from debias_ssl.system.files import read_array


class RowNumbers(Sequence[str]):
    """Names of rows that have no names: "0", "1", ..., made when they are asked for."""

    def __init__(self, num: int):
        self.num = num

    def __len__(self) -> int:
        return self.num

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        numbers = range(self.num)[index]
        return str(numbers) if isinstance(numbers, int) else [str(number) for number in numbers]


def read_labels(path: Path, names: Sequence[str], classes: tuple[str, ...]) -> Int64[np.ndarray, " N"]:
    """The class numbers of rows, negative where unknown, for `truth` and `tune_on`.

    Args:
        path: CSV with the columns path and label, or row and label; or .npy of N class numbers. In a CSV file labels
            are class names, and beside rows also class numbers.
        names: of the rows, which the column path names.
        classes: in the order of the columns.

    Raises:
        InputError: the file does not fit the rows, or a class is unknown.
    """
    if path.suffix == ".npy":
        return _read_numbers(path, len(names), len(classes))
    rows = csv.DictReader(io.StringIO(read_text(path)))
    columns = rows.fieldnames or []
    key = next((name for name in ("path", "row") if name in columns), None)
    if key is None or "label" not in columns:
        raise InputError(f"{path}: the first line must name the columns path or row, and label; it is {list(columns)}")
    number = {name: k for k, name in enumerate(classes)}
    if key == "row":
        number = {str(k): k for k in range(len(classes))} | number
    place = {name: i for i, name in enumerate(RowNumbers(len(names)) if key == "row" else names)}
    labels, listed = np.full(len(names), UNKNOWN), np.zeros(len(names), dtype=bool)
    for line, row in enumerate(rows, start=2):
        name, label = (row[key] or "").strip(), (row["label"] or "").strip()
        if label and label not in number:
            raise InputError(
                f"{path}: entry {line - 1} has the unknown class {label!r}; the classes are {shortened(classes)}"
            )
        i = place.get(name)
        if i is None and key == "row":
            raise InputError(f"{path}: entry {line - 1} is of row {name!r}, but rows are 0 to {len(names) - 1}")
        if i is None:
            continue
        if listed[i]:
            raise InputError(f"{path} lists {key} {name!r} twice: remove one of them")
        listed[i] = True
        labels[i] = number[label] if label else UNKNOWN
    if not listed.any():
        raise InputError(f"{path} lists none of the rows, such as {names[0]!r}; compare its column {key}")
    return labels


def _read_numbers(path: Path, num_rows: int, num_classes: int) -> Int64[np.ndarray, " N"]:
    try:
        labels = read_array(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    if labels.shape != (num_rows,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"{path} is {labels.dtype} of shape {labels.shape}; {num_rows} class numbers are expected, one a row"
        )
    if labels.max() >= num_classes:
        raise InputError(f"{path}: row {int(labels.argmax())} has class {labels.max()}, but there are {num_classes}")
    return np.maximum(labels.astype(np.int64), UNKNOWN)


def read_target(target_prior: str, classes: tuple[str, ...]) -> Float[Tensor, " C"] | None:
    """The shares that the setting `target_prior` gives to the classes; None where `em` is to estimate them.

    Raises:
        InputError: the file does not give each class a weight.
    """
    if target_prior == "em":
        return None
    if target_prior == "uniform":
        return torch.full((len(classes),), 1 / len(classes), dtype=torch.float64)
    path = Path(target_prior)
    if not path.is_file():
        raise InputError(f"target_prior is {target_prior!r}: neither uniform nor em, nor a file")
    pairs = _read_pairs(path)
    weights, known = dict(pairs), set(classes)
    wrong = [f"has {name!r}, which is not a class" for name in weights if name not in known]
    wrong += [f"does not have the class {name!r}" for name in classes if name not in weights]
    wrong += [f"has {name!r} twice" for name, num in Counter(name for name, _ in pairs).items() if num > 1]
    if wrong:
        raise InputError(f"{path} {wrong[0]}; target_prior needs each of the {len(classes)} classes once")
    for name, weight in pairs:
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"{path}: the weight of {name!r} is {weight!r}, must be a number of at least 0")
    target = torch.tensor([weights[name] for name in classes], dtype=torch.float64)
    if target.sum() == 0:
        raise InputError(f"{path}: all weights are 0; the classes that there are need weights above 0")
    return target / target.sum()


def _read_pairs(path: Path) -> list[tuple[str, Any]]:
    """Classes and weights of a file, as it has them; a weight that is not a number stays text."""
    text = read_text(path)
    if path.suffix == ".json":
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {reason(error)}") from error
        if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
            raise InputError(f"{path} must be an object of class and weight")
        return pairs
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and rows[0] == ["class", "weight"]:
        rows = rows[1:]
    uneven = next((row for row in rows if len(row) != 2), None)
    if uneven is not None:
        raise InputError(f"{path}: {','.join(uneven)!r} is not class,weight")
    return [(name.strip(), _number(weight)) for name, weight in rows]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
