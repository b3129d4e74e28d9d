"""`debias-ssl label` and `debias` with names as people have them: prompts, names above, ids, vectors of one's own."""

import importlib
import json
import re
import tarfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of
from small_clip import paint_images, save_clip

from debias_ssl import debias_matrix, label, label_images
from debias_ssl.debias import main as debias
from debias_ssl.label import main
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.names.imagenet import imagenet_names, wnids
from debias_ssl.models.clip import load_clip, zero_shot_weights
from debias_ssl.reporting.labels_page import labels_page

NAMES = ["maine coon", "tabby", "dog", "car"]
TREE = "maine coon < cat < animal\ntabby < cat\ndog < animal\ncar\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Twelve images in the folders of four classes, of which two are called by ImageNet's ids as well."""
    folder = tmp_path_factory.mktemp("images")
    paint_images(folder, num=12, classes=("maine coon", "tabby", "dog", "car"))
    return folder


@pytest.fixture
def run(tmp_path: Path, model: str, images: Path, monkeypatch) -> Callable[..., list[str]]:
    """A command line without a page; `classes` are the text of a file, or a value."""
    monkeypatch.setattr(label, "_page", lambda *_: "")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\nthe {}\n")

    def arguments(classes: str, name: str = "classes.txt", **settings: Any) -> list[str]:
        if classes != "imagenet":
            (tmp_path / name).write_text(classes)
            classes = str(tmp_path / name)
        given = {"images": images, "classes": classes, "model": model, "out": tmp_path / "out"}
        given |= {"templates": tmp_path / "templates.txt", "features": tmp_path / "features"} | settings
        given |= {"workers": 0, "precision": "fp32"}
        return [text for key, value in given.items() if value is not None for text in (f"--{key}", str(value))]

    return arguments


PROMPTS = {"maine coon": ["maine coon", "long-haired cat"], "tabby": "It is a striped cat.", "dog": "dog", "car": "car"}
FORMATS = {
    "tabs.txt": "maine coon\tmaine coon\tlong-haired cat\ntabby\tIt is a striped cat.\ndog\ncar\n",
    "numbers.txt": "1: tabby\tIt is a striped cat.\n0: maine coon\tmaine coon\tlong-haired cat\n2: dog\n3: car\n",
    "object.json": json.dumps(PROMPTS),
    "tree.txt": (
        "maine coon < cat < animal\tmaine coon\tlong-haired cat\ntabby < cat\tIt is a striped cat.\ndog < animal\ncar\n"
    ),
}


def test_every_format_gives_the_same_labels(tmp_path, run, model, images):
    found = {}
    for name, text in FORMATS.items():
        main([*run(text, name), "--overwrite"])
        found[name] = (tmp_path / "out" / "labels.csv").read_bytes()
        assert json.loads((tmp_path / "out" / "classes.json").read_text()) == NAMES
    assert len(set(found.values())) == 1
    main([*run("\n".join(NAMES)), "--overwrite"])
    assert (tmp_path / "out" / "labels.csv").read_bytes() not in found.values()
    # In memory too.
    paths = sorted(str(path) for path in images.rglob("*.png"))
    templates = ["a photo of a {}.", "the {}"]
    made = label_images(paths, PROMPTS, model=model, templates=templates, precision="fp32")
    main([*run(FORMATS["object.json"], "object.json"), "--overwrite"])
    assert [NAMES[k] for k in made.label] == [row["label"] for row in rows_of(tmp_path / "out")]
    np.testing.assert_allclose(made.probs, np.load(tmp_path / "out" / "probs.npy"), atol=2e-3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", {"model_type": "vit", "id2label": {"3": "car", "1": "tabby", "0": "maine coon", "2": "dog"}}),
        ("ids.json", {"0": "maine coon", "1": "tabby", "2": "dog", "3": "car"}),
        ("class_to_idx.json", {"car": 3, "dog": 2, "maine coon": 0, "tabby": 1}),
    ],
)
def test_numbers_and_names_are_a_list_of_classes(name, content, tmp_path, run):
    main(run("\n".join(NAMES), out=tmp_path / "list"))
    main(run(json.dumps(content), name))
    assert (tmp_path / "list" / "labels.csv").read_bytes() == (tmp_path / "out" / "labels.csv").read_bytes()


def test_sentences_and_names_above_are_told(tmp_path, run, capsys):
    main(run(FORMATS["tree.txt"]))
    said = capsys.readouterr()
    assert "3 of 4 classes have names above them, such as maine coon < cat < animal\n" in said.out
    assert (
        "note: 1 of 5 prompts end with a period: they are used as sentences" in said.err
        and "'It is a striped cat.'" in said.err
    )
    main([*run("\n".join(NAMES)), "--overwrite"])
    said = capsys.readouterr()
    assert "names above" not in said.out and "sentences" not in said.err


def test_rows_get_the_deepest_name_above_the_floor(tmp_path, run, capsys):
    main(run(TREE, floor=0.6, strength=1))
    out, above = tmp_path / "out", {"maine coon": ["cat", "animal"], "tabby": ["cat", "animal"], "dog": ["animal"]}
    probs, names = np.load(out / "probs.npy").astype(float), [*NAMES, "cat", "animal"]
    sums = np.column_stack([probs, probs[:, :2].sum(1), probs[:, :3].sum(1)])
    levels, summary = [3, 3, 2, 1, 2, 1], json.loads((out / "summary.json").read_text())
    counts, right, rows = [0] * 4, [0] * 4, rows_of(out)
    assert [*rows[0]][-2:] == ["name", "name_confidence"]
    for row, of_row in zip(rows, sums, strict=True):
        reached = max((k for k in range(6) if of_row[k] >= 0.6), key=lambda k: levels[k], default=None)
        assert row["name"] == ("" if reached is None else names[reached])
        level = 0 if reached is None else levels[reached]
        counts[level] += 1
        if reached is None:
            assert row["name_confidence"] == ""
        else:
            assert float(row["name_confidence"]) == pytest.approx(of_row[reached], abs=2e-3)
            truth = row["path"].split("/")[0]
            right[level] += row["name"] in (truth, *above.get(truth, []))
    assert max(counts) < 12 and counts[1] and summary["num_unnamed"] == counts[0] and summary["floor"] == 0.6
    table = capsys.readouterr().out
    for level, entry in enumerate(summary["levels"], start=1):
        assert (entry["level"], entry["num_names"], entry["named"]) == (level, 2, counts[level])
        if counts[level]:
            assert entry["name_accuracy"] == pytest.approx(right[level] / counts[level])
        assert re.search(rf"^{level} +2 +{counts[level]} ", table, re.MULTILINE)
    # Of labels, the share that is right on each level; the last one is the accuracy.
    for k, key in enumerate(("plain_label", "label")):
        which = ("plain", "debiased")[k]
        tops = [["animal" if name in above else name for name in (row[key], row["path"].split("/")[0])] for row in rows]
        assert summary["levels"][0]["accuracy"][which] == pytest.approx(np.mean([one == other for one, other in tops]))
        assert summary["levels"][2]["accuracy"][which] == pytest.approx(summary[which]["accuracy"])


def test_without_names_above_the_name_is_a_label_that_is_sure(tmp_path, run, images, model):
    main(run("\n".join(NAMES), floor=0.45, target_prior="uniform"))
    rows = rows_of(tmp_path / "out")
    assert [row["name"] for row in rows] == [row["label"] if float(row["confidence"]) >= 0.45 else "" for row in rows]
    assert 0 < sum(row["name"] == "" for row in rows) < 12
    made = label_images(
        images,
        NAMES,
        model=model,
        floor=0.45,
        target_prior="uniform",
        precision="fp32",
        templates=["a photo of a {}.", "the {}"],
    )
    assert made.name is not None and made.hierarchy is not None
    assert ["" if k < 0 else made.hierarchy.names[k] for k in made.name] == [row["name"] for row in rows]


def test_own_vectors_take_the_place_of_prompts(tmp_path, run, model, images):
    clip = load_clip(model, None, torch.device("cpu"))
    weights = zero_shot_weights(clip, NAMES, ["a photo of a {}.", "the {}"])
    np.save(tmp_path / "vectors.npy", 3 * weights.T.numpy())
    main(run("\n".join(NAMES), out=tmp_path / "prompts"))
    main(run("\n".join(NAMES), templates=None, class_vectors=tmp_path / "vectors.npy"))
    one, other = (rows_of(tmp_path / name) for name in ("prompts", "out"))
    assert [row["label"] for row in one] == [row["label"] for row in other]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["class_vectors"] == str(tmp_path / "vectors.npy")
    made = label_images(images, NAMES, model=model, class_vectors=weights.T, precision="fp32")
    assert [NAMES[k] for k in made.label] == [row["label"] for row in one]


def test_wrong_input_is_told_before_the_model_is_loaded(tmp_path, run, capsys, monkeypatch):
    monkeypatch.setattr("debias_ssl.label.load_clip", None)
    vectors, names = tmp_path / "v.npy", "\n".join(NAMES)
    np.save(vectors, np.ones((3, 8), np.float32))
    for (classes, *file), settings, message in (
        (("cat < a\ndog < b\nb < a\n",), {}, "'b' is a class in line 3 and stands above 'dog' in line 2"),
        (('{"0": "cat", "2": "dog"}', "c.json"), {}, "has no class with the number 1"),
        ((TREE,), {"floor": 0}, "floor is 0.0, must be in (0, 1]"),
        ((names,), {"templates": None, "class_vectors": vectors}, "has 3 rows of 8 numbers; 4 rows are needed"),
        ((names,), {"class_vectors": vectors}, "--class_vectors replaces prompts, so --templates has no effect"),
        ((names,), {"templates": None, "class_vectors": tmp_path / "w.npy"}, "cannot read --class_vectors"),
    ):
        assert message in refused(main, run(classes, *file, **settings), capsys)
    assert not (tmp_path / "out").exists()


def test_vectors_of_another_model_are_refused_before_images_are_read(tmp_path, run, capsys):
    np.save(tmp_path / "v.npy", np.eye(4, 512, dtype=np.float32))
    message = refused(main, run("\n".join(NAMES), templates=None, class_vectors=tmp_path / "v.npy"), capsys)
    assert "--class_vectors have 512 numbers each, and vectors of --model 8" in message
    assert not (tmp_path / "features").exists()


IDS = ("n01440764", "n02119789", "n03773504")


@pytest.fixture
def imagenet(tmp_path: Path, run: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """A command line with random vectors of the classes, which cost no time."""
    np.save(tmp_path / "random.npy", np.random.default_rng(0).normal(size=(1000, 8)))
    return partial(run, "imagenet", templates=None, class_vectors=tmp_path / "random.npy")


@pytest.mark.parametrize("packed", [False, True])
def test_imagenets_folders_and_files_have_their_truth(packed, tmp_path, imagenet):
    """Folders, a tar file's .cls members, --truth and labels of a CSV: all by ids."""
    paths = paint_images(tmp_path / "val", num=6, classes=IDS)
    images = tmp_path / "val"
    if packed:
        images = tmp_path / "x-0.tar"
        with tarfile.open(images, "w") as tar:
            for number, path in enumerate(paths):
                (tmp_path / "x.cls").write_text(path.parent.name)
                tar.add(path, f"{number}.png")
                tar.add(tmp_path / "x.cls", f"{number}.cls")
    main(imagenet(images=images))
    rows, summary = rows_of(tmp_path / "out"), json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["num_known"] == 6 and {*summary["debiased"]["recalls"]} == {"tench", "kit fox", "missile (657)"}
    assert {row["label"] for row in rows} <= {*imagenet_names()}
    if packed:
        return
    names = [path.relative_to(images).as_posix() for path in paths]
    (images / "list.csv").write_text("path,label\n" + "".join(f"{name},{IDS[2]}\n" for name in names))
    (tmp_path / "truth.csv").write_text("path,label\n" + "".join(f"{name},{IDS[1]}\n" for name in names[:5]))
    main([*imagenet(images=images / "list.csv"), "--overwrite"])
    assert {*_summary(tmp_path)["debiased"]["recalls"]} == {"missile (657)"}
    main([*imagenet(images=images, truth=tmp_path / "truth.csv"), "--overwrite"])
    assert _summary(tmp_path)["num_known"] == 5 and {*_summary(tmp_path)["debiased"]["recalls"]} == {"kit fox"}


def test_imagenets_folder_one_level_off_is_told(tmp_path, imagenet, capsys):
    paint_images(tmp_path / "data" / "train", num=6, classes=IDS)
    main(imagenet(images=tmp_path / "data"))
    assert f"folders of '{tmp_path / 'data' / 'train'}' are" in capsys.readouterr().err


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "summary.json").read_text())


@pytest.fixture
def predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Probabilities, with another order of columns than of the classes' file."""
    monkeypatch.setattr(importlib.import_module("debias_ssl.debias"), "_page", lambda *_: "")
    probs = [[0.05, 0.85, 0.05, 0.05], [0.05, 0.5, 0.35, 0.1], [0.1, 0.4, 0.1, 0.4], [0.4, 0.3, 0.1, 0.2]]
    lines = [",".join([f"{k}.jpg", *map(str, row)]) for k, row in enumerate(probs)]
    (tmp_path / "p.csv").write_text("path,car,maine coon,tabby,dog\n" + "\n".join(lines))
    (tmp_path / "tree.txt").write_text(TREE)
    return ["--predictions", str(tmp_path / "p.csv"), "--prior", "none", "--out", str(tmp_path / "out")]


def test_debias_names_rows_from_the_classes_file(predictions, tmp_path, capsys):
    (tmp_path / "truth.csv").write_text("path,label\n0.jpg,maine coon\n1.jpg,tabby\n2.jpg,car\n")
    (tmp_path / "few.csv").write_text("path,label\n0.jpg,maine coon\n3.jpg,car\n")
    flags = ["--classes", str(tmp_path / "tree.txt"), "--floor", "0.8", "--truth", str(tmp_path / "truth.csv")]
    debias([*predictions, *flags, "--tune_on", str(tmp_path / "few.csv"), "--strength", "1", "--temperature", "1"])
    named = [(row["name"], row["name_confidence"]) for row in rows_of(tmp_path / "out")]
    assert named == [("maine coon", "0.850000"), ("cat", "0.850000"), ("animal", "0.900000"), ("", "")]
    summary, said = _summary(tmp_path), capsys.readouterr()
    # The rows that are tuned on are left out.
    assert summary["num_unnamed"] == 0 and [level["named"] for level in summary["levels"]] == [1, 1, 0]
    assert [level.get("name_accuracy") for level in summary["levels"]] == [0, 1, None]
    assert [level["accuracy"]["plain"] for level in summary["levels"]] == [0.5, 0.5, 0]
    assert "with 2 names above them" in said.out
    # Read as truth, the table's path is path, without a note.
    again = ["--truth", str(tmp_path / "out" / "labels.csv"), "--out", str(tmp_path / "again")]
    debias([*predictions[:-2], *again])
    assert "is matched to" not in capsys.readouterr().err


def test_debias_says_nothing_of_levels_where_there_are_none(predictions, tmp_path, capsys):
    debias(predictions)
    assert [*rows_of(tmp_path / "out")[0]][-1] == "plain_confidence"
    assert "levels" not in _summary(tmp_path) and "level" not in capsys.readouterr().out
    debias([*predictions, "--classes", str(tmp_path / "tree.txt"), "--overwrite"])
    assert "rows named" not in capsys.readouterr().out
    assert [level["num_names"] for level in _summary(tmp_path)["levels"]] == [2, 2, 2]


def test_debias_in_memory_takes_names_above():
    probs = np.array([[0.5, 0.35, 0.1, 0.05], [0.2, 0.2, 0.2, 0.4]])
    classes = {"maine coon < cat < animal": "x", "tabby < cat": "x", "dog < animal": "x", "car": "x"}
    made = debias_matrix(probs, classes=classes, prior="none", floor=0.8)
    assert made.hierarchy is not None and made.name is not None and made.name_confidence is not None
    assert made.classes == tuple(NAMES) and [made.hierarchy.names[k] for k in made.name[:1]] == ["cat"]
    assert made.name[1] == -1 and made.name_confidence[0] == pytest.approx(0.85) and np.isnan(made.name_confidence[1])
    assert made.summary()["num_unnamed"] == 1
    assert debias_matrix(probs, prior="none").name is None


def test_the_page_has_the_levels_of_the_rows_that_are_reported():
    probs = np.array([[0.5, 0.35, 0.1, 0.05], [0.2, 0.2, 0.2, 0.4], [0.85, 0.05, 0.05, 0.05]])
    classes = {"maine coon < cat < animal": "x", "tabby < cat": "x", "dog < animal": "x", "car": "x"}
    fixed = {"prior": "none", "strength": 1, "temperature": 1, "floor": 0.8}
    made = debias_matrix(probs, classes=classes, truth=[1, 3, 3], tune_on=[-1, -1, 0], **fixed)
    labeling = Labeling(**{each.name: getattr(made, each.name) for each in fields(Labeling)})
    page = labels_page(labeling, facts=[], features=None, pictures=None)
    (table,) = [table for table in page.sections[0].tables if table.title == "Levels of names"]
    assert table.head == ["level", "names", "rows named", "of them right", "plain right", "debiased right"]
    assert [*map(list, table.rows)] == [
        ["1", "2", "0", "-", "100.00 %", "100.00 %"],
        ["2", "2", "1", "100.00 %", "100.00 %", "100.00 %"],
        ["3", "2", "0", "-", "50.00 %", "50.00 %"],
        ["none", "", "1", "", "", ""],
    ]


def test_debias_knows_imagenets_ids(tmp_path, capsys):
    logits = np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    truth = [*wnids()][7], "tench", [*wnids()][999]
    (tmp_path / "truth.csv").write_text("row,label\n" + "".join(f"{k},{name}\n" for k, name in enumerate(truth)))
    flags = ["--predictions", str(tmp_path / "logits.npy"), "--prior", "none", "--out", str(tmp_path / "out")]
    message = refused(debias, [*flags, "--truth", str(tmp_path / "truth.csv")], capsys)
    assert "'n01514668' is not a class" in message and "for ImageNet's ids pass --classes imagenet" in message
    debias([*flags, "--classes", "imagenet", "--truth", str(tmp_path / "truth.csv")])
    assert {*_summary(tmp_path)["debiased"]["recalls"]} == {"rooster", "tench", "toilet paper"}
