import json
import os
import tracemalloc
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.label_files import (
    LabelFile,
    confident,
    read_confidence,
    read_label_file,
    read_list,
    read_probs,
)
from debias_ssl.data.sources.listing import FileNames
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import DebiasPL, FixMatch
from debias_ssl.system.errors import InputError

ROWS = (
    "path,label,confidence",
    "0.png,dog,0.99",
    "1.png,cat,0.55",
    "2.png,dog,0.60",
    "3.png,cat,0.96",
    "4.png,dog,0.95",
)
CLASSES = ("owl", "dog", "cat")


@pytest.fixture
def labels(tmp_path: Path, paint) -> Path:
    """A folder of five images, one of labels of three classes, of which none is an owl, and a tree to test on."""
    for i in range(5):
        paint(tmp_path / "images" / f"{i}.png", i)
    for name in CLASSES:
        paint(tmp_path / "test" / name / "t.png", 9)
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "labels.csv").write_text("\n".join(ROWS) + "\n")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    # Row i gives its label the confidence, and the other two classes i % of what is left and the rest.
    probs = np.zeros((5, 3))
    for i, row in enumerate(ROWS[1:]):
        _, label, confidence = row.split(",")
        left = 1 - float(confidence)
        others = [k for k, name in enumerate(CLASSES) if name != label]
        probs[i, CLASSES.index(label)], probs[i, others] = float(confidence), (left * i / 100, left * (1 - i / 100))
    np.save(folder / "probs.npy", probs.astype(np.float16))
    return folder


def setting(labels: Path, **settings: Any) -> DataConfig:
    parent = labels.parent
    standard = {"labeled": labels / "labels.csv", "root": parent / "images", "test": parent / "test"}
    settings = {name: str(path) for name, path in standard.items()} | settings
    return DataConfig(name="folder", **settings)


def task_of(config: DataConfig, tmp_path: Path) -> Task:
    return make_task(replace(config, cache=str(tmp_path / "cache")), seed=0, place=Place(), progress=False)


def short(names) -> list[str]:
    return [Path(name).name for name in names]


def test_confident_rows_are_labeled_and_the_others_unlabeled_and_of_unknown_class(labels: Path, tmp_path: Path):
    task = task_of(setting(labels, min_confidence=0.95, unlabeled_includes_labeled=False), tmp_path)
    train = task.data.train
    assert short(train.part(task.split.labeled).names) == ["0.png", "3.png", "4.png"]
    assert short(train.part(task.split.unlabeled).names) == ["1.png", "2.png"]
    assert (task.unlabeled_truth == -1).all()
    # All classes of classes.json, also the one that no row has.
    assert task.data.classes == ("cat", "dog", "owl") and task.labeled_counts == (1, 2, 0)


def test_seeds_are_the_most_confident_rows_of_each_class(labels: Path, tmp_path: Path):
    task = task_of(setting(labels, seeds_per_class=1), tmp_path)
    assert short(task.data.train.part(task.split.labeled).names) == ["0.png", "3.png"]
    # The labeled ones are unlabeled images too, as everywhere else.
    assert sorted(short(task.data.train.part(task.split.unlabeled).names)) == [f"{i}.png" for i in range(5)]


def test_an_unlabeled_folder_takes_the_place_of_rows_that_are_not_chosen(labels: Path, tmp_path: Path, paint):
    paint(tmp_path / "more" / "m.png", 7)
    data = load_data(setting(labels, seeds_per_class=1, unlabeled=str(tmp_path / "more")))
    assert short(data.train.names) == ["0.png", "3.png", "m.png"] and data.num_separate == 1


def test_ties_are_broken_by_the_order_of_rows():
    chosen = confident(np.array([0, 0, 1, 0]), np.array([0.5, 0.5, 0.1, 0.5]), 2, None, 2)
    assert chosen.tolist() == [True, True, True, False]


def test_a_confidence_that_no_row_has_is_told_with_the_highest(labels: Path):
    with pytest.raises(InputError, match=r"no row of .* confidence of 0\.999, the highest is 0\.990: lower"):
        load_data(setting(labels, min_confidence=0.999))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("path,label", "0.png,dog"), "has no confidence column"),
        (("path,label,confidence", "0.png,dog,high"), "line 2: the confidence 'high' is not a number"),
        (("path,label,confidence", "0.png,dog"), "line 2: the confidence '' is not a number"),
        (("path,label,confidence", "0.png,dog,0.5", "1.png,dog,1.5"), r"line 3: the confidence 1.5 is outside"),
        (("path,label,confidence", "0.png,dog,nan"), r"line 2: the confidence nan is outside"),
    ],
)
def test_a_file_without_confidences_is_refused(labels: Path, rows: tuple[str, ...], message: str):
    (labels / "labels.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(InputError, match=message):
        load_data(setting(labels, min_confidence=0.2))


def test_a_class_tree_has_no_confidences(labels: Path):
    with pytest.raises(InputError, match="is not a CSV file with a confidence column"):
        load_data(setting(labels, labeled=str(labels.parent / "test"), seeds_per_class=1))
    with pytest.raises(InputError, match="not a CSV file"):
        read_confidence(labels)


def test_labels_of_all_images_leave_none_unlabeled(labels: Path):
    with pytest.raises(InputError, match=r"all images have a label, so none is unlabeled: lower data\.seeds_per_class"):
        load_data(setting(labels, seeds_per_class=9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_confidence": 1.5}, "min_confidence is 1.5, must be in"),
        ({"seeds_per_class": 0}, "seeds_per_class is 0, must be at least 1"),
        ({"seeds_per_class": 1, "min_confidence": 0.5}, "exclude each other"),
        ({"name": "digits", "probs": "x"}, r"data\.probs works with image files only"),
        ({"name": "digits", "features": ("x",)}, r"data\.features works with image files only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        DataConfig(**{"name": "folder", **settings})


# Probabilities from outside.


def test_given_probabilities_follow_images_and_classes_by_name(labels: Path, tmp_path: Path):
    (labels.parent / "few.csv").write_text("path,label\n4.png,cat\n2.png,dog\n0.png,owl\n")
    config = setting(
        labels, labeled=str(labels.parent / "few.csv"), probs=str(labels), unlabeled=str(tmp_path / "images")
    )
    task = task_of(config, tmp_path)
    assert task.teacher_probs is not None
    names = short(task.data.train.names)
    # Classes are cat, dog, owl here, and owl, dog, cat in the file.
    expected = np.load(labels / "probs.npy")[[int(name[0]) for name in names]][:, ::-1]
    np.testing.assert_array_equal(task.teacher_probs, expected)
    stream = task.training_stream(
        DebiasPL(task.problem(1), assist_threshold=0.4), seed=0, batch_size=2, unlabeled_ratio=3, balanced=False
    )
    batch = next(stream.batches(0, 1))
    unlabeled = [names[i] for i in task.split.unlabeled]
    assert batch.teacher_probs is not None
    assert batch.teacher_probs.tolist() == [task.teacher_probs[names.index(unlabeled[i])].tolist() for i in batch.index]
    # A method that does not ask is given nothing.
    stream = task.training_stream(FixMatch(task.problem(1)), seed=0, batch_size=2, unlabeled_ratio=3, balanced=False)
    assert next(stream.batches(0, 1)).teacher_probs is None


def test_images_that_are_not_listed_get_zeros(labels: Path, paint):
    other = str(paint(labels.parent / "images" / "new.png", 3))
    given = read_probs(labels, labels.parent / "images", [other, str(labels.parent / "images" / "1.png")], CLASSES)
    assert given[0].tolist() == [0, 0, 0] and given[1].tolist() == np.load(labels / "probs.npy")[1].tolist()


def test_a_method_that_needs_probabilities_says_what_to_set(labels: Path, tmp_path: Path):
    task = task_of(setting(labels, seeds_per_class=1), tmp_path)
    method = DebiasPL(task.problem(1), assist_threshold=0.4)
    with pytest.raises(InputError, match=r"DebiasPL needs class probabilities of the images: set data\.probs"):
        task.training_stream(method, seed=0, batch_size=2, unlabeled_ratio=3, balanced=False)


def test_probabilities_that_do_not_fit_are_refused(labels: Path, tmp_path: Path):
    images = str(labels.parent / "images" / "0.png")

    def read(names: list[str], classes: tuple[str, ...] = CLASSES) -> None:
        read_probs(labels, labels.parent / "images", names, classes)

    with pytest.raises(InputError, match=r"the classes of .* are others, such as \['emu'\]"):
        read([images], (*CLASSES, "emu"))
    with pytest.raises(InputError, match=r"lists none of the images, such as '/elsewhere\.png'; is data\.root right"):
        read(["/elsewhere.png"])
    np.save(labels / "probs.npy", np.zeros((4, 3), np.float16))
    with pytest.raises(InputError, match=r"is \(4, 3\), labels\.csv and classes\.json say otherwise"):
        read([images])
    (labels / "probs.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"cannot read .*probs\.npy"):
        read([images])
    (labels / "classes.json").write_text("{}")
    with pytest.raises(InputError, match=r"classes\.json is not a list of class names"):
        read([images])


# What people and programs write.


def listed(folder: Path, data: str | bytes, root: Path | None = None, name: str = "list.csv", **settings: Any):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))
    return read_label_file(folder / name, root, **settings)


def paths_of(found: LabelFile) -> list[Path]:
    return [Path(file) for file in found.files]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of files, of which only the names matter."""
    for name in ("a.png", "b.png", "deep/c d.png", "é.png", " e .png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("key", "label"),
    [("path", "label"), (" Path ", " Label"), ("File Name", "class"), ("filename", "class_name"), ("image_path", "y")],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_usual_names_of_columns_are_understood(images, key, label, delimiter, encoding):
    rows = [["nr", key, label], ["7", "a.png", "cat"], ["", "", ""], ["8", "é.png", " dog "], []]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    found = listed(images, text.encode(encoding))
    assert (paths_of(found), found.labels, found.lines.tolist()) == (
        [images / "a.png", images / "é.png"],
        ["cat", "dog"],
        [2, 4],
    )
    assert found.notes == (f"{images / 'list.csv'}: 1 empty rows are left out",)


def test_the_more_exact_column_is_taken_and_told(images):
    found = listed(images, "id,category,file,label\n1,pet,a.png,cat\n")
    assert (paths_of(found), found.labels) == ([images / "a.png"], ["cat"])
    assert [note.partition(": ")[2] for note in found.notes] == [
        "of the columns 'id', 'file', 'file' is used as the path",
        "of the columns 'category', 'label', 'label' is used as the label",
    ]


@pytest.mark.parametrize("name", ["deep\\c d.png", "deep/c%20d.png", "./deep/../deep/c d.png", " deep/c d.png "])
def test_paths_may_be_spelled_as_elsewhere(images, name):
    found = listed(images, f"path,label\n{name},cat\n")
    assert paths_of(found) == [images / "deep" / "c d.png"]
    assert ("1 paths are spelled differently from their files" in "".join(found.notes)) == (not name.startswith("./"))


def test_the_file_that_is_named_exactly_is_meant(images):
    (images / "e .png").touch()
    (images / "a%20b.png").touch()
    (images / "a b.png").touch()
    found = listed(images, "path\n e .png\na%20b.png\n")
    assert paths_of(found) == [images / " e .png", images / "a%20b.png"] and not found.notes


def test_names_and_classes_of_other_forms_of_unicode(images):
    name = unicodedata.normalize("NFD", "é.png")
    assert paths_of(listed(images, f"path\n{name}\n")) == [images / "é.png"]


def test_a_name_that_is_no_utf_8_is_read_as_it_was_written(images):
    path = Path(os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    path.touch()
    assert paths_of(listed(images, b"path,label\n\xff.png,cat\n")) == [path]
    (images / "list.txt").write_bytes(b"\xff.png\r\n\r\n a.png\n")
    found = read_list(images / "list.txt", None)
    assert (paths_of(found), found.lines.tolist()) == ([path, images / "a.png"], [1, 3])


def test_a_class_that_is_no_text_is_refused_with_its_line(images):
    with pytest.raises(InputError, match=r"list\.csv, line 3: b'K\\xe4fer' is not UTF-8 text: save the file as UTF-8"):
        listed(images, b"path,label\na.png,cat\nb.png,K\xe4fer\n")


@pytest.mark.parametrize("word", ["NaN", "None", "null", "-1", "NA", "#N/A", "<NA>"])
def test_words_for_no_label_are_unknown_unless_they_are_classes(images, word):
    text = f"path,label\na.png,cat\nb.png,{word}\n"
    assert listed(images, text).labels == ["cat", ""]
    assert f"1 labels, such as {word!r}, mean that the class is unknown" in listed(images, text).notes[0]
    assert listed(images, text, classes=(word,)).labels == ["cat", word]
    with pytest.raises(InputError, match=rf"line 3: b\.png has no label: '{word}' means unknown, unless a"):
        listed(images, text, needs_labels=True)
    (images / "classes.json").write_text(json.dumps(["cat", word]))
    assert listed(images, text, needs_labels=True).labels == ["cat", word]


# Paths that are not below the list.


def test_absolute_paths_below_the_root_are_used(images, tmp_path):
    (tmp_path / "lists").mkdir()
    for name in (str(images / "a.png"), "../images/a.png", "a.png"):
        assert paths_of(listed(tmp_path / "lists", f"path\n{name}\n", images)) == [images / "a.png"]
    # Relative to the list, where it does not lie below the root by itself.
    assert paths_of(listed(tmp_path / "lists", "path\n../images/a.png\n", tmp_path)) == [images / "a.png"]


def test_the_root_may_be_named_by_a_link(images, tmp_path):
    (tmp_path / "link").symlink_to(images, target_is_directory=True)
    assert paths_of(listed(tmp_path, f"path\n{images / 'a.png'}\n", tmp_path / "link")) == [tmp_path / "link" / "a.png"]
    found = listed(tmp_path, f"path\n{tmp_path / 'link' / 'a.png'}\n", images)
    assert paths_of(found) == [images / "a.png"]


@pytest.mark.parametrize(("setting", "words"), [("data.root", "set data.root to"), ("--root", "pass --root")])
def test_what_lies_elsewhere_is_told_with_the_folder_of_all(images, tmp_path, setting, words):
    (tmp_path / "lists").mkdir()
    names = f"path\n../images/deep/c d.png\n{images / 'a.png'}\n"
    with pytest.raises(InputError, match=r"line 2: '\.\./images/deep/c d\.png' lies outside") as caught:
        listed(tmp_path / "lists", names, root_setting=setting)
    assert f"to read files there, {words} {str(images)!r}" in str(caught.value)
    assert len(listed(tmp_path / "lists", names, images).files) == 2


@pytest.mark.parametrize(("setting", "words"), [("data.root", "set data.root to"), ("--root", "pass --root")])
def test_a_path_of_no_file_says_what_it_is_relative_to(images, setting, words):
    with pytest.raises(InputError, match=f"where paths are not relative to .*, {words} their folder"):
        listed(images, "path\nx.png\n", root_setting=setting)
    with pytest.raises(InputError, match=f"is {setting} right"):
        listed(images, "path\nx.png\n", images, root_setting=setting)


# Rows of labels.csv and of probs.npy.


def test_labels_that_somebody_has_sorted_are_refused_with_the_row(labels: Path):
    images, first = [str(labels.parent / "images" / "0.png")], (labels / "labels.csv").read_text()
    read_probs(labels, labels.parent / "images", images, CLASSES)
    head, *rows = ROWS
    # The last has two rows of one class in the other's place.
    orders = (sorted(range(5), key=lambda i: rows[i].split(",")[2]), [0, 2, 1, 3, 4], [2, 1, 0, 3, 4])
    for changed in ([rows[i] for i in order] for order in orders):
        (labels / "labels.csv").write_text("\n".join([head, *changed]) + "\n")
        with pytest.raises(InputError, match=r"labels\.csv, line \d: .*probs\.npy has '.*sorted or changed"):
            read_probs(labels, labels.parent / "images", images, CLASSES)
    (labels / "labels.csv").write_text(first.replace("0.png,dog,0.99", "0.png,cat,0.99"))
    with pytest.raises(InputError, match=r"line 2: 'cat' with confidence 0\.990, but row 0 of probs\.npy has 'dog'"):
        read_probs(labels, labels.parent / "images", images, CLASSES)


def test_labels_of_close_probabilities_and_without_confidence_are_accepted(labels: Path):
    images = [str(labels.parent / "images" / "0.png")]
    close = np.tile(np.array([0.1, 0.45, 0.4501], dtype=np.float16), (5, 1))
    np.save(labels / "probs.npy", close)
    rows = ["path,label,confidence", *(f"{i}.png,{('dog', 'cat')[i % 2]},0.45005" for i in range(5))]
    (labels / "labels.csv").write_text("\n".join(rows) + "\n")
    read_probs(labels, labels.parent / "images", images, CLASSES)
    (labels / "labels.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    read_probs(labels, labels.parent / "images", images, CLASSES)
    (labels / "labels.csv").write_text("\n".join(row.rpartition(",")[0].replace("dog", "owl") for row in rows) + "\n")
    with pytest.raises(InputError, match="line 2: 'owl', but row 0"):
        read_probs(labels, labels.parent / "images", images, CLASSES)


def test_a_spreadsheets_decimal_commas_are_confidences(labels: Path):
    text = (labels / "labels.csv").read_text()
    (labels / "labels.csv").write_text("sep=;\r\n" + text.replace(",", ";").replace(".", ",").replace(",png", ".png"))
    assert read_confidence(labels / "labels.csv").tolist() == [0.99, 0.55, 0.6, 0.96, 0.95]
    read_probs(labels, labels.parent / "images", [str(labels.parent / "images" / "0.png")], CLASSES)


@pytest.mark.parametrize("name", ["list.txt", "list.csv"])
def test_a_row_of_a_list_takes_some_bytes(tmp_path, name):
    number = 1500
    (tmp_path / "0.png").write_bytes(b"image")
    names = ["0.png", *(f"folder/image_{i:08d}.png" for i in range(1, number))]
    (tmp_path / "folder").mkdir()
    for each in names[1:]:
        os.link(tmp_path / "0.png", tmp_path / each)
    of_table = name.endswith(".csv")
    lines = ["path,label", *(f"{each},cat" for each in names)] if of_table else names
    (tmp_path / name).write_text("\n".join(lines) + "\n")

    def read():
        return read_label_file(tmp_path / name, None) if of_table else read_list(tmp_path / name, None)

    read()
    tracemalloc.start()
    listed = read()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [*listed.files] == [str(tmp_path / each) for each in names] and set(listed.labels) == {"cat" * of_table}
    assert isinstance(listed.files, FileNames) and listed.files.prefix == f"{tmp_path}/"
    # The name, and numbers of eight bytes.
    assert held / number < 100 and most / number < 250
    # The disk's word is that of a listing of the folder.
    stat = os.stat(tmp_path / names[5])
    assert (listed.files.sizes[5], listed.files.mtimes[5]) == (stat.st_size, stat.st_mtime_ns)


def test_a_link_in_a_list_is_known_as_one(tmp_path, paint):
    paint(tmp_path / "a.png", 0)
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    listed = read_list(tmp_path / "list.txt", None).files
    assert isinstance(listed, FileNames) and listed.links.tolist() == [False, True]
    assert listed.sizes[0] == listed.sizes[1] == (tmp_path / "a.png").stat().st_size
