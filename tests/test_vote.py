"""`debias-ssl vote`: runs and matrices label images by their votes."""

import csv
import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of, run
from launched import Launched
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from small_clip import paint_images, save_clip

from debias_ssl import load_run, predict, train, vote

# A function of the package has the name of this module.
label = importlib.import_module("debias_ssl.label")

EVERY = 9


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits as a class tree."""
    digits: Any = load_digits()
    folder = tmp_path_factory.mktemp("images")
    for i in range(0, len(digits.target), EVERY):
        place = folder / str(digits.target[i])
        place.mkdir(exist_ok=True)
        Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).save(place / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two runs of different methods and one that has hardly begun to learn, on digits."""
    place = tmp_path_factory.mktemp("runs")
    return (
        run(place / "a", "--steps", "24", "--method", "Supervised"),
        run(place / "b", "--steps", "24", "--seed", "1"),
        run(place / "c", "--steps", "2", "--seed", "2"),
    )


def flags(runs: Sequence[str | Path], out: Path, *further: str | Path) -> list[str]:
    return ["--runs", *map(str, runs), "--out", str(out), "--workers", "0", *map(str, further)]


@pytest.fixture(scope="module")
def voted(runs: tuple[Path, ...], images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("voted") / "v"
    vote.main(flags(runs, out, "--images", images))
    return out


def probabilities(runs: Sequence[Path], images: Path) -> list[np.ndarray]:
    return [load_run(each, "cpu").predict(images) for each in runs]


def test_labels_are_the_votes_and_confidence_is_agreement(runs, images, voted):
    votes = np.stack([probs.argmax(1) for probs in probabilities(runs, images)])
    counts = np.stack([(votes == k).sum(0) for k in range(10)], axis=1)
    rows = rows_of(voted)
    assert [row["path"] for row in rows] == [path.relative_to(images).as_posix() for path in sorted(images.glob("*/*"))]
    plain = np.array([int(row["plain_label"]) for row in rows])
    assert (counts[np.arange(len(rows)), plain] == counts.max(1)).all()
    agreement = [float(row["plain_confidence"]) for row in rows]
    np.testing.assert_allclose(agreement, counts.max(1) / 3, atol=1e-6)
    probs = np.load(voted / "probs.npy")
    assert [str(k) for k in probs.argmax(1)] == [row["label"] for row in rows]
    assert {round(3 * float(value), 2) for value in probs.ravel()} == {0, 1, 2, 3}


def test_the_summary_has_the_members_and_both_kinds_of_votes(runs, images, voted, capsys, tmp_path):
    vote.main(flags(runs, tmp_path / "v", "--images", images))
    said = capsys.readouterr().out
    summary = json.loads((voted / "summary.json").read_text())
    truth = np.array([int(path.parent.name) for path in sorted(images.glob("*/*"))])
    for entry, probs in zip(summary["members"], probabilities(runs, images), strict=True):
        assert entry["plain"]["accuracy"] == pytest.approx((probs.argmax(1) == truth).mean())
        assert f"{100 * entry['agreement']:.2f} %" in said
    # The one that hardly learned is the worst by figures that need no labels too.
    ranks = [entry["mean_rank"] for entry in summary["members"]]
    assert max(ranks) == ranks[2]
    assert [entry["name"] for entry in summary["members"]] == [*map(str, runs)]
    for key, column in (("plain", "plain_label"), ("debiased", "label")):
        right = [int(row[column]) == k for row, k in zip(rows_of(voted), truth, strict=True)]
        assert summary[key]["accuracy"] == pytest.approx(np.mean(right))
    page = (voted / "report.html").read_text()
    assert "Classifiers that vote" in page and "RankMe" in page and page.count("<img") > 3


def test_the_same_again_is_the_same_and_nothing_is_overwritten(runs, images, voted, tmp_path, capsys):
    vote.main(flags(runs, tmp_path / "v", "--images", images))
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "v" / name).read_bytes() == (voted / name).read_bytes()
    before = (tmp_path / "v" / "labels.csv").read_bytes()
    arguments = flags(runs, tmp_path / "v", "--images", images, "--prior", "none")
    assert "pass --overwrite to replace it" in refused(vote.main, arguments, capsys)
    assert (tmp_path / "v" / "labels.csv").read_bytes() == before
    vote.main([*arguments, "--overwrite"])
    rows = rows_of(tmp_path / "v")
    assert [row["label"] for row in rows] == [row["plain_label"] for row in rows]


def test_processes_share_the_images(runs, images, voted, tmp_path):
    base = ["--runs", *map(str, runs), "--images", str(images), "--workers", "0"]
    Launched(2, tmp_path / "v", base=base, job="vote").finish()
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "v" / name).read_bytes() == (voted / name).read_bytes()


def reordered(run: Path, out: Path) -> Path:
    """A run whose classes have another order, and which says the same of each image."""
    shutil.copytree(run, out)
    model, weights = json.loads((out / "model.json").read_text()), load_file(out / "model.safetensors")
    order = [3, 1, 4, 0, 9, 2, 6, 5, 8, 7]
    for name in ("classes", "labeled_counts"):
        model[name] = [model[name][k] for k in order]
    for name in [name for name, value in weights.items() if value.shape[:1] == (10,)]:
        weights[name] = weights[name][torch.tensor(order)].contiguous()
    (out / "model.json").write_text(json.dumps(model))
    save_file(weights, out / "model.safetensors")
    return out


def test_classes_of_members_may_have_any_order(runs, images, voted, tmp_path):
    other = reordered(runs[1], tmp_path / "other")
    before, after = probabilities([runs[1], other], images)
    assert not (before.argmax(1) == after.argmax(1)).all()
    vote.main(flags([runs[0], other, runs[2]], tmp_path / "v", "--images", images))
    # The first member has its classes in the order of the labels.
    for name in ("labels.csv", "probs.npy", "classes.json"):
        assert (tmp_path / "v" / name).read_bytes() == (voted / name).read_bytes()


def test_what_predict_and_vote_wrote_votes_too(runs, images, voted, tmp_path):
    table = tmp_path / "b.csv"
    predict.main(["--run", str(runs[1]), "--images", str(images), "--out", str(table), "--workers", "0"])
    vote.main(flags([runs[0], table, runs[2]], tmp_path / "v", "--images", images))
    assert [row["plain_label"] for row in rows_of(tmp_path / "v")] == [row["plain_label"] for row in rows_of(voted)]
    # Without a run, no images are needed; rows are found by their names, in whatever order.
    lines = table.read_text().splitlines()
    (tmp_path / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    vote.main(flags([table, tmp_path / "turned.csv"], tmp_path / "same", "--prior", "none"))
    with table.open(newline="") as file:
        assert [row["label"] for row in rows_of(tmp_path / "same")] == [row["label"] for row in csv.DictReader(file)]
    assert {float(row["confidence"]) for row in rows_of(tmp_path / "same")} == {1.0}
    vote.main(flags([voted, table], tmp_path / "of_labels"))
    assert len(rows_of(tmp_path / "of_labels")) == len(lines) - 1
    assert not np.isnan([float(row["confidence"]) for row in rows_of(tmp_path / "of_labels")]).any()


def test_rows_may_be_left_without_a_label_where_members_do_not_agree(runs, images, tmp_path):
    asked = (
        "--images",
        images,
        "--unknown",
        "max_prob",
        "--min_score",
        "0.99",
        "--table",
        "parquet",
        "--probs",
        "top5",
    )
    vote.main(flags(runs[:2], tmp_path / "v", *asked))
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    assert 0 < summary["abstention"]["num_abstained"] < summary["num"]
    assert summary["abstention"]["accuracy"] > summary["plain"]["accuracy"]
    assert (tmp_path / "v" / "labels.parquet").exists() and (tmp_path / "v" / "top5_probs.npy").exists()


def test_truth_and_rows_to_tune_on_are_files_too(runs, images, tmp_path):
    names = [path.relative_to(images).as_posix() for path in sorted(images.glob("*/*"))]
    for name, some in (("truth.csv", names), ("few.csv", names[::4])):
        (tmp_path / name).write_text("path,label\n" + "".join(f"{each},{each[0]}\n" for each in some))
    shutil.copytree(images, tmp_path / "flat" / "images")
    arguments = ("--images", tmp_path / "flat" / "images", "--truth", tmp_path / "truth.csv")
    vote.main(flags(runs[:2], tmp_path / "v", *arguments, "--tune_on", tmp_path / "few.csv"))
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    assert summary["num_tuned_on"] == len(names[::4]) and summary["num_known"] == len(names) - len(names[::4])


# -- training on votes


@pytest.mark.parametrize("weighted", ["false", "true"])
def test_a_round_of_self_training_reads_the_votes(weighted, images, voted, tmp_path):
    settings = {"data.name": "folder", "data.labeled": images, "data.test": images, "data.labels_per_class": 2}
    settings |= {"data.probs": voted, "data.root": images, "model.name": "wrn_10_1", "steps": 4, "log_every": 2}
    settings |= {"batch_size": 8, "method": "SelfTraining", "method.weighted": weighted, "out": tmp_path / "r"}
    settings |= {"eval_every": 4, "data.workers": 0, "precision": "fp32"}
    train.main([f"--{name}={value}" for name, value in settings.items()])
    records = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    rates = [record["mask_rate"] for record in records if "mask_rate" in record]
    agreement = np.mean([float(row["confidence"]) for row in rows_of(voted)])
    assert np.mean(rates) == pytest.approx(agreement if weighted == "true" else 1.0, abs=0.08)


# -- what is refused


def test_one_run_is_no_vote(runs, images, tmp_path, capsys):
    for given, words in (
        ([runs[0]], "--runs names 1 run; a vote needs two or more"),
        ([runs[0], runs[0]], "twice, so it would have two votes"),
        ([runs[0], tmp_path / "none"], "there is no file"),
        ([runs[0], images], "holds neither a run"),
    ):
        assert words in refused(vote.main, flags(given, tmp_path / "v", "--images", images), capsys)
    assert not (tmp_path / "v").exists()


def test_members_need_the_same_classes(runs, images, tmp_path, capsys):
    other = shutil.copytree(runs[1], tmp_path / "other")
    model = json.loads((other / "model.json").read_text())
    model["classes"][3] = "three"
    (other / "model.json").write_text(json.dumps(model))
    message = refused(vote.main, flags([runs[0], other], tmp_path / "v", "--images", images), capsys)
    assert "has other classes than" in message and "3, three in only one of them" in message


def test_an_unfinished_run_is_told(runs, images, tmp_path, capsys):
    other = shutil.copytree(runs[1], tmp_path / "other")
    (other / "model.safetensors").unlink()
    message = refused(vote.main, flags([runs[0], other], tmp_path / "v", "--images", images), capsys)
    assert f"'{other}' is not a finished run: it has no model.safetensors" in message


def test_rows_that_a_matrix_lacks_are_told(runs, images, tmp_path, capsys):
    table = tmp_path / "b.csv"
    predict.main(["--run", str(runs[1]), "--images", str(images / "3"), "--out", str(table), "--workers", "0"])
    message = refused(vote.main, flags([runs[0], table], tmp_path / "v", "--images", images), capsys)
    assert f"--runs '{table}' has no row of '0/" in message
    message = refused(vote.main, flags([runs[0], table], tmp_path / "v"), capsys)
    assert "which needs images: pass --images" in message


@pytest.mark.parametrize(
    ("further", "words"),
    [
        (["--prior", "content_free"], "--prior content_free needs logits of a blank image"),
        (["--unknown", "energy"], "--unknown energy"),
        (["--batch_size", "0"], "batch_size is 0, must be at least 1"),
        (["--refine", "mixture"], "refine"),
        (["--features", "nowhere"], "has features of a model on which none of --runs was trained"),
    ],
)
def test_settings_that_votes_do_not_have_are_refused(further, words, runs, images, tmp_path, capsys):
    arguments = flags(runs[:2], tmp_path / "v", "--images", images, *further)
    assert words in refused(vote.main, arguments, capsys)


def test_an_image_that_cannot_be_read_is_named_or_left_out(runs, images, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "4" / "broken.png").write_bytes(b"no image")
    arguments = flags(runs[:2], tmp_path / "v", "--images", tmp_path / "images")
    with pytest.raises(SystemExit):
        vote.main(arguments)
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: cannot read image") and "broken.png" in message and "--on_error skip" in message
    vote.main([*arguments, "--on_error", "skip"])
    assert [*json.loads((tmp_path / "v" / "unreadable.json").read_text())] == ["4/broken.png"]
    assert len(rows_of(tmp_path / "v")) == len([*images.glob("*/*")])


def test_a_list_with_a_label_that_is_no_class_is_told(runs, images, tmp_path, capsys):
    (images.parent / "list.csv").write_text("path,label\n0/0000.png,zero\n")
    arguments = flags(runs[:2], tmp_path / "v", "--images", images.parent / "list.csv", "--root", images)
    assert "'zero' is not a class of those that vote" in refused(vote.main, arguments, capsys)


# -- runs on features


def test_runs_on_features_of_different_networks_vote(tmp_path, capsys):
    """Each takes the features that its own network made, of whichever folders are given; without any, its own."""
    paint_images(tmp_path / "images", num=12)
    for path in paint_images(tmp_path / "new", num=8):
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    features, runs = {}, []
    for seed in (0, 1):
        model = save_clip(tmp_path / f"clip_{seed}", seed=seed)
        for part in ("images", "new"):
            out = tmp_path / f"{part}_{seed}"
            given = ["--images", str(tmp_path / part), "--classes", str(tmp_path / "classes.txt"), "--model", model]
            label.main([*given, "--out", str(out), "--workers", "0", "--precision", "fp32"])
            features[part, seed] = out / "features"
        settings = {"data.name": "folder", "data.labeled": tmp_path / "images", "data.test": tmp_path / "images"}
        settings |= {"data.features": json.dumps([str(features["images", seed])]), "data.labels_per_class": 3}
        settings |= {"model.name": "linear", "steps": 4, "eval_every": 4, "batch_size": 4, "out": tmp_path / f"r{seed}"}
        settings |= {"precision": "fp32", "method": "Supervised", "log_every": 4}
        train.main([f"--{name}={value}" for name, value in settings.items()])
        runs.append(tmp_path / f"r{seed}")
    vote.main(flags(runs, tmp_path / "own", "--images", tmp_path / "images"))
    assert len(rows_of(tmp_path / "own")) == 12
    new = ["--images", tmp_path / "new", "--features", features["new", 1], features["new", 0]]
    vote.main(flags(runs, tmp_path / "v", *new))
    for seed, entry in enumerate(json.loads((tmp_path / "v" / "summary.json").read_text())["members"]):
        probs = load_run(runs[seed], "cpu").predict(tmp_path / "new", features=features["new", seed])
        truth = [path.parent.name == "bee" for path in sorted((tmp_path / "new").glob("*/*"))]
        assert entry["plain"]["accuracy"] == pytest.approx((probs.argmax(1) == truth).mean())
        assert entry["criteria"]["rank_me"] > 0
    message = refused(vote.main, flags(runs, tmp_path / "w", *new[:2]), capsys)
    assert "lack features of" in message
    message = refused(vote.main, flags(runs, tmp_path / "w", *new[:-1]), capsys)
    assert "--features lacks the model on which --runs" in message and "r0" in message
