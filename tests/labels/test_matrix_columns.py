"""What each column of a table of predictions is taken for, and what is asked about instead of guessed."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jobs import refused, rows_of
from pyarrow import parquet

from debias_ssl import evaluate
from debias_ssl.debias import main as debias
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.system.errors import InputError

NUM, CLASSES = 40, ["cat", "dog", "bird"]
LOGITS = np.random.default_rng(0).normal(0, 3, (NUM, 3))
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
IDS = [f"{i:05d}" for i in range(7, 7 + NUM)]


def frame(values: np.ndarray = LOGITS, classes: list[str] | None = None, **others: Any) -> pd.DataFrame:
    """Other columns, and then those of the classes."""
    named = {name: values[:, k] for k, name in enumerate(classes or CLASSES)}
    return pd.DataFrame({**others, **named})


def saved(table: pd.DataFrame, path: Path, **how: Any) -> Path:
    writers: dict[str, Callable[..., Any]] = {".parquet": table.to_parquet, ".json": table.to_json}
    if path.suffix in writers:
        writers[path.suffix](path, **how)
    else:
        table.to_csv(path, **{"index": False, **how})
    return path


def labels_of(out: Path, path: Path, *flags: str) -> list[dict[str, str]]:
    debias(["--predictions", str(path), "--out", str(out), "--prior", "none", *flags])
    return rows_of(out)


def best(values: np.ndarray, classes: list[str]) -> list[str]:
    return [classes[k] for k in values.argmax(1)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_are_names_of_rows_and_no_class(suffix: str, tmp_path: Path, capsys):
    """37 of 40 rows were labeled "id"."""
    path = saved(frame(id=range(7, 7 + NUM), split="test"), tmp_path / f"p{suffix}")
    rows = labels_of(tmp_path / "out", path)
    assert [row["label"] for row in rows] == best(LOGITS, CLASSES)
    assert [row["path"] for row in rows] == [str(i) for i in range(7, 7 + NUM)]
    assert (
        f"{path}: 40 x 3 logits (not all rows are in [0, 1] and sum to 1); classes: columns cat, dog, bird; "
        "names of rows: column id; left out: split (text)\n"
    ) in capsys.readouterr().out


def test_ids_with_zeros_before_them_match_their_truth(tmp_path: Path, capsys):
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "path,label\n" + "".join(f"{name},{k}\n" for name, k in zip(IDS, best(PROBS, CLASSES), strict=True))
    )
    for suffix in (".csv", ".parquet"):
        path, out = saved(frame(PROBS, id=IDS), tmp_path / f"p{suffix}"), tmp_path / f"{suffix}.json"
        evaluate.main(["--predictions", str(path), "--truth", str(truth), "--out", str(out)])
        assert json.loads(out.read_text())["accuracy"] == 1
        said = capsys.readouterr().out
        assert (
            "40 x 3 probabilities (all rows are in [0, 1] and sum to 1)" in said and "names of rows: column id" in said
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", 1), ("label", 2), ("y_true", 0), ("fold", 3), ("width", 640), ("target", 1.0), ("width", 640.0)],
)
@pytest.mark.parametrize("values", [LOGITS, PROBS], ids=["logits", "probs"])
def test_whole_numbers_among_fractions_are_asked_about(name: str, value: Any, values, tmp_path: Path, capsys):
    """With `cat,dog,bird,target` the kind flipped, and "target" won."""
    for suffix in (".csv", ".parquet"):
        path = saved(frame(values).assign(**{name: value}), tmp_path / f"p{suffix}")
        arguments = ["--predictions", str(path), "--out", str(tmp_path / "out")]
        message = refused(debias, arguments, capsys)
        assert f"{name} has whole numbers" in message and "--columns" in message and "--classes" in message
        rows = labels_of(tmp_path / suffix, path, "--columns", "cat,dog,bird")
        assert [row["label"] for row in rows] == best(values, CLASSES)
        assert f"left out: {name}" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [["label", "row", "name"], ["confidence", "id", "path"], ["target", "index", "y"]])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_classes_with_names_that_other_columns_usually_have(classes: list[str], suffix: str, tmp_path: Path):
    for values in (LOGITS, PROBS):
        found = read_predictions(saved(frame(values, classes, filename=IDS), tmp_path / f"p{suffix}"))
        assert [*found.classes] == classes and [*found.names] == IDS
        np.testing.assert_allclose(found.values, values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["path", "file", "filename", "File Name", "file_name", "filepath", "image", "image_path", "ID", "key", "uuid"],
)
def test_names_of_rows_have_any_usual_name(name: str, tmp_path: Path):
    table = frame().assign(**{name: IDS})
    assert [*read_predictions(saved(table, tmp_path / "p.csv")).names] == IDS


def test_files_name_rows_before_their_numbers_do(tmp_path: Path):
    path = saved(frame(index=range(NUM), id=range(NUM), filename=IDS), tmp_path / "p.csv")
    found = read_predictions(path)
    assert [*found.names] == IDS and "left out: index (text), id (text)" in found.roles


@pytest.mark.parametrize("index", [range(NUM), range(5, 5 + NUM), IDS], ids=["numbers", "shifted", "text"])
def test_an_index_is_no_class(index, tmp_path: Path):
    """Parquet's pandas metadata names it, CSV has it as a column without a name, or twice."""
    table = frame()
    table.index = pd.Index([*index])
    saved(table, tmp_path / "once.csv", index=True)
    twice = pd.read_csv(tmp_path / "once.csv", dtype=object)
    assert twice.columns[0] == "Unnamed: 0"
    twice.to_csv(tmp_path / "twice.csv")
    paths = [tmp_path / "once.csv", tmp_path / "twice.csv", saved(table, tmp_path / "p.parquet")]
    paths.append(saved(pd.read_csv(tmp_path / "once.csv", index_col=0, dtype={0: str}), tmp_path / "q.parquet"))
    # As pyarrow keeps it where the metadata is gone.
    parquet.write_table(parquet.read_table(paths[2]).replace_schema_metadata(None), tmp_path / "r.parquet")
    for path in [*paths, tmp_path / "r.parquet"]:
        found = read_predictions(path)
        assert [*found.classes] == CLASSES, path
        np.testing.assert_allclose(found.values, LOGITS, rtol=1e-6)
        assert path.stem == "twice" or [*found.names] == [str(i) for i in index]


def test_logits_that_are_all_whole_numbers(tmp_path: Path, capsys):
    whole = np.rint(5 * LOGITS).astype(np.int64)
    path = saved(frame(whole, image_id=range(100, 100 + NUM)), tmp_path / "p.csv")
    found = read_predictions(path)
    assert [*found.classes] == CLASSES and found.names[0] == "100"
    np.testing.assert_array_equal(found.values, whole)
    path = saved(frame(whole).assign(target=1), tmp_path / "q.csv")
    assert "target has whole numbers" in refused(debias, ["--predictions", str(path), "--out", "o"], capsys)
    # Names of rows are not negative, and do not repeat.
    path = saved(frame(whole, ["cat", "id", "bird"]), tmp_path / "r.csv")
    assert "id has whole numbers" in refused(debias, ["--predictions", str(path), "--out", "o"], capsys)
    assert read_predictions(path, columns=["cat", "id", "bird"]).classes == ("cat", "id", "bird")


def test_a_confidence_beside_classes_is_none(tmp_path: Path):
    table = frame(PROBS).assign(confidence=PROBS.max(1))
    found = read_predictions(saved(table, tmp_path / "p.csv"))
    assert [*found.classes] == CLASSES and found.kind == "probs" and "left out: confidence (fractions)" in found.roles
    with pytest.raises(InputError, match=r"confidence is in \[0, 1\], and the other columns are not; name the columns"):
        read_predictions(saved(frame().assign(confidence=PROBS.max(1)), tmp_path / "p.csv"))


def test_probabilities_that_are_rounded_to_0_everywhere_are_a_class(tmp_path: Path):
    values = np.concatenate([PROBS, np.zeros((NUM, 1))], axis=1)
    found = read_predictions(saved(frame(values, [*CLASSES, "eel"]), tmp_path / "p.csv"))
    assert found.classes == ("cat", "dog", "bird", "eel") and found.kind == "probs"


def test_labels_are_no_matrix(tmp_path: Path, capsys):
    labels_of(tmp_path / "out", saved(frame(path=IDS), tmp_path / "p.csv"))
    message = refused(debias, ["--predictions", str(tmp_path / "out/labels.csv"), "--out", str(tmp_path / "o")], capsys)
    assert "has labels, not a number for each class" in message and str(tmp_path / "out" / "probs.npy") in message


def test_classes_are_columns_in_the_order_that_is_asked_for(tmp_path: Path, capsys):
    path = saved(frame(split="test"), tmp_path / "p.csv")
    names = tmp_path / "names.txt"
    names.write_text("bird\ncat\n")
    for found in (read_predictions(path, columns=["bird", "cat"]), read_predictions(path, classes_file=names)):
        assert found.classes == ("bird", "cat") and "left out: split (text), dog (fractions)" in found.roles
        np.testing.assert_allclose(found.values, LOGITS[:, [2, 0]], rtol=1e-6)
    arguments = ["--predictions", str(path), "--out", str(tmp_path / "out"), "--columns"]
    for text, words in (("cat,dgo", "no column 'dgo'"), ("cat", "two or more"), ("cat,split", "no numbers (text)")):
        assert words in refused(debias, [*arguments, text], capsys)
    names.write_text("cat\ndog\nbrid\n")
    with pytest.raises(InputError, match="no column 'brid'"):
        read_predictions(path, classes_file=names)
    np.save(tmp_path / "p.npy", LOGITS)
    assert "leave it out" in refused(debias, ["--predictions", str(tmp_path / "p.npy"), *arguments[2:], "a,b"], capsys)


def test_columns_of_predict_follow_a_file_of_their_names(tmp_path: Path):
    path = saved(frame(PROBS, [f"p_{name}" for name in CLASSES], path=IDS, width=640), tmp_path / "p.csv")
    names = tmp_path / "names.txt"
    names.write_text("dog\nbird\ncat\n")
    found = read_predictions(path, classes_file=names)
    assert found.classes == ("dog", "bird", "cat") and "left out: width (integers)" in found.roles
    np.testing.assert_allclose(found.values, PROBS[:, [1, 2, 0]], rtol=1e-5)


def test_a_name_that_is_not_utf_8_comes_back_as_it_was(tmp_path: Path):
    """`predict` writes the bytes of a file's name."""
    lines = [b"path,label,confidence,p_cat,p_dog", b"a\xff.png,cat,0.75,0.75,0.25", "ü.png,dog,1,0,1".encode()]
    (tmp_path / "p.csv").write_bytes(b"\r\n".join(lines))
    debias(["--predictions", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")])
    assert b"\r\na\xff.png,cat," in (tmp_path / "out" / "labels.csv").read_bytes()
    assert read_predictions(tmp_path / "p.csv").names == ["a\udcff.png", "ü.png"]


def test_a_class_that_is_no_text_is_refused(tmp_path: Path, capsys):
    (tmp_path / "p.csv").write_bytes("path,Käfer,dog\na,1.5,2.5\n".encode("latin-1"))
    arguments = ["--predictions", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]
    assert "column 2 is not UTF-8 text" in refused(debias, arguments, capsys)
    np.save(tmp_path / "p.npy", LOGITS)
    (tmp_path / "names.txt").write_bytes("Käfer\ndog\ncat\n".encode("latin-1"))
    (tmp_path / "names.json").write_text('["\\ud800", "dog", "cat"]')
    for name in ("names.txt", "names.json"):
        flags = ["--predictions", str(tmp_path / "p.npy"), "--classes", str(tmp_path / name), *arguments[2:]]
        assert "is not UTF-8 text" in refused(debias, flags, capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,cat,dog\n1,.5,.25\n2,.5\n", "row 3, the first line counted, has 2 cells where 3 are"),
        ("id,cat,dog\n1,.5,.25\n,.5,.5\n", "row 1 .* has no name in column 'id'"),
        ("id,cat,dog\n1,.5,.25\n2,,.5\n", "row 1 .*class 'cat': nan"),
        ("cat,dog,bird\n.5,0.5,.25\n.5,1.5 %,.5\n", "'dog' has text among its numbers"),
        ("cat;dog\n0,5;1.5\n0,25;2\n", "'cat' has text among its numbers|'cat' has its numbers as text"),
        ("cat,dog\n1.5,2.5\n\n,\n.5,\n,\n", "row 2 .*class 'dog': nan|row 1 .*class 'cat': nan"),
    ],
)
def test_rows_that_do_not_fit_are_named(text: str, words: str, tmp_path: Path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("text", "classes", "names"),
    [
        ("# cat dog\n1.5 2.5\n0.5 0.25\n", ("cat", "dog"), None),
        ("1.5 2.5\n0.5   0.25\n", ("0", "1"), None),
        ("# cat,dog\n1.5,2.5\n0.5,0.25\n", ("cat", "dog"), None),
        ("cat,dog,\n1.5,2.5,\n0.5,0.25,\n", ("cat", "dog"), None),
        ('"cat"\t"dog"\n"a.jpg"\t1.5\t2.5\n"b.jpg"\t0.5\t0.25\n', ("cat", "dog"), ["a.jpg", "b.jpg"]),
        ("a.jpg,1.5,2.5\nb.jpg,0.5,0.25\n", ("0", "1"), ["a.jpg", "b.jpg"]),
        ("1,2\n1.5,2.5\n0.5,0.25\n", ("1", "2"), None),
        ("1,5;2,5\n0,5;0,25\n", ("0", "1"), None),
        ('path, cat, dog\na b.jpg, 1.5, 2.5\n"b, c.jpg", 0.5, 0.25\n', ("cat", "dog"), ["a b.jpg", "b, c.jpg"]),
        ("path,cat,dog\na.jpg,1.5,2.5\nb.jpg,0.5,0.25\n,,\n,,\n", ("cat", "dog"), ["a.jpg", "b.jpg"]),
    ],
    ids=["header", "savetxt", "savetxt-csv", "last-delimiter", "R", "files", "numbers", "commas", "blanks", "empty"],
)
def test_text_as_other_programs_write_it(text: str, classes: Any, names: list[str] | None, tmp_path: Path):
    (tmp_path / "p.txt").write_text(text)
    found = read_predictions(tmp_path / "p.txt")
    np.testing.assert_array_equal(found.values, [[1.5, 2.5], [0.5, 0.25]])
    assert found.classes == classes and [*found.names] == (names or ["0", "1"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([[0.5, 0.5], [0.5]], "row 1 .* has 1 entries, the first has 2"),
        ([[0.5, 0.5], [0.5, "x"]], 'row 1 .* has "x", which is not a number'),
        ([{"cat": 0.5, "dog": 0.5}, {"cat": 0.5}], "row 1 .*class 'dog': nan"),
        ({"columns": ["cat", "dog"], "data": [[0.5, 0.5], [1.5]]}, "row 1 .* of data is not one"),
        ({"cat": [0.5, 1.5], "dog": [2.5]}, "1, 2 rows"),
        ([], "has no rows"),
        (3, "it must be"),
        ([[[0.5, 0.5]], [[0.5, 0.5]]], "not a number"),
    ],
)
def test_json_that_does_not_fit_is_named(content: Any, words: str, tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_predictions(tmp_path / "p.json")


def test_lines_of_json_are_told_by_number(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"cat": 0.5, "dog": 1.5}\n{"cat": 0.5,\n')
    with pytest.raises(InputError, match="line 2: it is not JSON"):
        read_predictions(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text(
        '{"image": "\\udcff.png", "cat": 0.5, "dog": 1.5}\n{"image": "b", "cat": 1, "dog": 3}\n'
    )
    found = read_predictions(tmp_path / "p.jsonl")
    assert found.names == ["\udcff.png", "b"] and found.values.tolist() == [[0.5, 1.5], [1, 3]]


def test_blank_images_follow_the_classes_by_name(tmp_path: Path, capsys):
    path = saved(frame(path=IDS), tmp_path / "p.csv")
    blank = saved(frame(LOGITS[:2, [2, 0, 1]], ["bird", "cat", "dog"]), tmp_path / "b.csv")
    flags = ["--predictions", str(path), "--prior", "content_free", "--out", str(tmp_path / "out"), "--blank"]
    debias([*flags, str(blank)])
    prior = json.loads((tmp_path / "out" / "summary.json").read_text())["class_prior"]
    mean = np.exp(LOGITS[:2].mean(0))
    assert prior == pytest.approx(dict(zip(CLASSES, mean / mean.sum(), strict=True)), rel=1e-4)
    flags[-2] = str(tmp_path / "other")
    other = saved(frame(LOGITS[:2], ["bird", "cat", "eel"]), tmp_path / "b.csv")
    assert "has no class 'dog'" in refused(debias, [*flags, str(other)], capsys)
    other = saved(frame(PROBS[:2]), tmp_path / "b.csv")
    assert "has probabilities" in refused(debias, [*flags, str(other)], capsys)


def test_the_example_of_the_guide_says_what_the_guide_says(tmp_path: Path, monkeypatch, capsys):
    guide = (Path(__file__).parents[2] / "docs" / "debias-labels.md").read_text()
    table, said = re.findall(r"```\n(.*?)```", guide[guide.index("## What is read from a table") :], re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    Path("predictions.csv").write_text(table)
    debias(["--predictions", "predictions.csv", "--out", "labels"])
    assert capsys.readouterr().out.startswith(said)


@pytest.mark.parametrize("name", ["width", "Height", "file_size"])
def test_sizes_of_images_among_whole_numbers_are_asked_about(name: str, tmp_path: Path):
    (tmp_path / "p.csv").write_text(f"{name},cat,dog\n640,1,-1\n")
    with pytest.raises(InputError, match=f"{name} has whole numbers alone.*--columns"):
        read_predictions(tmp_path / "p.csv")
