"""Files of labels of rows, as people and programs write them, and what is said of them."""

import tracemalloc

import numpy as np
import pytest

from debias_ssl.labels.tables.truth import RowNumbers, read_labels, say
from debias_ssl.system.errors import InputError

CLASSES = ("ant", "bee")
NAMES = ["a.png", "b.png", "c.png"]


def labels_of(folder, data: str | bytes, names=NAMES, classes=CLASSES, name: str = "truth.csv"):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_labels(path, names, classes)


@pytest.mark.parametrize("head", ["path,label", "File, Class", "filename,target", "label_name,image", "id,y"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_usual_names_of_columns(tmp_path, head, encoding):
    cells = [("a.png", "bee"), ("c.png", "ant")]
    rows = [",".join(reversed(pair) if head.startswith("label") else pair) for pair in cells]
    assert labels_of(tmp_path, "\r\n".join([head, *rows]).encode(encoding)).labels.tolist() == [1, -1, 0]


@pytest.mark.parametrize("head", ["row,label", "index,label", "Unnamed: 0,label", ",label"])
def test_numbers_of_rows(tmp_path, head):
    found = labels_of(tmp_path, f"{head}\n2,bee\n0,0\n1.0,-1\n")
    assert found.labels.tolist() == [0, -1, 1]
    assert found.matched == f"3 of 3 rows of {tmp_path / 'truth.csv'} matched: the classes of 2 of 3 rows are known"


def test_an_index_of_pandas_may_be_paths(tmp_path):
    assert labels_of(tmp_path, ",label\nb.png,bee\n").labels.tolist() == [-1, 1, -1]


def test_rows_without_names_are_found_by_number_beside_paths(tmp_path):
    text = "path,row,label\nx/0.png,0,bee\nx/1.png,2,ant\n"
    assert labels_of(tmp_path, text, RowNumbers(3)).labels.tolist() == [1, -1, 0]
    assert labels_of(tmp_path, "id,label\n1,bee\n", RowNumbers(3)).labels.tolist() == [-1, 1, -1]


def test_numbers_of_classes_that_pandas_made_fractions(tmp_path):
    assert labels_of(tmp_path, "row,label\n0,1.0\n1,\n2,0.0\n").labels.tolist() == [1, -1, 0]


@pytest.mark.parametrize("word", ["", "nan", "None", "NULL", "-1", "N/A"])
def test_words_for_no_label(tmp_path, word):
    text = f"path,label\na.png,bee\nb.png,{word}\n"
    assert labels_of(tmp_path, text).labels.tolist() == [1, -1, -1]
    if word:
        assert labels_of(tmp_path, text, classes=("bee", word)).labels.tolist() == [0, 1, -1]


def test_a_folder_in_front_is_told_and_taken_off(tmp_path, capsys):
    names = [f"{i}.png" for i in range(200)]
    rows = ["path,label", "0.png,ant", "1.png,ant", *(f"images/{name},bee" for name in names[2:])]
    found = labels_of(tmp_path, "\n".join(rows), names)
    assert found.labels.tolist() == [0, 0] + [1] * 198
    say(found.said)
    said = capsys.readouterr()
    assert "200 of 200 rows of" in said.out and "198 paths start with 'images/'" in said.err


def test_entries_that_are_of_no_row_are_told_with_an_example_of_each_side(tmp_path):
    found = labels_of(tmp_path, "path,label\na.png,bee\nB.png,bee\n")
    assert found.matched.endswith("matched: the classes of 1 of 3 rows are known") and found.matched.startswith(
        "1 of 2 rows"
    )
    assert found.notes[0].endswith(
        "1 rows of it match none: the first is 'B.png', and the first row without one 'b.png'; "
        "names differ in upper and lower case (1 of them)"
    )


def test_nothing_that_matches_is_refused_with_the_cause(tmp_path):
    with pytest.raises(InputError, match=r"none of the rows: the first is 'a\.jpg', .* in their suffix \(2 of them"):
        labels_of(tmp_path, "path,label\na.jpg,bee\nb.jpg,bee\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("path,label\na.png,bee\n./a.png,ant\n", r"lines 2 and 3 are both path '\./a\.png': remove one"),
        (b"path,label\na.png,K\xe4fer\n", r"line 2: b'K\\xe4fer' is not UTF-8 text"),
        ("row,label\nx,bee\n", "line 2: there is no row 'x'; rows are 0 to 2"),
        ("row,label\n2,bee\n1.5,bee\n", "line 3: there is no row '1.5'"),
        ("path,label\n", "lists no rows"),
        ("path,label\na.png,bee,x\n", "line 2: 3 cells for 2 columns"),
    ],
)
def test_what_does_not_fit_is_told_with_its_line(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        labels_of(tmp_path, data)


def test_a_name_that_is_no_utf_8_is_found(tmp_path):
    assert labels_of(tmp_path, b"path,label\n\xff.png,bee\n", ["\udcff.png", "b.png"]).labels.tolist() == [1, -1]


def test_arrays_say_how_many_are_known(tmp_path):
    np.save(tmp_path / "t.npy", np.array([1, -1, 0]))
    found = read_labels(tmp_path / "t.npy", NAMES, CLASSES)
    assert found.said == (f"{tmp_path / 't.npy'}: the classes of 2 of 3 rows are known",)


@pytest.mark.parametrize("head", ["row", "path"])
def test_a_row_of_a_file_takes_some_bytes(tmp_path, head):
    number = 4000
    text = f"{head},label\n" + "".join(f"{i},{CLASSES[i % 2]}\n" for i in range(number))
    assert labels_of(tmp_path, f"{head},label\n0,ant\n", RowNumbers(1)).labels.tolist() == [0]
    tracemalloc.start()
    found = labels_of(tmp_path, text, RowNumbers(number))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.labels == np.arange(number) % 2).all()
    assert most / number < 200
