"""The formats of labels: the probabilities of all classes, of five or of none, and tables in CSV or Parquet."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import refused, rows_of
from killing import killed_after
from pyarrow import parquet

from debias_ssl.data.sources.folder import is_table, labeled_files
from debias_ssl.data.sources.label_files import read_confidence, read_probs
from debias_ssl.debias import main
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.output.label_table import _texts
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import UNFINISHED

CLASSES = ["ant", "bee, the", "cat", "dog", "eel", "fox", 'gnu "g"']
NUM = 60


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds of drawing."""
    monkeypatch.setattr(importlib.import_module("debias_ssl.debias"), "_page", lambda *_: "a page")


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Logits of rows with names, of which some are hardly text."""
    logits = np.random.default_rng(0).normal(size=(NUM, len(CLASSES))).round(4)
    table = pd.DataFrame(logits, columns=pd.Index(CLASSES))
    table.insert(0, "path", pd.Series([f"a,{i}.png" for i in range(NUM)]))
    table.to_csv(tmp_path / "p.csv", index=False)
    return tmp_path / "p.csv"


def run(predictions: Path, name: str, *flags: str) -> Path:
    out = predictions.parent / name
    main(["--predictions", str(predictions), "--out", str(out), *flags])
    return out


def names_in(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_a_parquet_table_has_the_cells_of_csv_with_their_types(predictions: Path, monkeypatch):
    # Several row groups.
    monkeypatch.setattr("debias_ssl.labels.output.label_table.ROWS", 25)
    of_csv = rows_of(run(predictions, "csv"))
    out = run(predictions, "parquet", "--table", "parquet")
    assert parquet.ParquetFile(out / "labels.parquet").num_row_groups == 3
    table = pd.read_parquet(out / "labels.parquet")
    assert [*table.columns] == [*of_csv[0]] and len(table) == NUM
    for name in ("path", "label", "plain_label"):
        assert [*table[name]] == [row[name] for row in of_csv]
    for name in ("confidence", "top2_gap", "plain_confidence"):
        assert table[name].dtype == np.float32
        assert [f"{value:.6f}" for value in table[name]] == [row[name] for row in of_csv]
    np.testing.assert_array_equal(table["confidence"], [float(x) for x in table["confidence"]])
    np.save(predictions.parent / "m.npy", pd.read_csv(predictions)[CLASSES].to_numpy())
    of_numbers = pd.read_parquet(run(predictions.parent / "m.npy", "rows", "--table", "parquet") / "labels.parquet")
    assert of_numbers["row"].dtype == np.int64 and [*of_numbers["row"]] == [*range(NUM)]


def test_names_that_are_no_text_stay_as_they_are(predictions: Path):
    data = predictions.read_bytes().replace(b'"a,7.png"', b'"a\xff,7.png"')
    predictions.write_bytes(data)
    out = run(predictions, "o", "--table", "parquet")
    assert parquet.read_table(out / "labels.parquet")["path"][7].as_py() == b"a\xff,7.png"
    assert read_predictions(out / "probs.npy").names[7] == "a\udcff,7.png"


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_whatever_reads_a_folder_reads_both_tables(table: str, predictions: Path, capsys):
    out = run(predictions, "o", "--table", table)
    labels = [CLASSES[k] for k in np.load(out / "probs.npy").argmax(1)]
    file = out / f"labels.{table}"
    # As names of a matrix, as a truth, as labels to tune on, as images to train on, and as their probabilities.
    again = read_predictions(out / "probs.npy")
    assert again.names[:2] == ["a,0.png", "a,1.png"] and f"labels.{table} beside it" in again.told()
    capsys.readouterr()
    further = run(predictions, "again", "--truth", str(file), "--tune_on", str(file), "--prior", "none")
    assert f"{NUM} of {NUM} rows of {file} matched" in capsys.readouterr().out
    assert json.loads((further / "summary.json").read_text())["num_tuned_on"] == NUM
    for i in range(NUM):
        (out / f"a,{i}.png").touch()
    found = labeled_files(str(file), None, "data.labeled")
    assert found.labels == labels and [Path(path).name for path in found.paths[:2]] == ["a,0.png", "a,1.png"]
    assert is_table(file) and read_confidence(file).tolist() == pytest.approx(np.load(out / "probs.npy").max(1), 1e-3)
    names = [str(out / f"a,{i}.png") for i in range(NUM)]
    given = read_probs(out, None, names, tuple(CLASSES))
    assert [CLASSES[k] for k in given.argmax(1)] == labels


def test_five_probabilities_of_each_row_are_those_of_all(predictions: Path):
    full = np.load(run(predictions, "full") / "probs.npy")
    out = run(predictions, "five", "--probs", "top5")
    probs, classes = np.load(out / "top5_probs.npy"), np.load(out / "top5_classes.npy")
    assert (probs.dtype, classes.dtype) == (np.float16, np.int32) and probs.shape == classes.shape == (NUM, 5)
    np.testing.assert_array_equal(probs, -np.sort(-full, axis=1)[:, :5])
    np.testing.assert_array_equal(np.take_along_axis(full, classes, 1), probs)
    assert [CLASSES[k] for k in classes[:, 0]] == [row["label"] for row in rows_of(out)]
    assert "probs.npy" not in names_in(out)


def test_fewer_classes_than_five_are_all_there(tmp_path: Path):
    np.save(tmp_path / "m.npy", np.random.default_rng(0).normal(size=(9, 3)))
    out = run(tmp_path / "m.npy", "o", "--probs", "top5")
    assert np.load(out / "top5_classes.npy").shape == (9, 3)


def test_another_format_leaves_no_file_of_the_one_before(predictions: Path):
    always = {"classes.json", "summary.json", "report.html", "written.json"}
    cases: list[tuple[list[str], set[str]]] = [
        ([], {"labels.csv", "probs.npy"}),
        (["--probs", "top5", "--table", "parquet"], {"labels.parquet", "top5_probs.npy", "top5_classes.npy"}),
        (["--probs", "none"], {"labels.csv"}),
        (["--table", "parquet"], {"labels.parquet", "probs.npy"}),
    ]
    for flags, names in cases:
        out = run(predictions, "o", *flags, "--overwrite")
        assert names_in(out) == always | names


def test_a_file_of_somebody_else_is_refused(predictions: Path, capsys):
    out = predictions.parent / "o"
    out.mkdir()
    (out / "labels.parquet").write_text("mine")
    said = refused(main, ["--predictions", str(predictions), "--out", str(out), "--overwrite"], capsys)
    assert "holds labels.parquet, which" in said and (out / "labels.parquet").read_text() == "mine"


@pytest.mark.parametrize("probs", ["top5", "none"])
def test_readers_of_all_probabilities_say_how_they_come_to_be_there(probs: str, predictions: Path, capsys):
    out = run(predictions, "o", "--probs", probs)
    said = refused(main, ["--predictions", str(out / "probs.npy"), "--out", str(out.parent / "again")], capsys)
    assert "there is no file" in said and "run that job again with --probs full" in said
    with pytest.raises(InputError, match=r"has no probs\.npy.*run that job again with --probs full"):
        read_probs(out, None, ["x"], tuple(CLASSES))
    if probs == "top5":
        # Of five classes it would look like a matrix.
        said = refused(main, ["--predictions", str(out / "top5_probs.npy"), "--out", str(out.parent / "b")], capsys)
        assert "five largest probabilities of each row" in said and "--probs full" in said


def test_whoever_is_killed_leaves_no_half_table(predictions: Path):
    flags = ["--table", "parquet", "--probs", "top5"]
    before = (run(predictions, "o", *flags) / "labels.parquet").read_bytes()
    table, number, kills, is_killed = predictions.parent / "o" / "labels.parquet", 0, 0, True
    while is_killed:
        is_killed = killed_after(number, lambda: run(predictions, "o", *flags, "--overwrite"))
        assert not table.exists() or table.read_bytes() == before
        number, kills = number + 2, kills + is_killed
    assert kills > 5 and names_in(table.parent) == {
        "labels.parquet",
        "top5_probs.npy",
        "top5_classes.npy",
        "classes.json",
        "summary.json",
        "report.html",
        "written.json",
    }
    assert not [*table.parent.glob(f".*{UNFINISHED}")]


def test_a_damaged_table_is_refused(predictions: Path, capsys):
    file = predictions.parent / "t.parquet"
    file.write_bytes(b"PAR1 and no more")
    said = refused(
        main, ["--predictions", str(predictions), "--truth", str(file), "--out", str(file.parent / "o")], capsys
    )
    assert f"cannot read {file}" in said


def test_fractions_are_formatted_as_python_does():
    rng = np.random.default_rng(0)
    ties = ((np.arange(2000) + 0.5) / 2**20).astype(np.float32)
    values = np.concatenate(
        [rng.random(20_000, dtype=np.float32), ties, np.array([0, 1, 5e-7, 1.5e-6, 0.9999995], dtype=np.float32)]
    )
    assert _texts(values) == [f"{value:.6f}" for value in values.tolist()]
    # Others than fractions, too.
    other = np.array([-3.25, 12.5, np.nan], dtype=np.float32)
    assert _texts(other) == ["-3.250000", "12.500000", ""]
