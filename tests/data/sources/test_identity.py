"""Each file is one image: doubles, and files that are in several sets, by rows, by links, in tar files and in jobs."""

import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs import refused
from launched import DIGITS

from debias_ssl import train
from debias_ssl.contract import Place
from debias_ssl.data.__main__ import main
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.listing import FileNames, find_images, joined
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.task import Task, make_task
from debias_ssl.system.errors import InputError


def listed(path: Path, *rows: str) -> str:
    path.write_text("\n".join(["path,label", *rows]) + "\n")
    return str(path)


def task_of(config: DataConfig) -> Task:
    return make_task(replace(config, image_size=8), seed=0, place=Place(), progress=False)


def files_of(task: Task, part: str) -> set[str]:
    return {os.path.realpath(str(task.data.train.names[i])) for i in getattr(task.split, part).tolist()}


# One list.


def test_rows_that_are_there_twice_are_one_image(tree: Path, config: DataConfig):
    """8 validation images of 18 rows of 9 files: seven of them were labeled as well."""
    rows = [f"labeled/{path.parent.name}/{path.name},{path.parent.name}" for path in (tree / "labeled").rglob("*.png")]
    (tree / "again").symlink_to(tree / "labeled")
    by_link = [row.replace("labeled/", "again/") for row in rows[:3]]
    labels = listed(tree / "twice.csv", *rows, *rows, *by_link)
    task = task_of(replace(config, labeled=labels, unlabeled=None, validation_per_class=2))
    assert len(task.split.validation) == 4 and len(task.split.labeled) == 5
    assert not files_of(task, "validation") & (files_of(task, "labeled") | files_of(task, "unlabeled"))
    assert f"{labels} has 12 duplicate files: each counts once" in task.notes


def test_two_labels_of_a_file_are_refused_with_their_rows(tree: Path, config: DataConfig):
    rows = ["labeled/cat/0.png,cat", "labeled/dog/1.png,dog", "labeled/../labeled/cat/0.png,dog"]
    labels = listed(tree / "rows.csv", *rows)
    with pytest.raises(InputError, match=r"rows\.csv: rows 1 and 3, '.*0\.png'.* labeled 'cat' and 'dog': keep one"):
        load_data(replace(config, labeled=labels))
    shutil.copy(tree / "test" / "cat" / "0.png", tree / "test" / "dog" / "copy.png")
    load_data(config)
    (tree / "test" / "dog" / "link.png").symlink_to(tree / "test" / "cat" / "0.png")
    with pytest.raises(InputError, match=r"cat/0\.png' and '.*link\.png' are the same file, labeled 'cat' and 'dog'"):
        load_data(config)


def test_confidences_stay_with_their_rows(tree: Path, config: DataConfig):
    (tree / "labels.csv").write_text(
        "path,label,confidence\nlabeled/cat/0.png,cat,0.9\nlabeled/cat/0.png,cat,0.9\nlabeled/cat/1.png,cat,0.1\n"
        "labeled/dog/0.png,dog,0.8\nlabeled/dog/1.png,dog,0.2\n"
    )
    data = load_data(replace(config, labeled=str(tree / "labels.csv"), unlabeled=None, min_confidence=0.5))
    names = [Path(name).relative_to(tree / "labeled").as_posix() for name in data.train.names]
    assert names == ["cat/0.png", "dog/0.png", "cat/1.png", "dog/1.png"] and data.num_separate == 2


# Several lists.


@pytest.mark.parametrize("way", ["the same folder", "a folder above", "a list", "a link", "tar files"])
@pytest.mark.parametrize("includes", [True, False])
def test_what_is_held_out_is_not_unlabeled(way: str, includes: bool, tree: Path, config: DataConfig, tmp_path: Path):
    """9 of 9 validation images were among the unlabeled."""
    labeled, unlabeled = tree / "labeled", tree / "labeled"
    if way == "a folder above":
        unlabeled = tree
    elif way == "a list":
        unlabeled = tree / "list.txt"
        paths = sorted(labeled.rglob("*.png"))
        unlabeled.write_text("\n".join(str(path.relative_to(tree)) for path in [*paths, *paths]) + "\n")
    elif way == "a link":
        unlabeled = tree / "link"
        unlabeled.symlink_to(labeled)
    elif way == "tar files":
        unlabeled = tree / "all.tar"
        with tarfile.open(unlabeled, "w") as tar:
            for path in sorted(labeled.rglob("*.png")):
                tar.add(path, path.relative_to(labeled).as_posix())
        rows = [f"all.tar/{path.parent.name}/{path.name},{path.parent.name}" for path in labeled.rglob("*.png")]
        labeled = Path(listed(tree / "rows.csv", *rows))
    config = replace(config, labeled=str(labeled), unlabeled=str(unlabeled), unlabeled_includes_labeled=includes)
    task = task_of(replace(config, labels_per_class=1, validation_per_class=2))
    held_out, trained, unlabeled_files = (files_of(task, part) for part in ("validation", "labeled", "unlabeled"))
    assert len(held_out) == 4 and len(trained) == 2 and not held_out & (trained | unlabeled_files)
    assert trained <= unlabeled_files if includes else not trained & unlabeled_files
    rest = 6 if way == "a folder above" else 0
    assert len(unlabeled_files) == len(task.split.unlabeled) == 3 + rest + 2 * includes, "each is there once"
    assert not {str(path) for path in (tree / "test").rglob("*.png")} & unlabeled_files
    told = " ".join(task.notes)
    assert "unlabeled images are also labeled images: each counts once" in told
    assert "4 validation images are also unlabeled images: training leaves them out" in told
    assert ("4 of 19 unlabeled images are also test images: left out" in told) == (way == "a folder above")


def test_a_set_without_common_files_is_as_it_was(config: DataConfig):
    task = task_of(replace(config, labels_per_class=2, validation_per_class=1))
    assert task.notes == [] and task.data.num_shared == 0
    assert task.data.train.names == [*sorted(task.data.train.names[:9]), *task.data.train.names[9:]]


def test_unlabeled_images_that_are_all_test_images_are_refused(tree: Path, config: DataConfig):
    with pytest.raises(InputError, match="all unlabeled images are also test images"):
        load_data(replace(config, unlabeled=str(tree / "test")))


def test_a_test_image_with_another_label_than_in_training_is_refused(tree: Path, config: DataConfig):
    same = listed(tree / "same.csv", "labeled/cat/0.png,cat", "labeled/dog/0.png,dog", "test/dog/2.png,dog")
    data = load_data(replace(config, test=same))
    assert data.notes == ("2 test images are also labeled images: test results are too optimistic",)
    other = listed(tree / "other.csv", "labeled/cat/0.png,dog")
    with pytest.raises(InputError, match=r"0\.png' is 'cat' in data\.labeled and 'dog' in data\.test"):
        load_data(replace(config, test=other))
    with pytest.raises(InputError, match=r"0\.png' is 'cat' in data\.labeled and 'dog' in data\.unlabeled"):
        load_data(replace(config, unlabeled=other))
    # Labels of a model may be wrong.
    (tree / "model.csv").write_text("path,label,confidence\nlabeled/cat/0.png,cat,1\nlabeled/dog/1.png,dog,1\n")
    assert load_data(replace(config, labeled=str(tree / "model.csv"), test=other)).notes


def test_unreadable_files_leave_the_sets_as_they_are(tree: Path, config: DataConfig):
    (tree / "labeled" / "dog" / "1.png").write_bytes(b"no image")
    config = replace(config, unlabeled=str(tree / "labeled"), on_error="skip", validation_per_class=1)
    task = task_of(config)
    assert (len(task.data.train), task.data.num_shared) == (8, 8)
    assert not files_of(task, "validation") & files_of(task, "unlabeled")


def test_a_run_and_data_check_say_it(tree: Path, config: DataConfig, tmp_path: Path, capsys):
    names = ("name", "labeled", "test", "workers")
    flags = [f"--data.{name}={getattr(config, name)}" for name in names] + [f"--data.unlabeled={tree / 'labeled'}"]
    flags += ["--data.validation_per_class=1", "--data.labels_per_class=1", "--data.image_size=8"]
    main(["check", *flags])
    assert "note: 9 of 9 unlabeled images are also labeled images" in capsys.readouterr().out
    run = ["--config", str(DIGITS), "--steps", "1", "--batch_size", "2", "--unlabeled_ratio", "1", *flags]
    train.main([*run, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "note: 2 validation images are also unlabeled images: training leaves them out" in said
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert not {*split["validation"]} & {*split["unlabeled"], *split["labeled"]}


# Content.


def test_check_finds_the_same_pixels_under_two_names(tree: Path, config: DataConfig, capsys):
    shutil.copy(tree / "labeled" / "cat" / "0.png", tree / "labeled" / "dog" / "copy.png")
    shutil.copy(tree / "labeled" / "cat" / "1.png", tree / "unlabeled" / "copy.png")
    main(["check", *(f"--data.{name}={getattr(config, name)}" for name in ("name", "labeled", "unlabeled", "test"))])
    said = capsys.readouterr().out
    assert "duplicates 1 training images occur more than once, 1 of them with different labels" in said
    assert f"{tree}/labeled/dog/copy.png = {tree}/labeled/cat/0.png" in said
    assert "duplicates 1 unlabeled images are also training images" in said


# One class.


def test_a_folder_that_is_one_level_off_is_refused_with_the_one_that_is_meant(tree: Path, tmp_path: Path, capsys):
    (tmp_path / "L").mkdir()
    (tree / "labeled").rename(tmp_path / "L" / "data")
    flags = [f"--data.labeled={tmp_path / 'L'}", f"--data.test={tree / 'test'}", "--data.name=folder"]
    run = ["--config", str(DIGITS), "--data.labels_per_class=null", *flags, "--out", str(tmp_path / "run")]
    (tree / "test").rename(tmp_path / "parts")
    (tree / "test").mkdir()
    (tmp_path / "parts").rename(tree / "test" / "data")
    for job, arguments in ((train.main, run), (main, ["check", *flags])):
        message = refused(job, arguments, capsys)
        assert "it has only the class folder 'data'" in message
        assert f"set it to {str(tmp_path / 'L' / 'data')!r}, which has several" in message
    rows = listed(tree / "rows.csv", "test/data/cat/0.png,data", "test/data/cat/1.png,data")
    assert "rows.csv has only the class 'data'" in refused(train.main, [*run, f"--data.labeled={rows}"], capsys)


def test_keys_are_small_and_need_no_look_at_each_file(tmp_path: Path):
    from debias_ssl.data.sources.identity import file_keys

    names = [f"{tmp_path}/{i % 100}/{i}.png" for i in range(20_000)]
    keys = file_keys([*names, *names[:10]])
    assert keys.dtype == np.int64 and keys.nbytes == 8 * 20_010
    assert len(np.unique(keys)) == 20_000 and (keys[-10:] == keys[:10]).all()


def test_a_listing_has_the_keys_of_its_paths_and_asks_the_disk_for_no_file(tmp_path: Path, monkeypatch):
    from debias_ssl.data.sources.identity import file_keys

    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a" / "0.png")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "a" / "0.png")
    (tmp_path / "all").symlink_to(tmp_path)
    names = joined(find_images(tmp_path), find_images(tmp_path / "all"))
    assert isinstance(names, FileNames) and len(names) == 10
    keys = file_keys([*names])
    monkeypatch.setattr(os, "scandir", None)
    assert (file_keys(names) == keys).all()
    # A hard link is a file of its own.
    assert len(np.unique(keys)) == 4 and (keys[:5] == keys[5:]).all() and keys[0] == keys[3]
