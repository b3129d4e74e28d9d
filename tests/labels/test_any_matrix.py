"""Predictions as anybody may write them: each is read as the matrix that it was made from, or refused in two lines."""

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.system.errors import InputError

NUMBERS = ("logits", "fp16 logits", "integers", "log-probabilities", "probs", "fp16 probs", "2 decimals", "percent")
ODD_NAMES = [
    *("cat", "dog", "Katze", "chat noir", "猫", "a,b", 'say "x"', "x;y", "x|y", "tab\there", "two\nlines", "0", "7"),
    *("label", "row", "name", "confidence", "id", "path", "index", "target", "p", "p_", "True", "nan", "null", "NA"),
    *("2020-01-01", "-", "x_0", "x_1", "a.b", "sum", "Σ", "É", "é", "1st", "00", "none", "e5"),
]
# Columns that are no class: what they are called, and what makes the cell of row i.
NAMES_OF_ROWS = {
    "path": lambda i: f"img/{i}.png",
    "filename": lambda i: f"{i:05d}",
    "Image Path": lambda i: f"ä b, {i}.jpg",
    "id": lambda i: f"{i:05d}",
    "image_id": lambda i: 7 * i + 3,
    "ID": lambda i: str(900 - i),
    "Name": lambda i: f'"{i}"',
}
OTHERS = {
    "split": lambda i: "test" if i % 2 else "train",
    "note": lambda i: "" if i % 3 else f"it's {'x' * (i % 5)}",
    "date": lambda i: "2024-05-01",
    "is_good": lambda i: i % 2 == 0,
    "index": lambda i: i,
    "empty": lambda i: None,
}
# Whole numbers that must not become a class.
TRAPS = {"target": lambda i: i % 3, "fold": lambda i: 1 + i % 5, "width": lambda i: 640 + i}
ORIENTS = ("records", "lines", "split", "columns", "index", "list", "table")


@dataclass(kw_only=True)
class Case:
    """A matrix and how it is written."""

    values: np.ndarray
    numbers: str
    classes: list[str]
    names: dict[str, list[Any]] = field(default_factory=dict)
    others: dict[str, list[Any]] = field(default_factory=dict)
    traps: dict[str, list[Any]] = field(default_factory=dict)
    order: int = 0
    has_prefix: bool = False
    format: str = ".csv"
    style: dict[str, Any] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """All columns, in any order."""
        prefix = "p_" if self.has_prefix else ""
        columns = {f"{prefix}{name}": self.values[:, k] for k, name in enumerate(self.classes)}
        others = {**self.names, **self.others, **self.traps}
        # Classes keep their order among each other.
        places = np.random.default_rng(self.order).permutation(len(columns) + len(others))
        is_class = iter(columns.items())
        is_other = iter(others.items())
        pairs = [next(is_class) if place < len(columns) else next(is_other) for place in places]
        return pd.DataFrame(dict(pairs))


def numbers_of(numbers: str, num_rows: int, num_classes: int, random: np.random.Generator) -> np.ndarray:
    logits = random.normal(0, 3, (num_rows, num_classes))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return {
        "logits": logits,
        "fp16 logits": logits.astype(np.float16).astype(np.float64),
        "integers": np.rint(3 * logits).astype(np.int64),
        "log-probabilities": np.log(probs),
        "probs": probs,
        "fp16 probs": probs.astype(np.float16).astype(np.float64),
        "2 decimals": probs.round(2),
        "percent": (100 * probs).round(1),
    }[numbers]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_rows, num_classes = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    numbers, random = draw(st.sampled_from(NUMBERS)), np.random.default_rng(draw(st.integers(0, 2**20)))
    formats = [".csv", ".csv", ".tsv", ".txt", ".json", ".parquet", ".npy", ".npz"]
    case = Case(
        values=numbers_of(numbers, num_rows, num_classes, random),
        numbers=numbers,
        classes=draw(st.lists(st.sampled_from(ODD_NAMES), min_size=num_classes, max_size=num_classes, unique=True)),
        order=draw(st.integers(0, 2**20)),
        has_prefix=draw(st.booleans()),
        format=draw(st.sampled_from(formats)),
    )
    taken = {name.lower().replace(" ", "_") for name in case.classes}
    tables: list[tuple[dict[str, Any], dict[str, list[Any]], int]] = [
        (NAMES_OF_ROWS, case.names, 1),
        (OTHERS, case.others, 3),
        (TRAPS, case.traps, 1 if draw(st.integers(0, 3)) == 0 else 0),
    ]
    for source, columns, most in tables:
        chosen = draw(st.lists(st.sampled_from([*source]), max_size=most, unique=True))
        columns.update(
            {name: [source[name](i) for i in range(num_rows)] for name in chosen if name.lower() not in taken}
        )
    case.style = {
        "delimiter": draw(st.sampled_from([",", ";", "\t", "|"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        "comma": draw(st.booleans()),
        "sep": draw(st.integers(0, 5)) == 0,
        "index": draw(st.sampled_from(["", "", "numbers", "shifted", "names"])),
        "empty rows": draw(st.integers(0, 5)) == 0,
        "digits": draw(st.sampled_from(["", "%.9g", "%.8f", "%.8e"])),
        "orient": draw(st.sampled_from(ORIENTS)),
        "dtype": draw(st.sampled_from(["f2", "f4", "f8", ">f4", ">f8"])),
        "fortran": draw(st.booleans()),
    }
    return case


def write_text(case: Case, path: Path) -> None:
    frame, style = case.frame(), case.style
    delimiter = "\t" if case.format == ".tsv" else style["delimiter"]
    comma = style["comma"] and delimiter != ","

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            text = style["digits"] % value if style["digits"] else repr(value)
            return text.replace(".", ",") if comma else text
        return "" if value is None else value

    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=style["end"], quoting=style["quoting"])
    if style["sep"] and case.format == ".csv":
        text.write(f"sep={delimiter}{style['end']}")
    rows = [[cell(value) for value in row] for row in frame.astype(object).itertuples(index=False)]
    index = indexes(case)
    head = [*frame.columns]
    if index:
        head, rows = ["", *head], [[name, *row] for name, row in zip(index, rows, strict=True)]
    writer.writerow(head)
    writer.writerows(rows)
    if style["empty rows"]:
        text.write((delimiter * (len(head) - 1) + style["end"]) * 2)
    path.write_bytes(text.getvalue().encode(style["encoding"]))


def indexes(case: Case) -> list[Any]:
    """What an index without a name holds."""
    number = len(case.values)
    return {
        "": [],
        "numbers": [*range(number)],
        "shifted": [*range(5, 5 + number)],
        "names": [f"x/{i}.jpg" for i in range(number)],
    }[case.style["index"]]


def write_json(case: Case, path: Path) -> None:
    frame, orient = case.frame(), case.style["orient"]
    if orient == "list":
        path.write_text(json.dumps({name: frame[name].tolist() for name in frame}), encoding="utf-8")
        return
    frame = frame.rename_axis(index="no column")
    lines = {"lines": True, "orient": "records"}
    frame.to_json(path, double_precision=15, **(lines if orient == "lines" else {"orient": orient}))


def write_parquet(case: Case, path: Path) -> None:
    frame = case.frame()
    if index := indexes(case):
        frame.index = pd.Index(index)
    frame.to_parquet(path)


def write_array(case: Case, path: Path) -> None:
    values = case.values.astype(case.style["dtype"])
    values = np.asfortranarray(values) if case.style["fortran"] else values
    (np.save if case.format == ".npy" else np.savez)(path, values)


def check(case: Case, folder: Path) -> bool:
    """Whether a case was read, and then rightly; otherwise it was refused."""
    path = folder / f"p{case.format}"
    writers = {".json": write_json, ".parquet": write_parquet, ".npy": write_array, ".npz": write_array}
    writers.get(case.format, write_text)(case, path)
    is_array = case.format in (".npy", ".npz")
    try:
        found = read_predictions(path)
    except InputError as error:
        assert 1 <= len(str(error).splitlines()) <= 2, error
        return False
    assert found.values.shape == case.values.shape, found.told()
    expected = case.values.astype(case.style["dtype"]) if is_array else case.values
    np.testing.assert_allclose(found.values, expected, rtol=2e-6, atol=1e-7)
    numbered = [str(k) for k in range(len(case.classes))]
    assert [*found.classes] == (numbered if is_array else case.classes), found.told()
    is_probs = case.numbers in ("probs", "fp16 probs", "2 decimals", "percent")
    assert found.kind == ("probs" if is_probs else "logits"), found.told()
    if is_probs:
        torch.testing.assert_close(
            torch.cat([*found]).softmax(1).double(),
            torch.from_numpy(case.values / case.values.sum(1, keepdims=True)),
            rtol=3e-3,
            atol=1e-6,
        )
    if not is_array:
        assert [*found.names] == names_of(case), found.told()
        for name in [*case.others, *case.traps]:
            assert name in found.roles
    return True


def names_of(case: Case) -> list[str]:
    numbers = [str(i) for i in range(len(case.values))]
    if case.names:
        return [str(value) for value in next(iter(case.names.values()))]
    has_index = case.format in (".csv", ".tsv", ".txt", ".parquet")
    if "index" in case.others:
        return numbers
    return [str(value) for value in indexes(case)] if has_index and case.style["index"] else numbers


def run_cases(number: int, folder: Path) -> tuple[int, int]:
    counts = [0, 0]

    @seed(7)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(case=cases())
    def each(case: Case) -> None:
        counts[check(case, folder)] += 1

    each()
    return counts[0], counts[1]


def test_any_predictions_are_read_rightly_or_refused(tmp_path: Path):
    num_refused, num_read = run_cases(150, tmp_path)
    assert num_refused < num_read / 2


@pytest.mark.slow
def test_two_thousand_predictions_are_read_rightly_or_refused(tmp_path: Path):
    num_refused, num_read = run_cases(2000, tmp_path)
    assert num_read + num_refused >= 2000 and num_refused < num_read / 2
