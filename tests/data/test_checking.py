import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from debias_ssl.contract import Place
from debias_ssl.data.__main__ import main
from debias_ssl.data.checking import describe, examine, parts_of
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.images import Images
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.task import make_task

Paint = Callable[..., Path]


@pytest.fixture
def flags(config: DataConfig) -> list[str]:
    values = {name: getattr(config, name) for name in ("name", "labeled", "unlabeled", "test", "workers")}
    return [text for name, value in values.items() for text in (f"--data.{name}", str(value))]


def lines_starting(text: str, word: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith(word)]


def fails(*arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2


# What is found.


def test_sizes_are_width_by_height_and_counted(tmp_path: Path, paint: Paint):
    names = [str(paint(tmp_path / f"{i}.png", i, size)) for i, size in enumerate([(12, 8), (12, 8), (8, 12)])]
    found = examine(Images(pixels=None, labels=np.zeros(3, dtype=np.int64), names=names), "", progress=False)
    assert found.sizes == {"12 x 8": 2, "8 x 12": 1}
    assert len(found.hashes) == 3 and found.unreadable == {}


def test_images_are_the_same_by_their_pixels_and_shape():
    pixels = np.zeros((3, 4, 4, 1), dtype=np.uint8)
    pixels[1, 0, 0] = 1
    labels = np.zeros(3, dtype=np.int64)
    found = examine(Images(pixels=pixels, labels=labels, names=["a", "b", "c"]), "", progress=False)
    assert found.hashes["a"] == found.hashes["c"] != found.hashes["b"]
    flat = Images(pixels=np.zeros((1, 2, 8, 1), dtype=np.uint8), labels=labels[:1], names=["d"])
    assert examine(flat, "", progress=False).hashes["d"] not in found.hashes.values()


def test_parts_are_the_lists_that_have_images(config: DataConfig):
    assert {name: len(part) for name, part in parts_of(load_data(config)).items()} == {
        **{"training": 9, "unlabeled": 6, "test": 4}
    }
    assert list(parts_of(load_data(replace(config, unlabeled=None)))) == ["training", "test"]


def test_a_list_is_described_by_its_rarest_and_most_frequent_class():
    def of(*labels: int) -> Images:
        return Images(pixels=None, labels=np.array(labels, dtype=np.int64), names=["x"] * len(labels))

    assert describe(of(0, 2, 2, -1), ("a", "b", "c")) == "4 images, 0 (b) to 2 (c) a class"
    assert describe(of(-1, -1), ("a", "b")) == "2 images of unknown class"


# debias-ssl data check


def test_check_tells_classes_counts_sizes_and_split(
    tree: Path, flags: list[str], paint: Paint, capsys: pytest.CaptureFixture[str]
):
    paint(tree / "labeled" / "dog" / "large.png", 500, (20, 10))
    main(["check", *flags, "--data.labels_per_class", "2", "--data.validation_per_class", "1"])
    told = capsys.readouterr().out
    assert lines_starting(told, "2 classes") == ["2 classes: cat, dog"]
    assert lines_starting(told, "training") == [
        "training 10 images, 4 (cat) to 6 (dog) a class; 9 of 12 x 12, 1 of 20 x 10"
    ]
    # The first is of the list, the second of the split, in which the labeled images are unlabeled too.
    assert lines_starting(told, "unlabeled") == [
        *("unlabeled 6 images of unknown class; 6 of 12 x 12", "unlabeled 10 images a class: 2, 2; 6 of unknown class")
    ]
    assert lines_starting(told, "test") == ["test 4 images, 2 (cat) to 2 (dog) a class; 4 of 12 x 12"]
    assert lines_starting(told, "unreadable") == ["unreadable 0 files"]
    assert lines_starting(told, "labeled") == ["labeled 4 images a class: 2, 2"]
    assert lines_starting(told, "validation") == ["validation 2 images a class: 1, 1"]


def test_check_counts_the_sizes_that_it_does_not_list(
    tree: Path, flags: list[str], paint: Paint, capsys: pytest.CaptureFixture[str]
):
    for i in range(4):
        paint(tree / "labeled" / "cat" / f"more{i}.png", 500 + i, (20 + i, 10))
    main(["check", *flags])
    (line,) = lines_starting(capsys.readouterr().out, "training")
    assert line.endswith("9 of 12 x 12, 1 of 20 x 10, 1 of 21 x 10 and 2 other sizes")


def test_check_names_the_files_that_cannot_be_read_and_fails(
    tree: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
):
    for place in ("labeled/cat/1.png", "unlabeled/a/b/4.png", "test/dog/2.png"):
        (tree / place).write_bytes(b"no image")
    fails("check", *flags)
    told = capsys.readouterr().out
    assert "unreadable 3 files" in told
    for place in ("labeled/cat/1.png", "unlabeled/a/b/4.png", "test/dog/2.png"):
        assert f" {tree / place}: cannot identify image file" in told


def test_check_names_test_images_that_are_trained_on(tree: Path, flags: list[str], capsys: pytest.CaptureFixture[str]):
    shutil.copy(tree / "test" / "cat" / "0.png", tree / "labeled" / "dog" / "copy.png")
    shutil.copy(tree / "test" / "dog" / "3.png", tree / "unlabeled" / "c" / "copy.png")
    main(["check", *flags])
    told = capsys.readouterr().out
    assert lines_starting(told, "duplicates") == [
        "duplicates 1 test images are also training images",
        "duplicates 1 test images are also unlabeled images",
    ]
    assert f" {tree}/test/cat/0.png = {tree}/labeled/dog/copy.png\n" in told
    assert f" {tree}/test/dog/3.png = {tree}/unlabeled/c/copy.png\n" in told


def test_check_of_embedded_data_finds_no_fault(capsys: pytest.CaptureFixture[str]):
    main(["check", "--data.labels_per_class", "4"])
    told = capsys.readouterr().out
    assert lines_starting(told, "test") == ["test 599 images, 54 (3) to 63 (8) a class; 599 of 8 x 8"]
    assert lines_starting(told, "unlabeled")[-1].startswith("unlabeled 1198 images a class: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: debias-ssl data check|split"),
        (["inspect"], "usage: debias-ssl data check|split"),
        (
            ["check", "--data.labels_per_class", "999"],
            "images left, but 999 are requested: lower data.labels_per_class",
        ),
        (["check", "--data.name", "folder"], "needs data.labeled and data.test"),
        (["check", "--data.labels_per_class", "0"], "data.labels_per_class is 0, must be at least 1"),
        (["check", "--data.lables_per_class", "4"], "--data.lables_per_class"),
        (["split", "--seed", "1"], "the following arguments are required: out"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_on_stderr(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    fails(*arguments)
    told = capsys.readouterr().err
    # Beside the line itself there are only progress bars, which rewrite theirs.
    last = told.rstrip("\n").split("\r")[-1].split("\n")[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in told


# debias-ssl data split


def test_a_split_that_was_written_is_the_one_that_is_used(
    config: DataConfig, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "splits" / "a.json"
    main(["split", *flags, "--data.labels_per_class", "2", "--seed", "3", "--out", str(out)])
    told = capsys.readouterr().out
    assert lines_starting(told, "labeled") == ["labeled 4 images a class: 2, 2"]
    assert told.splitlines()[-1] == str(out)
    saved = json.loads(out.read_text())
    # Neither the seed nor the number of labels is given again.
    used = make_task(replace(config, split=str(out)), seed=0, place=Place(), progress=False).split
    assert used.labeled.tolist() == saved["labeled"] and len(used.labeled) == 4
    assert used.unlabeled.tolist() == saved["unlabeled"]
    drawn = make_task(replace(config, labels_per_class=2), seed=3, place=Place(), progress=False).split
    assert drawn.labeled.tolist() == saved["labeled"]


def test_a_split_is_not_overwritten_unless_that_is_asked_for(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "split.json"
    out.write_text("precious")
    fails("split", *flags, "--out", str(out))
    assert capsys.readouterr().err == f"error: '{out}' exists: pass --overwrite to replace it\n"
    assert out.read_text() == "precious"
    main(["split", *flags, "--out", str(out), "--overwrite"])
    assert len(json.loads(out.read_text())["labeled"]) == 9


def test_a_split_that_cannot_be_drawn_writes_nothing(flags: list[str], tmp_path: Path):
    fails("split", *flags, "--data.labels_per_class", "5", "--out", str(tmp_path / "split.json"))
    assert not (tmp_path / "split.json").exists()


def test_a_split_without_unreadable_files_fits_the_run_that_skips_them(
    tree: Path, config: DataConfig, flags: list[str], tmp_path: Path
):
    (tree / "labeled" / "cat" / "1.png").write_bytes(b"no image")
    out = str(tmp_path / "split.json")
    main(["split", *flags, "--data.on_error", "skip", "--out", out])
    task = make_task(replace(config, on_error="skip", split=out), seed=0, place=Place(), progress=False)
    assert list(task.unreadable) == [str(tree / "labeled" / "cat" / "1.png")]
    assert len(task.split.labeled) == 8 and task.labeled_counts == (3, 5)
