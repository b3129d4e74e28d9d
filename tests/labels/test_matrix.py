"""Matrices of predictions: what is read from which file, what the numbers are taken for, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from harmful import Harmful
from pyarrow import parquet

from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.names.class_names import read_class_list
from debias_ssl.system.errors import InputError

LOGITS = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, 7.0], [0.5, 0.5, -0.5], [2.0, 0.0, 0.0]], dtype=np.float32)
PROBS = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.125, 0.375, 0.5], [0.75, 0.125, 0.125]])


def saved(tmp_path: Path, array: np.ndarray, name: str = "p.npy") -> Path:
    np.save(tmp_path / name, array)
    return tmp_path / name


def written(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def softmaxed(num_classes: int, scale: float = 3.0, num: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(num, num_classes, generator=generator, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.int8, ">f4"])
def test_npy_of_any_kind_of_number_stays_on_the_disk(dtype, tmp_path: Path):
    array = (4 * LOGITS).astype(dtype)
    predictions = read_predictions(saved(tmp_path, array))
    assert isinstance(predictions.values, np.memmap) and predictions.kind == "logits"
    assert predictions.classes == ("0", "1", "2") and [*predictions.names] == [*map(str, range(len(LOGITS)))]
    (chunk,) = predictions
    assert chunk.dtype == torch.float32
    np.testing.assert_allclose(chunk, array)


def test_columns_in_fortran_order_are_read_alike(tmp_path: Path):
    predictions = read_predictions(saved(tmp_path, np.asfortranarray(LOGITS)))
    np.testing.assert_array_equal(torch.cat([*predictions]), LOGITS)


def test_probabilities_become_logits(tmp_path: Path):
    predictions = read_predictions(saved(tmp_path, PROBS))
    assert predictions.kind == "probs"
    (chunk,) = predictions
    np.testing.assert_allclose(chunk, np.log(np.maximum(PROBS, 1e-8)), rtol=1e-6)


def test_chunks_are_of_bounded_size_and_can_be_had_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("debias_ssl.labels.debiasing.chunks.CHUNK_NUMBERS", 7)
    predictions = read_predictions(saved(tmp_path, LOGITS))
    for _ in range(2):
        chunks = [*predictions]
        assert [len(chunk) for chunk in chunks] == [2, 2]
        np.testing.assert_array_equal(torch.cat(chunks), LOGITS)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounded_probabilities_are_probabilities(num_classes: int, dtype, tmp_path: Path):
    for scale in (0.1, 3.0, 10.0):
        probs = softmaxed(num_classes, scale).numpy().astype(dtype)
        assert read_predictions(saved(tmp_path, probs)).kind == "probs"


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_probabilities_of_a_bf16_model_are_probabilities(num_classes: int, tmp_path: Path):
    probs = torch.cat([softmaxed(num_classes, scale) for scale in (0.1, 3.0, 10.0)]).bfloat16().float()
    assert (probs.sum(-1) - 1).abs().max() > 1e-3
    assert read_predictions(saved(tmp_path, probs.numpy())).kind == "probs"


def test_probabilities_of_six_decimals_are_probabilities(tmp_path: Path):
    probs = softmaxed(1000, 0.1).numpy().round(6)
    assert (
        read_predictions(written(tmp_path / "p.csv", [[f"k{i}" for i in range(1000)], *probs.tolist()])).kind == "probs"
    )


@pytest.mark.parametrize("added", [0.0, 0.2])
def test_scores_that_do_not_sum_to_one_are_logits_with_a_hint(added: float, tmp_path: Path):
    path = saved(tmp_path, 0.7 * PROBS + added)
    predictions = read_predictions(path)
    assert predictions.kind == "logits" and "--kind probs" in predictions.found.words
    assert read_predictions(path, "probs").kind == "probs"


def test_parts_of_another_whole_than_one_are_refused(tmp_path: Path):
    path = saved(tmp_path, np.round(7 * PROBS, 2))
    with pytest.raises(InputError, match=r"all sum to 7.* divide them by that, or pass --kind logits"):
        read_predictions(path)
    assert read_predictions(path, "logits").kind == "logits"


def test_a_folder_is_told_from_what_is_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="is a folder"):
        read_predictions(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        read_predictions(tmp_path / "p.npy")


def test_what_is_told_is_believed_but_not_of_negative_probabilities(tmp_path: Path):
    assert read_predictions(saved(tmp_path, PROBS), "logits").kind == "logits"
    with pytest.raises(InputError, match=r"-2, which is not a probability: pass --kind logits"):
        read_predictions(saved(tmp_path, LOGITS), "probs")


def test_archives_have_one_matrix_or_one_that_is_named(tmp_path: Path):
    path = tmp_path / "p.npz"
    np.savez(path, anything=LOGITS, labels=np.zeros(4))
    np.testing.assert_array_equal(read_predictions(path).values, LOGITS)
    np.savez_compressed(path, features=np.zeros((4, 9)), probs=PROBS)
    np.testing.assert_array_equal(read_predictions(path).values, PROBS)
    wrong: list[dict[str, Any]] = [{"a": LOGITS, "b": LOGITS}, {"logits": LOGITS, "probs": PROBS}, {"a": np.zeros(3)}]
    for arrays in wrong:
        np.savez(path, **arrays)
        with pytest.raises(InputError, match="one matrix is needed"):
            read_predictions(path)


def test_csv_of_predict(tmp_path: Path):
    head = ["path", "label", "confidence", "p_ant", "p_bee, big", "p_0"]
    rows = [[f"x/{i}, ä.png", "ant", 0.5, *row] for i, row in enumerate(PROBS.tolist())]
    predictions = read_predictions(written(tmp_path / "p.csv", [head, *rows]))
    assert predictions.classes == ("ant", "bee, big", "0") and predictions.kind == "probs"
    assert predictions.names == [f"x/{i}, ä.png" for i in range(4)]
    np.testing.assert_allclose(predictions.values, PROBS)


def test_csv_of_named_columns(tmp_path: Path):
    head = ["name", "split", "p_cat", "dog", "note", "eel"]
    rows = [[7 + i, "test", row[0], row[1], "x", row[2]] for i, row in enumerate(LOGITS.tolist())]
    predictions = read_predictions(written(tmp_path / "p.csv", [head, *rows]))
    assert predictions.classes == ("p_cat", "dog", "eel") and predictions.kind == "logits"
    assert predictions.names == ["7", "8", "9", "10"]
    np.testing.assert_array_equal(predictions.values, LOGITS)


def test_csv_of_numbers_alone_has_numbered_classes(tmp_path: Path):
    for head in ([], [[0, 1, 2]]):
        predictions = read_predictions(written(tmp_path / "p.csv", [*head, *LOGITS.tolist()]))
        assert predictions.classes == ("0", "1", "2")
        np.testing.assert_array_equal(predictions.values, LOGITS)


def test_parquet_is_read_by_its_columns(tmp_path: Path):
    columns: dict[str, Any] = {"path": list("abcd"), "p_x": PROBS[:, 0], "p_y": PROBS[:, 1], "p_z": PROBS[:, 2]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    predictions = read_predictions(tmp_path / "p.parquet")
    assert predictions.classes == ("x", "y", "z") and predictions.names == list("abcd")
    np.testing.assert_allclose(predictions.values, PROBS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",ant,bee\n0.5,1.5,2.5\n", "column 1 has no name"),
        ("ant,ant\n1,2\n", "two columns 'ant'"),
        ("p_ant,p_bee\n1,2\n1,x\n", "'p_bee' has text"),
        ("ant,bee,cat\n1,2,3\n1,2.5x,3\n", "'bee' has text"),
        ("ant,bee\n1,\n2,3\n", "row 0 .*class 'bee': nan is not a finite number"),
        ("ant,bee\n1,2\n1,2,3\n", "cannot read .*p.csv"),
        ("path,note\na,b\n", r"0 columns of numbers .* of path \(text\), note \(text\); at least two"),
        ("ant,bee\n", "0 rows"),
        ("", "first line must name the columns; it is empty"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(3), r"float64 of shape \(3,\)"),
        (np.zeros((2, 2, 2)), r"shape \(2, 2, 2\)"),
        (np.zeros((2, 2), dtype=bool), "bool"),
        (np.array([["a", "b"]]), "matrix of numbers"),
        (np.ones((0, 3)), "0 rows and 3 classes"),
        (np.ones((3, 1)), "3 rows and 1 classes"),
        (np.array([[1.0, 2.0], [0.0, 0.0]]), "row 1 .*only zeros"),
        (np.array([[1, 2], [0, 0]]), "row 1 .*only zeros"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "row 1 .*class '1': nan"),
        (np.array([[1.0, -np.inf], [3.0, 4.0]]), "row 0 .*class '1': -inf"),
        (np.array([[1.0, 1e300], [3.0, 4.0]]), "row 0 .*class '1': inf"),
    ],
)
def test_matrices_that_cannot_be_used_are_refused(array: np.ndarray, words: str, tmp_path: Path):
    with pytest.raises(InputError, match=words):
        read_predictions(saved(tmp_path, array))


def test_bad_rows_are_numbered_over_chunks(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("debias_ssl.labels.debiasing.chunks.CHUNK_NUMBERS", 6)
    for value, words in ((0, "row 3 .*only zeros"), (np.nan, "row 3 .*class '0'")):
        array = LOGITS.copy()
        array[3] = value
        with pytest.raises(InputError, match=words):
            read_predictions(saved(tmp_path, array))


def test_pickles_are_not_loaded(tmp_path: Path):
    trace = tmp_path / "trace"
    trap = np.array([[Harmful(trace), Harmful(trace)]], dtype=object)
    np.save(tmp_path / "p.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "p.npz", logits=trap)
    for name in ("p.npy", "p.npz"):
        with pytest.raises(InputError, match=f"cannot read .*{name}"):
            read_predictions(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("name", ["p.npy", "p.npz", "p.parquet"])
def test_damaged_files_are_refused(name: str, tmp_path: Path):
    for content in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04 and no more", b"PAR1 PAR1"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="cannot read"):
            read_predictions(tmp_path / name)


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "p.pt").write_text("")
    with pytest.raises(InputError, match=r"not one of \.npy, \.npz, \.csv, \.tsv, \.txt, \.json"):
        read_predictions(tmp_path / "p.pt")
    with pytest.raises(InputError, match="no file"):
        read_predictions(tmp_path / "p.npy")


def test_names_of_classes_come_from_the_flag_then_the_file_then_beside_it(tmp_path: Path):
    beside, flag = tmp_path / "classes.json", tmp_path / "names.txt"
    beside.write_text(json.dumps(["x", "y", "z"]))
    flag.write_text("one\ntwo\tthe number two\nthree\n")
    array, table = saved(tmp_path, LOGITS), written(tmp_path / "p.csv", [["a", "b", "c"], *LOGITS.tolist()])
    assert read_predictions(array).classes == ("x", "y", "z")
    assert read_predictions(table).classes == ("a", "b", "c")
    for path in (array, table):
        assert read_predictions(path, classes_file=flag).classes == ("one", "two", "three")


@pytest.mark.parametrize("names", [["x", "y"], ["x", "y", "z", "w"]])
def test_too_many_and_too_few_names_are_refused_with_both_numbers(names: list[str], tmp_path: Path):
    (tmp_path / "classes.json").write_text(json.dumps(names))
    with pytest.raises(InputError, match=rf"3 classes, .*classes\.json names {len(names)}"):
        read_predictions(saved(tmp_path, LOGITS))


def test_class_names_and_prompt_names(tmp_path: Path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffkite\tkite (bird)\r\n Käfer \nkite toy\r\n\n".encode())
    assert names_and_prompts(path) == (("kite", "Käfer", "kite toy"), ("kite (bird)", "Käfer", "kite toy"))
    (tmp_path / "names.json").write_text('["a\\tb", "c"]')
    assert names_and_prompts(tmp_path / "names.json") == (("a\tb", "c"), ("a\tb", "c"))


def names_and_prompts(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    listed = read_class_list(path)
    return listed.names, tuple(prompt.text for (prompt,) in listed.prompts)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("n.txt", "a\n\nb\n", "line 2: .*blank"),
        ("n.txt", "a\n\tb\n", "line 2: .*blank"),
        ("n.txt", "a\t\nb\n", "line 1: .*blank"),
        ("n.txt", "a\nb\nc\nb\n", "lines 2 and 4 are both 'b'"),
        ("n.txt", "", "no class names"),
        ("n.json", '["a", ""]', "entry 2: .*blank"),
        ("n.json", '["a", "b", "a"]', "entries 1 and 3 are both"),
        ("n.json", '{"a": 1}', "has no class with the number 0"),
        ("n.json", "[1, 2]", "list of class names"),
        ("n.json", "[", "not JSON"),
    ],
)
def test_class_names_that_cannot_be_told_apart_are_refused(name: str, text: str, words: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_class_list(tmp_path / name)
