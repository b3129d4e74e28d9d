"""What stands beside a matrix in a folder of labels is checked against it, row by row."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from jobs import refused, rows_of

from debias_ssl.debias import main as debias
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.output.folder import outputs_in

CLASSES, NUM = ["ant", "bee", "cat", "dog"], 120


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    """A folder of labels of 120 images, in no order of their names."""
    random = np.random.default_rng(0)
    values = random.normal(0, 2, (NUM, 4))
    with (tmp_path / "p.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", *CLASSES])
        rows.writerows([f"{i:03d}.jpg", *values[i]] for i in random.permutation(NUM))
    debias(["--predictions", str(tmp_path / "p.csv"), "--out", str(tmp_path / "o")])
    return tmp_path / "o"


def rewritten(folder: Path, rows: list[dict[str, str]], delimiter: str = ",") -> None:
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def test_names_of_rows_are_those_of_the_labels_beside(labeled: Path, tmp_path: Path, capsys):
    debias(["--predictions", str(labeled / "probs.npy"), "--prior", "none", "--out", str(tmp_path / "again")])
    before, after = rows_of(labeled), rows_of(tmp_path / "again")
    assert [(row["path"], row["label"]) for row in after] == [(row["path"], row["label"]) for row in before]
    assert f"classes: {labeled / 'classes.json'}; names of rows: labels.csv beside it" in capsys.readouterr().out
    # As a spreadsheet may save it.
    comma = [{name: cell if name == "path" else cell.replace(".", ",") for name, cell in row.items()} for row in before]
    rewritten(labeled, comma, ";")
    assert [*read_predictions(labeled / "probs.npy").names] == [row["path"] for row in before]


def test_labels_that_were_sorted_are_refused_with_the_row(labeled: Path, tmp_path: Path, capsys):
    """87 of 120 images had another image's probabilities."""
    rows = rows_of(labeled)
    rewritten(labeled, sorted(rows, key=lambda row: row["path"]))
    first = next(
        i for i, (a, b) in enumerate(zip(rows, sorted(rows, key=lambda row: row["path"]), strict=True)) if a != b
    )
    arguments = ["--predictions", str(labeled / "probs.npy"), "--out", str(tmp_path / "again")]
    message = refused(debias, arguments, capsys)
    assert f"labels.csv, line {first + 2} says" in message and f"row {first} (from 0)" in message
    assert "in another order" in message
    # Two rows of one label with other confidences.
    i = next(i for i in range(1, NUM) if rows[i]["label"] == rows[0]["label"])
    rows[0], rows[i] = rows[i], rows[0]
    rewritten(labeled, rows)
    assert "line 2 says" in refused(debias, arguments, capsys)
    rewritten(labeled, rows[1:])
    assert "has 119 rows" in refused(debias, arguments, capsys)


def test_ties_and_roundings_of_float16_are_no_difference(tmp_path: Path):
    random = np.random.default_rng(0)
    # Nearly equal classes: in float16 many rows have their largest number twice.
    logits = 1e-4 * random.normal(size=(2000, 3))
    np.save(tmp_path / "p.npy", logits)
    debias(["--predictions", str(tmp_path / "p.npy"), "--out", str(tmp_path / "o"), "--prior", "none"])
    # As another program may round them; this package keeps the label ahead.
    probs = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float16)
    np.save(tmp_path / "o" / "probs.npy", probs)
    assert ((probs == probs.max(1, keepdims=True)).sum(1) > 1).mean() > 0.3
    assert read_predictions(tmp_path / "o" / "probs.npy").names[3] == "3"


@pytest.mark.parametrize("names", [["bee", "ant", "cat", "dog"], ["ant", "bee", "cat", "eel"], ["ant", "bee", "cat"]])
def test_classes_that_contradict_those_beside_are_refused(names: list[str], labeled: Path, tmp_path: Path, capsys):
    """In another order they permuted all labels."""
    (tmp_path / "names.txt").write_text("\n".join(names))
    flags = ["--predictions", str(labeled / "probs.npy"), "--classes", str(tmp_path / "names.txt")]
    message = refused(debias, [*flags, "--out", str(tmp_path / "again")], capsys)
    assert str(labeled / "classes.json") in message and "leave out --classes" in message
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    assert [*read_predictions(labeled / "probs.npy", classes_file=tmp_path / "names.txt").classes] == CLASSES


def test_a_folder_that_was_being_replaced_is_refused(labeled: Path, tmp_path: Path, capsys):
    outputs_in(labeled).mark_incomplete()
    # What says that labels are whole goes first.
    (labeled / "summary.json").unlink()
    flags = ["--predictions", str(labeled / "probs.npy"), "--out", str(tmp_path / "again")]
    message = refused(debias, flags, capsys)
    assert "was interrupted" in message and str(labeled) in message


def test_labels_of_people_beside_a_matrix_are_not_its_own(tmp_path: Path):
    np.save(tmp_path / "probs.npy", np.array([[1.5, 0.5], [2.5, 1.0]]))
    (tmp_path / "labels.csv").write_text("path,label\nb.jpg,ant\na.jpg,bee\n")
    (tmp_path / "classes.json").write_text(json.dumps(["ant", "bee"]))
    assert [*read_predictions(tmp_path / "probs.npy").names] == ["0", "1"]
