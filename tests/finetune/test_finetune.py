"""The job: from a run folder to a run folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jobs import refused
from launched import DIGITS
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import recall_score

from debias_ssl import evaluate, predict, report, train
from debias_ssl.finetune import __main__ as job
from debias_ssl.finetune import run as library
from debias_ssl.finetune.config import METHODS, FinetuneConfig
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_trained

SHORT = ["--steps", "30", "--log_every", "10", "--eval_every", "30", "--checkpoint_every", "30"]
LONG_TAIL = ["--data.labels_per_class", "40", "--data.labeled_imbalance", "20"]
QUICK = ["--method.steps", "40", "--method.lr", "0.01"]


def stage_one(out: Path, *flags: str) -> Path:
    train.main(["--config", str(DIGITS), *SHORT, *LONG_TAIL, "--out", str(out), *flags])
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    return stage_one(out, "--method", "FixMatch", "--data.validation_per_class", "20")


def test_the_folder_is_a_run_whose_classifier_alone_has_changed(run, tmp_path, capsys):
    out = tmp_path / "b"
    # Of so little training the best state may be the first, of which only the biases were moved.
    job.main(["--run", str(run), "--objective", "min_recall", *QUICK, "--method.keep", "last", "--out", str(out)])
    assert "held-out, after" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (run, out))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    assert (run / "config.yaml").read_text() == (out / "config.yaml").read_text()
    assert (run / "split.json").read_text() == (out / "split.json").read_text()
    assert [path for path in tmp_path.iterdir() if path.name != "b"] == []

    summary = json.loads((out / "summary.json").read_text())
    settings = yaml.safe_load((out / "finetune.yaml").read_text())
    assert settings["method"]["class_path"] == "SelMix" and settings["objective"] == "min_recall"
    facts = summary["finetune"]
    was = json.loads((run / "summary.json").read_text())["ema"]["last"]
    for name in ("accuracy", "min_recall", "ece"):
        assert facts["test"]["before"][name] == pytest.approx(was[name])
        assert facts["test"]["after"][name] == summary["ema"]["last"][name] == summary["raw"]["best"][name]
    assert facts["validation"]["after"]["objective"] > facts["validation"]["before"]["objective"]
    assert facts["num_held_out"] == 200
    assert sum(facts["test"]["after"]["coverage"]) == pytest.approx(1)

    # What is in the folder predicts what was written down, through the network and the other jobs.
    evaluate.main(["--run", str(out), "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["min_recall"] == pytest.approx(facts["test"]["after"]["min_recall"])
    evaluate.main(["--run", str(out), "--part", "validation", "--out", str(tmp_path / "figures.json"), "--overwrite"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["h_mean"] == pytest.approx(facts["validation"]["after"]["h_mean"])
    logits, labels = (np.load(out / "predictions" / f"validation_{name}.npy") for name in ("ema", "labels"))
    assert (logits.argmax(1) == labels).mean() == pytest.approx(facts["validation"]["after"]["accuracy"])
    images = tmp_path / "images"
    images.mkdir()
    for number in range(5):
        Image.fromarray(np.full((8, 8), 50 * number, dtype=np.uint8)).save(images / f"{number}.png")
    predict.main(["--run", str(out), "--images", str(images), "--out", str(tmp_path / "labels.csv"), "--workers", "0"])
    predicted = (tmp_path / "labels.csv").read_text().splitlines()
    assert [Path(line.split(",")[0]).name for line in predicted[1:]] == [f"{number}.png" for number in range(5)]
    report.main([str(out)])
    page = (out / "report.html").read_text()
    assert "fine-tuned by SelMix for min_recall on 200 held-out images" in page
    assert "held-out, before" in page and "test, after" in page and "chosen on test" not in page
    before_it = json.loads((run / "summary.json").read_text())["steps"]
    assert f"at step {before_it}," in page or f"over {before_it} steps" in page
    assert f"step {before_it + 1}" not in page
    # What somebody has changed by hand is told of.
    (out / "summary.json").write_text(json.dumps(summary | {"finetune": {}}))
    message = refused(report.main, [str(out)], capsys)
    assert "was changed after its run, or damaged: 'method' is missing" in message
    assert load_trained(RunFolder(out), torch.device("cpu")).classes == tuple("0123456789")


@pytest.mark.parametrize(
    "method", ["Mixup", "BalancedMixup", "Retraining", "MiSLAS", "TauNormalization", "LogitAdjustment", "BiasSearch"]
)
def test_no_method_is_worse_on_held_out_images_than_what_it_was_given(method, run, tmp_path):
    flags = QUICK if hasattr(METHODS[method](), "steps") else []
    job.main(["--run", str(run), "--method", method, *flags, "--out", str(tmp_path / "b")])
    facts = json.loads((tmp_path / "b" / "summary.json").read_text())["finetune"]
    assert facts["method"]["class_path"] == method
    # What is said is what the predictions in the folders are worth to somebody else, before and after.
    objective = {}
    for part in ("validation", "test"):
        for moment, folder in (("before", run), ("after", tmp_path / "b")):
            logits, labels = (np.load(folder / "predictions" / f"{part}_{name}.npy") for name in ("ema", "labels"))
            counts = np.bincount(labels)
            recalls = np.array([recall_score(labels == k, logits.argmax(1) == k) for k in range(len(counts))])
            said = facts[part][moment]
            assert said["mean_recall"] == pytest.approx(recalls.mean())
            assert said["min_recall"] == pytest.approx(recalls.min())
            # Of as many images of each class, to which the objective adds one that is spread evenly.
            objective[part, moment] = ((recalls * counts + 0.1) / (counts + 1)).mean()
            assert said["objective"] == pytest.approx(objective[part, moment])
    # A new classifier starts from nothing.
    if method != "Retraining":
        assert objective["validation", "after"] >= objective["validation", "before"]


def test_coverage_is_said(run, tmp_path):
    flags = ["--method", "BiasSearch", "--coverage", "0.95"]
    job.main(["--run", str(run), *flags, "--out", str(tmp_path / "b")])
    facts = json.loads((tmp_path / "b" / "summary.json").read_text())["finetune"]
    assert facts["coverage"] == 0.95
    assert facts["validation"]["after"]["min_coverage"] > facts["validation"]["before"]["min_coverage"]


def test_nothing_is_overwritten_unless_asked_and_other_files_stay(run, tmp_path, capsys):
    out = tmp_path / "b"
    quick = ["--method", "LogitAdjustment", "--out", str(out)]
    job.main(["--run", str(run), *quick])
    (out / "notes.txt").write_text("mine")
    assert "--overwrite" in refused(job.main, ["--run", str(run), *quick], capsys)
    job.main(["--run", str(run), *quick, "--objective", "h_mean", "--overwrite"])
    assert json.loads((out / "summary.json").read_text())["finetune"]["objective"] == "h_mean"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_stage_two_that_dies_leaves_nothing(run, tmp_path, monkeypatch):
    def dying(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "write_aside", dying)
    with pytest.raises(SystemExit):
        job.main(["--run", str(run), "--method", "LogitAdjustment", "--out", str(tmp_path / "b")])
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(run, tmp_path, capsys):
    out = tmp_path / "b"
    end = ["--out", str(out)]
    for flags, words in (
        (["--objective", "recall"], ["recall", "min_recall"]),
        (["--method", "DebiasPL"], ["DebiasPL", "SelMix, TauNormalization"]),
        (["--method.temperature", "0"], ["temperature"]),
        (["--method.temprature", "1"], ["temprature"]),
        (["--coverage", "2"], ["coverage"]),
        (["--method.lr", "1e30", "--method.keep", "last"], ["lower --method.lr"]),
    ):
        message = refused(job.main, ["--run", str(run), *flags, *end], capsys)
        assert all(word in message for word in words), message
    assert "no run" in refused(job.main, ["--run", str(tmp_path / "nowhere"), *end], capsys)
    assert "--run" in refused(job.main, ["--run", str(run), "--out", str(run), "--overwrite"], capsys)
    assert (run / "summary.json").exists() and not out.exists()


@pytest.mark.parametrize("method", ["ABC", "CDMAD"])
def test_a_run_that_predicts_with_more_than_its_classifier_is_refused(method, tmp_path, capsys):
    other = stage_one(tmp_path / "c", "--steps", "2", "--method", method, "--data.validation_per_class", "5")
    message = refused(job.main, ["--run", str(other), "--out", str(tmp_path / "b")], capsys)
    assert method in message and message.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_a_method_over_one_that_does_is_refused_and_alone_it_is_not(tmp_path, capsys):
    flags = ["--steps", "2", "--method", "DebiasPL", "--data.validation_per_class", "5"]
    plain = stage_one(tmp_path / "c", *flags)
    job.main(["--run", str(plain), "--method", "LogitAdjustment", "--out", str(tmp_path / "b")])
    over = stage_one(tmp_path / "d", *flags, "--method.base", "CDMAD")
    flags = ["--run", str(over), "--method", "LogitAdjustment", "--out", str(tmp_path / "e")]
    message = refused(job.main, flags, capsys)
    assert "more than the network's classifier" in message


def with_split(run: Path, out: Path, change) -> Path:
    """A run on the split of another one, changed."""
    split = json.loads((run / "split.json").read_text())
    change(split)
    out.mkdir()
    (out / "split.json").write_text(json.dumps(split))
    return stage_one(out / "a", "--steps", "2", "--method", "FixMatch", "--data.split", str(out / "split.json"))


def test_stage_two_learns_from_the_labels_of_the_split_and_is_judged_by_those_of_the_data(run, tmp_path):
    def relabel(split):
        split["labels"] = [3] * len(split["labeled"])

    other = with_split(run, tmp_path / "x", relabel)
    prepared = library.prepare(RunFolder(other), FinetuneConfig())
    assert set(prepared.stage.labels.tolist()) == {3}
    labels = prepared.task.data.train.labels[prepared.task.split.validation]
    assert prepared.stage.truth.tolist() == labels.tolist() and len(set(labels)) == 10


def test_a_class_without_held_out_images_is_named(run, tmp_path, capsys):
    def forget(split):
        labels = library.prepare(RunFolder(run), FinetuneConfig()).stage.truth.tolist()
        split["validation"] = [i for i, label in zip(split["validation"], labels, strict=True) if label != 7]

    other = with_split(run, tmp_path / "x", forget)
    message = refused(job.main, ["--run", str(other), "--out", str(tmp_path / "b")], capsys)
    assert "are none of 7: each class needs at least one" in message


def test_a_run_without_held_out_images_is_refused(tmp_path, capsys):
    without = stage_one(tmp_path / "a", "--steps", "2", "--method", "FixMatch")
    message = refused(job.main, ["--run", str(without), "--out", str(tmp_path / "b")], capsys)
    assert "--data.validation_per_class" in message
    assert not (tmp_path / "b").exists()
