"""Jobs on images in tar files: a run that is resumed, two processes, and labels, against those of a folder."""

import json
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import rows_of
from launched import DIGITS, SHORT, Job, Launched
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from small_clip import paint_images, save_clip

from debias_ssl import label
from debias_ssl.data.reading.features import find_features
from debias_ssl.data.sources import shards
from debias_ssl.data.sources.folder import find_files
from debias_ssl.features import embedding as features
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError
from debias_ssl.train import main as train_main
from debias_ssl.training.journal import read_journal

pytestmark = pytest.mark.usefixtures("cache")


def pack(path: Path, files: Sequence[Path], root: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.relative_to(root).as_posix())


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """Settings of a run on digits as files: labeled and test images in trees, 180 unlabeled ones in shards of 40."""
    data: Any = load_digits()
    unlabeled: list[Path] = []
    for i, (image, k) in enumerate(zip(data.images[:260], data.target[:260], strict=True)):
        part = "labeled" if i < 40 else "test" if i < 80 else "unlabeled"
        path = tmp_path / part / ("" if part == "unlabeled" else str(k)) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
        if part == "unlabeled":
            path.with_suffix(".cls").write_text(str(k))
            unlabeled += [path, path.with_suffix(".cls")]
    for number, start in enumerate(range(0, len(unlabeled), 80)):
        pack(tmp_path / "shards" / f"u-{number}.tar", unlabeled[start : start + 80], tmp_path / "unlabeled")
    settings = {
        "name": "folder",
        "labeled": tmp_path / "labeled",
        "test": tmp_path / "test",
        "labels_per_class": "null",
    }
    settings |= {"unlabeled": f"{tmp_path}/shards/u-{{0..4}}.tar", "workers": 0, "lanes": 4}
    base = ["--config", str(DIGITS), *SHORT, "--batch_size", "8", "--unlabeled_ratio", "2", "--optim.lr", "0.03"]
    return [*base, *(f"--data.{name}={value}" for name, value in settings.items())]


def results(out: Path) -> tuple[dict[str, bytes], list[dict]]:
    """Weights, and what was logged apart from times."""
    timed = {"seconds", "images_per_second", "data_wait"}
    records = [{k: v for k, v in r.items() if k not in timed} for r in read_journal(RunFolder(out).metrics)]
    return {name: value.tobytes() for name, value in load_file(out / "model.safetensors").items()}, records


def test_a_resumed_run_and_one_of_two_processes_see_what_the_unbroken_one_saw(digits, tmp_path: Path, capsys):
    train_main([*digits, "--out", str(tmp_path / "whole")])
    told = json.loads((tmp_path / "whole" / "model.json").read_text())
    data: Any = load_digits()
    truth = data.target
    assert told["unlabeled_counts"] == np.bincount([*truth[:40], *truth[80:260]]).tolist(), "by the .cls members"
    stopped = [*digits, "--out", str(tmp_path / "stopped"), "--data.workers", "1"]
    job = Job("train", stopped, tmp_path / "stopped.log")
    while job.is_running() and not (tmp_path / "stopped" / "checkpoints" / "step_00000004").is_dir():
        time.sleep(0.01)
    job.kill()
    train_main([*stopped, "--resume"])
    assert "resumed at step" in (tmp_path / "stopped.log").read_text() + capsys.readouterr().err
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    two = Launched(2, tmp_path / "two", base=[*digits, "--model.norm", "group"])
    train_main([*digits, "--model.norm", "group", "--out", str(tmp_path / "one")])
    two.finish()
    for one, other in zip(results(tmp_path / "one")[1], results(tmp_path / "two")[1], strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.fixture
def labeled_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ten images of two classes in a folder and in shards, and a command line without --images and --out."""
    monkeypatch.setattr(features, "SHARD_SIZE", 4)
    monkeypatch.setattr(label, "_page", lambda *_: "")
    files = paint_images(tmp_path / "images")
    for number, part in enumerate((files[:3], files[3:8], files[8:])):
        pack(tmp_path / "shards" / f"x-{number}.tar", part, tmp_path / "images")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    return ["--classes", str(tmp_path / "classes.txt"), "--model", model, "--workers", "0", "--precision", "fp32"]


def test_labels_of_shards_are_those_of_the_folder(labeled_folder, tmp_path: Path, monkeypatch):
    where = str(tmp_path / "shards" / "x-*.tar")
    label.main([*labeled_folder, "--images", str(tmp_path / "images"), "--out", str(tmp_path / "folder")])
    label.main([*labeled_folder, "--images", where, "--out", str(tmp_path / "sharded")])
    folder, sharded = rows_of(tmp_path / "folder"), rows_of(tmp_path / "sharded")
    assert [row.pop("path") for row in folder] == [row.pop("path").partition("/")[2] for row in sharded]
    assert folder == sharded
    assert rows_of(tmp_path / "sharded")[3]["path"].startswith("x-1.tar/")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("folder", "sharded")]
    # Where the images and their features are.
    assert all(summary.pop("images") and summary.pop("features") for summary in summaries)
    assert summaries[0] == summaries[1]
    kept = tmp_path / "sharded" / "features"
    names = [f"shard_{number:05}.npy" for number in range(3)]
    for name in names:
        assert (kept / name).read_bytes() == (tmp_path / "folder" / "features" / name).read_bytes()
    # The trainer finds features, classes and images by the names in labels.csv.
    paths = [str(tmp_path / "shards" / row["path"]) for row in rows_of(tmp_path / "sharded")]
    first, second = (np.load(kept / name) for name in names[:2])
    assert (find_features([str(kept)], [paths[5], paths[0]]) == np.stack([second[1], first[0]])).all()
    # What was made before is not made again.
    (kept / names[1]).unlink()
    opened: list[str] = []
    read = shards.read_member
    monkeypatch.setattr(shards, "read_member", lambda member: opened.append(member.inner) or read(member))
    label.main([*labeled_folder, "--images", where, "--out", str(tmp_path / "again"), "--features", str(kept)])
    assert opened == [path.partition(".tar/")[2] for path in paths[4:8]]
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "sharded")


def test_images_of_a_shard_that_was_written_anew_are_known_by_their_content(labeled_folder, tmp_path: Path, capsys):
    where = str(tmp_path / "shards" / "x-{0..2}.tar")
    label.main([*labeled_folder, "--images", where, "--out", str(tmp_path / "out")])
    os.utime(tmp_path / "shards" / "x-1.tar", ns=(0, 0))
    member = find_files(where, "--images").names[3]
    with pytest.raises(InputError, match="has changed since its features were made"):
        find_features([str(tmp_path / "out" / "features")], [member])
    arguments = [*labeled_folder, "--images", where, "--out", str(tmp_path / "b")]
    label.main([*arguments, "--features", str(tmp_path / "out" / "features")])
    said = capsys.readouterr().err
    assert "features of 5 of 10 images are used again; 5 images are new, or have" in said
    assert "note: 5 images have known contents" in said
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "out")
    assert find_features([str(tmp_path / "out" / "features")], [member]).shape == (1, 8)


def test_a_run_takes_labels_of_shards_as_labels(labeled_folder, tmp_path: Path):
    label.main([*labeled_folder, "--images", str(tmp_path / "shards" / "x-*.tar"), "--out", str(tmp_path / "out")])
    data = {"name": "folder", "labeled": tmp_path / "out" / "labels.csv", "root": tmp_path / "shards"}
    data |= {"seeds_per_class": 2, "test": tmp_path / "images", "image_size": 8, "labels_per_class": "null"}
    data |= {"unlabeled": tmp_path / "shards" / "x-*.tar", "probs": tmp_path / "out"}
    settings = [f"--data.{name}={value}" for name, value in data.items()]
    run = ["--config", str(DIGITS), "--steps", "2", "--batch_size", "2", "--unlabeled_ratio", "2", *settings]
    train_main([*run, "--out", str(tmp_path / "run")])
    assert RunFolder(tmp_path / "run").is_finished()
