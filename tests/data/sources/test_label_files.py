import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.label_files import confident, read_confidence, read_probs
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import DebiasPL, FixMatch
from debias_ssl.system.errors import InputError

ROWS = (
    "path,label,confidence",
    "0.png,dog,0.99",
    "1.png,cat,0.30",
    "2.png,dog,0.40",
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
    # Row i gives class k the probability (10 i + k) / 100, in the order of CLASSES.
    np.save(folder / "probs.npy", (np.arange(5)[:, None] * 10 + np.arange(3)).astype(np.float16) / 100)
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
        (("path,label,confidence", "0.png,dog,high"), "a confidence is not a number"),
        (("path,label,confidence", "0.png,dog"), "row 1 has a confidence outside"),
        (("path,label,confidence", "0.png,dog,0.5", "1.png,dog,1.5"), r"row 2 has a confidence outside"),
        (("path,label,confidence", "0.png,dog,nan"), r"row 1 has a confidence outside"),
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_confidence": 1.5}, "min_confidence is 1.5, must be in"),
        ({"seeds_per_class": 0}, "seeds_per_class is 0, must be at least 1"),
        ({"seeds_per_class": 1, "min_confidence": 0.5}, "exclude each other"),
        ({"name": "digits", "probs": "x"}, r"data\.probs is for image files"),
        ({"name": "digits", "features": ("x",)}, r"data\.features is for image files"),
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
    expected = [[10 * int(name[0]) + k for k in (2, 1, 0)] for name in names]
    np.testing.assert_allclose(task.teacher_probs.astype(float) * 100, expected, atol=0.02)
    stream = task.training_stream(
        DebiasPL(task.problem(1), assist_threshold=0.4), seed=0, batch_size=2, unlabeled_ratio=3, balanced=False
    )
    batch = next(stream.batches(0, 1))
    unlabeled = [names[i] for i in task.split.unlabeled]
    assert batch.teacher_probs is not None
    firsts = (batch.teacher_probs[:, 2] * 10).round().int().tolist()
    assert firsts == [int(unlabeled[i][0]) for i in batch.index.tolist()]
    # A method that does not ask is given nothing.
    stream = task.training_stream(FixMatch(task.problem(1)), seed=0, batch_size=2, unlabeled_ratio=3, balanced=False)
    assert next(stream.batches(0, 1)).teacher_probs is None


def test_images_that_are_not_listed_get_zeros(labels: Path, paint):
    other = str(paint(labels.parent / "images" / "new.png", 3))
    given = read_probs(labels, labels.parent / "images", [other, str(labels.parent / "images" / "1.png")], CLASSES)
    assert given[0].tolist() == [0, 0, 0] and given[1].tolist() == pytest.approx([0.1, 0.11, 0.12], abs=1e-3)


def test_a_method_that_needs_probabilities_says_what_to_set(labels: Path, tmp_path: Path):
    task = task_of(setting(labels, seeds_per_class=1), tmp_path)
    method = DebiasPL(task.problem(1), assist_threshold=0.4)
    with pytest.raises(InputError, match=r"DebiasPL needs class probabilities from outside: set data\.probs"):
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
