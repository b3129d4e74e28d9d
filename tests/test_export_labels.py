"""`debias-ssl export-labels`: what other packages read in it, and `import-labels` finds exactly what was changed."""

import json
import re
import shutil
import tarfile
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from annotation_programs import FIFTYONE, LABEL_STUDIO, python_with, run_program
from jobs import refused, rows_of
from labeled_images import CLASSES, NUM, debiased, differing, labels_in, make_labels
from PIL import Image

import debias_ssl.import_labels
from debias_ssl.data.sources.folder import labeled_files
from debias_ssl.export_labels import main
from debias_ssl.labels.annotation import dataset_files

import_labels = debias_ssl.import_labels.main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def labels(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The labels, in the folder where jobs start; the images lie beside them."""
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("labels")


def exported(labels: Path, to: str, *flags: str, out: str = "out") -> Path:
    root = [] if "--root" in flags else ["--root", "images"]
    main([str(labels), "--to", to, *root, "--out", out, *flags])
    return Path(out)


def imported(labels: Path, corrections: Path, *flags: str, out: str = "merged") -> Path:
    import_labels([str(labels), "--corrections", str(corrections), "--out", out, *flags])
    return Path(out) / "labels.csv"


def changes_of(labels: Path) -> dict[str, str]:
    """Other labels for two images."""
    known = labels_in(labels / "labels.csv")
    return {name: CLASSES[(CLASSES.index(known[name]) + 1) % len(CLASSES)] for name in [*known][5:12:6]}


# -- Label Studio


@pytest.mark.slow
def test_label_studio_takes_the_tasks_and_what_annotators_change_comes_back(labels: Path):
    python = python_with("LABEL_STUDIO_PYTHON", "label_studio_sdk")
    changes = changes_of(labels)
    run_program(python, LABEL_STUDIO, exported(labels, "label-studio"), "annotated", json.dumps(changes))
    for name in ("export.json", "min.json", "table.csv"):
        merged = imported(labels, Path("annotated") / name, out=name.replace(".", "_"))
        assert differing(merged, labels / "labels.csv") == changes
        assert {row["source"] for row in rows_of(merged.parent)} == {"label-studio:ann@example.org"}


def test_tasks_have_the_labels_as_predictions_with_scores(labels: Path):
    rows = rows_of(labels)
    out = exported(labels, "label-studio", "--model_version", "v 2")
    tasks = json.loads((out / "tasks.json").read_text())
    for row, task in zip(rows, tasks, strict=True):
        assert task["data"] == {
            "image": "/data/local-files/?d=images/" + row["path"].replace(" ", "%20"),
            "path": row["path"],
            "plain_label": row["plain_label"],
        }
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "v 2" and prediction["score"] == float(row["confidence"])
        assert prediction["result"][0]["value"] == {"choices": [row["label"]]}
    config = ElementTree.fromstring((out / "label_config.xml").read_text())
    assert [choice.get("value") for choice in config.iter("Choice")] == CLASSES


@pytest.mark.parametrize(
    ("path", "root", "prefix", "address"),
    [
        ("s0\\im 1.png", None, "https://host/a/", "https://host/a/s0/im%201.png"),
        ("C:\\data\\s0\\1.png", "C:\\data", "/data/local-files/?d=data/", "/data/local-files/?d=data/s0/1.png"),
        ("C:\\data\\s0\\1.png", "C:\\data\\", "s3://bucket/", "s3://bucket/s0/1.png"),
        ("/data/s0/ä #1?.png", "/data", "http://host/", "http://host/s0/%C3%A4%20%231%3F.png"),
        ("s0/a+b.png", None, "/data/local-files/?d=x/", "/data/local-files/?d=x/s0/a%2Bb.png"),
        ("s0/a b.png", None, "s3://bucket/", "s3://bucket/s0/a b.png"),
    ],
)
def test_addresses_of_images(path: str, root: str | None, prefix: str, address: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("given.csv").write_text(f"path,label\n{path},ant\n", encoding="utf-8")
    flags = ["--url_prefix", prefix, *(["--root", root] if root else [])]
    main(["given.csv", "--to", "label-studio", "--out", "out", *flags])
    (task,) = json.loads(Path("out/tasks.json").read_text())
    assert task["data"] == {"image": address, "path": path}


def test_a_row_without_a_label_or_a_confidence_is_a_task_without_them(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("given.csv").write_text("path,label,confidence\n1.png,ant,\n2.png,,0.2\n3.png,bee,0.5\n")
    main(["given.csv", "--to", "label-studio", "--url_prefix", "http://host/", "--out", "out"])
    first, second, third = (task["predictions"] for task in json.loads(Path("out/tasks.json").read_text()))
    assert "score" not in first[0] and second == [] and third[0]["score"] == 0.5


def test_images_that_nothing_locates_are_asked_for(labels: Path, capsys):
    message = refused(main, ["labels", "--to", "label-studio", "--out", "out"], capsys)
    assert "as --root" in message and "--url_prefix" in message
    Path("given.csv").write_text("path,label\n/data/1.png,ant\n")
    flags = ["given.csv", "--to", "label-studio", "--url_prefix", "http://host/", "--out", "out"]
    assert "such paths as --root" in refused(main, flags, capsys)
    message = refused(main, ["labels", "--to", "fiftyone", "--root", "labels", "--out", "out"], capsys)
    assert "there is no file" in message and "--root" in message


# -- FiftyOne


@pytest.mark.slow
def test_fiftyone_reads_the_folder_and_what_is_changed_there_comes_back(labels: Path):
    python = python_with("FIFTYONE_PYTHON", "fiftyone mongomock")
    changes = changes_of(labels)
    run_program(python, FIFTYONE, exported(labels, "fiftyone"), "of_fiftyone", json.dumps(changes))
    merged = imported(labels, Path("of_fiftyone"))
    assert differing(merged, labels / "labels.csv") == changes
    assert [row["source"] for row in rows_of(merged.parent)].count("fiftyone") == 2


def test_samples_have_both_labels_and_come_back_without_the_package(labels: Path):
    changes = changes_of(labels)
    out = exported(labels, "fiftyone")
    samples = json.loads((out / "samples.json").read_text())
    for row, sample in zip(rows_of(labels), samples["samples"], strict=True):
        file = Path(sample["filepath"])
        assert file.is_absolute() and file.samefile(Path("images") / row["path"])
        plain = {"_cls": "Classification", "label": row["plain_label"], "confidence": float(row["plain_confidence"])}
        assert sample["plain_label"] == plain and sample["label"]["confidence"] == float(row["confidence"])
        sample["label"]["label"] = changes.get(row["path"], row["label"])
    Path("changed.json").write_text(json.dumps(samples))
    merged = imported(labels, Path("changed.json"))
    assert differing(merged, labels / "labels.csv") == changes


# -- folders of images


@pytest.mark.parametrize("files", ["link", "copy"])
def test_an_image_tree_is_read_and_images_that_are_moved_come_back(labels: Path, files: str):
    out = exported(labels, "imagefolder", "--files", files)
    known, changes = labels_in(labels / "labels.csv"), changes_of(labels)
    found = labeled_files(str(out / "images"), None, "data.labeled")
    assert sorted(found.labels) == sorted(known.values())
    place = {path.name: path for path in (out / "images").glob("*/*")}
    for name, label in known.items():
        path = place[name.replace("/", "__")]
        assert path.parent.name == label and path.is_symlink() == (files == "link")
        assert path.read_bytes() == (Path("images") / name).read_bytes()
    for name, label in changes.items():
        path = place[name.replace("/", "__")]
        path.rename(out / "images" / label / path.name)
    assert differing(imported(labels, out), labels / "labels.csv") == changes


def test_paths_that_give_one_name_and_rows_without_labels(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b.png", "a__b.png", "c.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(name)
    Path("given.csv").write_text("path,label\na/b.png,x\na__b.png,x\nc.png,\n")
    main(["given.csv", "--to", "imagefolder", "--root", ".", "--out", str(tmp_path.parent / f"{tmp_path.name}_o")])
    assert "1 of 3 images have no label" in capsys.readouterr().err
    shown = sorted(path.name for path in tmp_path.parent.glob(f"{tmp_path.name}_o/images/*/*"))
    assert shown == ["1__a__b.png", "a__b.png"]


def test_a_class_that_is_no_folder_is_refused(labels: Path, capsys):
    for name in ("a/b", "..", ".hidden", "a\\b"):
        Path("given.csv").write_text(f"path,label\nim.png,{name}\n")
        shutil.copy("images/s0/im 00.png", "im.png")
        message = refused(main, ["given.csv", "--to", "imagefolder", "--out", "out"], capsys)
        assert "is not a valid folder name" in message and not (Path("out") / "images").exists()


# -- data sets


def test_datasets_reads_images_and_class_labels(labels: Path, monkeypatch, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    # Two images a file.
    monkeypatch.setattr(dataset_files, "SHARD_BYTES", 2 * Path("images/s0/im 00.png").stat().st_size)
    out = exported(labels, "hf")
    assert len([*(out / "data").iterdir()]) > 2
    dataset = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features["label"] == datasets.ClassLabel(names=CLASSES)
    assert isinstance(dataset.features["image"], datasets.Image) and len(dataset) == NUM
    for row, entry in zip(rows_of(labels), dataset, strict=True):
        assert entry["path"] == row["path"] and CLASSES[entry["label"]] == row["label"]
        assert CLASSES[entry["plain_label"]] == row["plain_label"]
        assert entry["confidence"] == pytest.approx(float(row["confidence"]), abs=1e-6)
        np.testing.assert_array_equal(np.asarray(entry["image"]), np.asarray(Image.open(f"images/{row['path']}")))


GUIDE = (Path(__file__).parent.parent / "docs/annotation.md").read_text()


def test_cleanlab_finds_two_wrong_labels_and_they_come_back(labels: Path, tmp_path: Path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("cleanlab")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    known = labels_in(labels / "labels.csv")
    surest = sorted(rows_of(labels), key=lambda row: -float(row["confidence"]))
    wrong = [next(row["path"] for row in surest if row["label"] == label) for label in CLASSES[:2]]
    # People made two mistakes, and know no dogs.
    given = {name: label for name, label in known.items() if label != "dog"}
    given |= {name: CLASSES[CLASSES.index(known[name]) + 1] for name in wrong}
    lines = "".join(f'{name},"{label.replace(chr(34), 2 * chr(34))}"\n' for name, label in given.items())
    Path("given.csv").write_text(f"path,label\n{lines}")
    exported(labels, "cleanlab", "--truth", "given.csv", out="runs/check")
    # It warns of classes with few rows, and prints what it finds.
    (program,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(program, found)
    dataset, probs = found["dataset"], np.load("runs/check/pred_probs.npy")
    assert list(dataset["path"]) == [*given] and dataset.features["label"].names == CLASSES
    assert [CLASSES[k] for k in dataset["label"]] == [*given.values()]
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-6)
    own = np.load(labels / "probs.npy")[[[*known].index(name) for name in given]]
    np.testing.assert_allclose(probs, own, atol=2e-3)
    right = {name: known[name] for name in wrong}
    assert differing(imported(Path("given.csv"), Path("issues.csv")), Path("given.csv")) == right
    # Without paths, rows are found by their numbers.
    found["issues"].drop(columns="path").to_csv("numbered.csv")
    numbered = imported(Path("given.csv"), Path("numbered.csv"), "--issues", "unlabel", out="unlabeled")
    assert differing(numbered, Path("given.csv")) == dict.fromkeys(wrong, "")
    message = refused(import_labels, ["labels", "--corrections", "numbered.csv", "--out", "o"], capsys)
    assert "without a path" in message


def test_labels_that_are_their_own_probabilities_are_told(labels: Path, capsys):
    exported(labels, "cleanlab")
    assert "--truth FILE" in capsys.readouterr().err
    Path("given.csv").write_text("path,label\nim.png,ant\n")
    message = refused(main, ["given.csv", "--to", "cleanlab", "--out", "o"], capsys)
    assert "probabilities of all classes" in message


def test_a_parquet_table_has_labels_and_probabilities(labels: Path):
    table = pd.read_parquet(exported(labels, "parquet") / "labels.parquet")
    rows = rows_of(labels)
    for name in ("path", "label", "plain_label"):
        assert [*table[name]] == [row[name] for row in rows]
    np.testing.assert_allclose(np.stack(table["probs"].to_list()), np.load(labels / "probs.npy"), atol=2e-3)


def test_a_table_of_predict_has_its_own_probabilities(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("path,label,confidence,p_b,p_a\n1.png,a,0.75,0.25,0.75\n2.png,b,0.5,0.5,0.5\n")
    main(["p.csv", "--to", "parquet", "--out", "out"])
    table = pd.read_parquet("out/labels.parquet")
    np.testing.assert_allclose(np.stack(table["probs"].to_list()), [[0.25, 0.75], [0.5, 0.5]], atol=1e-6)


# -- rows, folders, settings


def test_only_some_rows_are_written_in_the_order_of_a_list(labels: Path, capsys):
    names = [*labels_in(labels / "labels.csv")]
    wanted = [names[7], names[2], names[30]]
    Path("suggested.csv").write_text("path,score\n" + "".join(f"{name},1\n" for name in wanted))
    tasks = json.loads((exported(labels, "label-studio", "--only", "suggested.csv") / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == wanted
    probs = pd.read_parquet(exported(labels, "parquet", "--only", "suggested.csv", out="p") / "labels.parquet")["probs"]
    own = np.load(labels / "probs.npy")[[7, 2, 30]]
    np.testing.assert_allclose(np.stack(probs.to_list()), own, atol=2e-3)
    Path("list.txt").write_text("nowhere.png\n")
    message = refused(main, ["labels", "--to", "parquet", "--only", "list.txt", "--out", "q"], capsys)
    assert "--only list.txt names 'nowhere.png'" in message


def test_the_root_is_that_of_the_job_that_made_the_labels(labels: Path):
    summary = json.loads((labels / "summary.json").read_text())
    (labels / "summary.json").write_text(json.dumps(summary | {"images": str(Path("images").resolve()), "root": None}))
    main(["labels", "--to", "fiftyone", "--out", "out"])
    assert str(Path("images/s0").resolve()) in Path("out/samples.json").read_text()


def test_rows_that_have_no_paths_have_no_images(labels: Path, capsys):
    np.save("logits.npy", np.eye(6)[:, :3] + 0.1)
    debiased(Path("logits.npy"), Path("plain"))
    for to in ("label-studio", "fiftyone", "hf", "imagefolder"):
        assert "no paths of images" in refused(main, ["plain", "--to", to, "--root", ".", "--out", "../o"], capsys)
    main(["plain", "--to", "parquet", "--out", "out"])
    assert [*pd.read_parquet("out/labels.parquet")["path"]] == [str(i) for i in range(6)]


def test_an_export_is_replaced_when_asked_and_by_any_format(labels: Path, capsys):
    exported(labels, "imagefolder")
    flags = ["labels", "--to", "hf", "--root", "images", "--out", "out"]
    assert "pass --overwrite" in refused(main, flags, capsys)
    main([*flags, "--overwrite"])
    assert sorted(path.name for path in Path("out").iterdir()) == ["data", "written.json"]
    Path("mine").mkdir()
    Path("mine/tasks.json").write_text("mine")
    flags = ["labels", "--to", "label-studio", "--root", "images", "--out", "mine", "--overwrite"]
    assert "holds tasks.json" in refused(main, flags, capsys)
    assert Path("mine/tasks.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "fiftyone", "--url_prefix", "x"], "--url_prefix works with --to label-studio"),
        (["--to", "hf", "--files", "copy"], "--files works with --to imagefolder"),
        (["--to", "parquet", "--truth", "x.csv"], "--truth works with --to cleanlab"),
        (["--to", "yolo"], "yolo"),
    ],
)
def test_settings_of_other_formats_are_refused(flags: list[str], words: str, labels: Path, capsys):
    assert words in refused(main, ["labels", *flags, "--out", "out"], capsys)


def test_folders_without_labels_are_refused(labels: Path, capsys):
    assert "there is no file 'images/labels.csv'" in refused(main, ["images", "--to", "hf", "--out", "out"], capsys)
    Path("t.csv").write_text("a,b\n1,2\n")
    assert "must name the columns" in refused(main, ["t.csv", "--to", "hf", "--out", "out"], capsys)


def test_images_in_tar_files_are_copied_out(labels: Path, capsys):
    names = [*labels_in(labels / "labels.csv")][:3]
    with tarfile.open("shard.tar", "w") as file:
        for name in names:
            file.add(Path("images") / name, arcname=name)
    Path("given.csv").write_text("path,label\n" + "".join(f"shard.tar/{name},ant\n" for name in names))
    for to in ("imagefolder", "fiftyone", "label-studio"):
        message = refused(main, ["given.csv", "--to", to, "--root", ".", "--out", "../o"], capsys)
        assert "lies in a tar file" in message
    main(["given.csv", "--to", "imagefolder", "--files", "copy", "--out", "out"])
    found = sorted(path.read_bytes() for path in Path("out/images/ant").iterdir())
    assert found == sorted((Path("images") / name).read_bytes() for name in names)
    main(["given.csv", "--to", "hf", "--out", "hf"])
    images = pd.read_parquet("hf/data")["image"]
    assert [image["bytes"] for image in images] == [(Path("images") / name).read_bytes() for name in names]
