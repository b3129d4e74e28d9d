"""Jobs on data sets of Hugging Face: a resumed run, labels, features and predictions, against an image folder."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_datasets import save_arrow, save_parquet
from jobs import rows_of, same, weights
from launched import SHORT
from small_clip import paint_images, save_clip

from debias_ssl import label, predict, train
from debias_ssl.features import __main__ as features

pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("cache")
SMALL = ["--data.image_size", "8", "--model.name", "wrn_10_1", "--batch_size", "4", "--data.workers", "0", *SHORT]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of images, and the same images as Parquet and as Arrow files."""
    root = tmp_path_factory.mktemp("images")
    splits = {part: sorted(paint_images(root / "tree" / part, num=num)) for part, num in (("train", 20), ("test", 6))}
    save_parquet(root / "parquet", splits, ("ant", "bee"))
    save_arrow(root / "arrow", splits, ("ant", "bee"))
    return root


def run(out: Path, *settings: str) -> Path:
    kept = ["--data.cache", str(out.parent / "kept"), "--data.labels_per_class", "4"]
    train.main([*SMALL, *kept, *settings, "--out", str(out)])
    return out


def rows_in(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_that_of_an_image_folder_and_resumes_exactly(root: Path, tmp_path: Path):
    tree = [f"--data.labeled={root}/tree/train", f"--data.test={root}/tree/test"]
    folder = run(tmp_path / "a", "--data.name", "folder", *tree)
    rows = run(tmp_path / "b", "--data.name", "hf", "--data.path", str(root / "parquet"))
    assert same(weights(rows), weights(folder))
    # As if it had been killed after step 8, and the data had moved meanwhile.
    moved = shutil.copytree(root / "parquet", tmp_path / "elsewhere")
    shutil.copytree(rows, tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "checkpoints" / "step_00000012")
    (tmp_path / "c" / "summary.json").unlink()
    resumed = run(tmp_path / "c", "--data.name", "hf", "--data.path", str(moved), "--resume")
    assert same(weights(resumed), weights(rows))
    assert (resumed / "model.safetensors").read_bytes() == (rows / "model.safetensors").read_bytes()
    for name, images in (("hf.csv", f"hf:{root}/arrow:test"), ("tree.csv", f"{root}/tree/test")):
        predict.main(["--run", str(rows), "--images", images, "--out", str(tmp_path / name), "--workers", "0"])
    ours, theirs = rows_in(tmp_path / "hf.csv"), rows_in(tmp_path / "tree.csv")
    assert [row["path"] for row in ours] == [f"test[{i}]" for i in range(6)]
    assert [{**row, "path": ""} for row in ours] == [{**row, "path": ""} for row in theirs]


def test_labels_of_rows_are_those_of_files_and_are_trained_on(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    common = ["--classes", str(tmp_path / "classes.txt"), "--model", save_clip(tmp_path / "clip"), "--workers", "0"]
    for name, images in (("hf", f"hf:{root}/arrow:train"), ("tree", f"{root}/tree/train")):
        label.main(["--images", images, *common, "--precision", "fp32", "--out", str(tmp_path / name)])
    ours, theirs = rows_of(tmp_path / "hf"), rows_of(tmp_path / "tree")
    assert [row["path"] for row in ours] == [f"train[{i}]" for i in range(20)]
    # The column of classes is the truth of the figures, as the folders of the tree are.
    assert [{**row, "path": ""} for row in ours] == [{**row, "path": ""} for row in theirs]
    assert (tmp_path / "hf" / "summary.json").read_text().count("accuracy") > 2
    settings = ["--data.labeled", str(tmp_path / "hf" / "labels.csv"), "--data.root", str(root / "arrow")]
    out = run(tmp_path / "run", "--data.name", "folder", *settings, f"--data.test={root}/tree/test", "--steps", "1")
    assert (out / "summary.json").exists()


def test_a_run_on_features_of_rows(root: Path, tmp_path: Path, capsys):
    model = save_clip(tmp_path / "clip")
    for split in ("train", "test"):
        common = ["--model", model, "--out", str(tmp_path / split), "--precision", "fp32", "--workers", "0"]
        features.main(["--images", f"hf:{root}/arrow:{split}", *common])
    # A second call reads nothing.
    capsys.readouterr()
    features.main(["--images", f"hf:{root}/arrow:train", *common[:2], "--out", str(tmp_path / "train"), *common[4:]])
    assert "20 images had theirs before" in capsys.readouterr().out
    folders = f"--data.features=[{tmp_path}/train, {tmp_path}/test]"
    flags = ["--data.name", "hf", "--data.path", str(root / "arrow"), "--data.labels_per_class", "4", folders]
    train.main([*flags, "--model.name", "linear", "--batch_size", "4", "--steps", "2", "--out", str(tmp_path / "run")])
    assert np.isfinite(np.load(tmp_path / "run" / "predictions" / "test_ema.npy")).all()
