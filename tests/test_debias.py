"""`debias-ssl debias`: from a file of predictions to a folder of labels, and what is refused before it is written."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from jobs import refused, rows_of
from scipy.stats import binomtest

from debias_ssl.debias import main

CLASSES = ["ant", "bee", "cat", "dog"]
NUM = 400
TRUTH = np.arange(NUM) % 4
FILES = {"labels.csv", "probs.npy", "classes.json", "summary.json", "report.html", "written.json"}


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Logits of a classifier that prefers later classes, its classes and the truth."""
    logits = np.random.default_rng(0).normal(size=(NUM, 4)) + 2 * np.eye(4)[TRUTH] + np.arange(4)
    np.save(tmp_path / "logits.npy", logits.astype(np.float16))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    np.save(tmp_path / "truth.npy", TRUTH)
    return tmp_path / "logits.npy"


def run(predictions: Path, *flags: str) -> Path:
    out = predictions.parent / "out"
    main(["--predictions", str(predictions), "--out", str(out), *flags])
    return out


def test_a_file_becomes_a_folder(predictions: Path, capsys):
    out = run(predictions, "--truth", str(predictions.parent / "truth.npy"))
    assert {path.name for path in out.iterdir()} == FILES
    as_numpy = io.BytesIO()
    np.save(as_numpy, np.load(out / "probs.npy"))
    assert (out / "probs.npy").read_bytes() == as_numpy.getvalue()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kind"] == "logits" and summary["num"] == NUM and summary["prior"] == "stationary"
    assert summary["debiased"]["accuracy"] > summary["plain"]["accuracy"] + 0.1
    assert [*summary["class_prior"]] == CLASSES
    rows = rows_of(out)
    hits = np.mean([row["label"] == CLASSES[k] for row, k in zip(rows, TRUTH, strict=True)])
    assert hits == pytest.approx(summary["debiased"]["accuracy"])
    assert sum(row["label"] != row["plain_label"] for row in rows) == summary["num_changed"]
    said = capsys.readouterr().out
    assert "400 x 4 logits" in said and f"{summary['num_changed']} of 400 labels changed" in said
    assert f"{100 * summary['debiased']['accuracy']:.2f} %" in said and said.endswith(
        f"{out}; its page: {out / 'report.html'}\n"
    )


def test_flags_are_the_settings(predictions: Path):
    few = predictions.parent / "few.csv"
    few.write_text("row,label\n" + "".join(f"{i},{CLASSES[i % 4]}\n" for i in range(60)))
    target = predictions.parent / "target.csv"
    target.write_text("ant,1\nbee,1\ncat,1\ndog,1\n")
    flags = ["--prior", "stationary", "--target_prior", str(target), "--temperature", "0.8", "--tune_on", str(few)]
    summary = json.loads((run(predictions, *flags) / "summary.json").read_text())
    assert summary["prior"] == "stationary" and summary["temperature"] == 0.8 and summary["num_tuned_on"] == 60
    assert summary["target_prior"] == str(target) and summary["strength"] > 0.3


def test_logits_of_blank_images_show_the_preference(predictions: Path):
    np.save(predictions.parent / "blank.npy", np.array([[1.0, 2, 3, 4], [0, 1, 2, 3]]))
    out = run(predictions, "--prior", "content_free", "--blank", str(predictions.parent / "blank.npy"))
    prior = json.loads((out / "summary.json").read_text())["class_prior"]
    np.testing.assert_allclose(np.diff(np.log([*prior.values()])), 1)


def test_predictions_of_predict_keep_their_paths(predictions: Path):
    file = predictions.parent / "p.csv"
    probs = np.load(predictions).astype(np.float64)
    probs = np.exp(probs) / np.exp(probs).sum(1, keepdims=True)
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "label", "confidence", *(f"p_{name}" for name in CLASSES)])
        rows.writerows([f"img/{i}.png", "ant", 1, *(f"{p:.6g}" for p in row)] for i, row in enumerate(probs))
    truth = predictions.parent / "truth.csv"
    truth.write_text("path,label\n" + "".join(f"img/{i}.png,{CLASSES[k]}\n" for i, k in enumerate(TRUTH)))
    of_logits = rows_of(run(predictions))
    out = run(file, "--truth", str(truth), "--overwrite")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["kind"] == "probs" and "accuracy" in summary["debiased"]
    of_probs = rows_of(out)
    assert [row["path"] for row in of_probs] == [f"img/{i}.png" for i in range(NUM)]
    assert [row["label"] for row in of_probs] == [row["label"] for row in of_logits]


def test_figures_of_few_rows_say_of_how_many(predictions: Path, capsys):
    truth = predictions.parent / "truth.csv"
    right = np.load(predictions).argmax(1)
    truth.write_text("row;label\r\n" + "".join(f"{i};{CLASSES[right[i]]}\r\n" for i in range(3)), "utf-8-sig")
    out = run(predictions, "--truth", str(truth), "--prior", "none")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["num"], summary["num_known"], summary["plain"]["accuracy"]) == (NUM, 3, 1)
    expected = binomtest(3, 3).proportion_ci(method="wilson")
    assert summary["plain"]["accuracy_interval"] == pytest.approx([expected.low, 1])
    of_class = summary["debiased"]["recalls"][CLASSES[right[0]]]
    number = int((right[:3] == right[0]).sum())
    low = binomtest(number, number).proportion_ci(method="wilson").low
    assert of_class["recall"] == 1 and of_class["interval"] == pytest.approx([low, 1])
    said = capsys.readouterr().out
    assert f"3 of 3 rows of {truth} matched: the classes of 3 of {NUM} rows are known" in said
    assert f"known     3 of {NUM} rows; accuracy, 95 % interval: plain 43.85 to 100.00 %" in said
    assert "43.9 to 100.0\u00a0%" in (out / "report.html").read_text()


def test_truth_whose_paths_differ_is_told(predictions: Path, capsys):
    file, truth, logits = predictions.parent / "p.csv", predictions.parent / "t.csv", np.load(predictions)
    rows = [f"img/{i}.png," + ",".join(map(str, row)) for i, row in enumerate(logits.astype(float).tolist())]
    file.write_text("\n".join(["path," + ",".join(f"p_{name}" for name in CLASSES), *rows]))
    lines = [f"img/{i}.png,{CLASSES[k]}" for i, k in enumerate(TRUTH)]
    flags = ["--truth", str(truth), "--overwrite"]
    # All but two rows lack the folder.
    truth.write_text("path,label\n" + "\n".join(lines[:2] + [line.removeprefix("img/") for line in lines[2:]]))
    summary = json.loads((run(file, *flags) / "summary.json").read_text())
    said = capsys.readouterr()
    assert summary["num_known"] == NUM and f"{NUM} of {NUM} rows of {truth} matched" in said.out
    assert f"note: {truth}: {NUM - 2} paths lack 'img/', the start of the rows: '2.png' is matched to" in said.err
    truth.write_text("path,label\n" + "\n".join(lines[:2] + [line.replace("img", "IMG") for line in lines[2:]]))
    summary = json.loads((run(file, *flags) / "summary.json").read_text())
    said = capsys.readouterr()
    assert summary["num_known"] == 2 and f"2 of {NUM} rows of {truth} matched" in said.out
    assert "the first is 'IMG/2.png', and the first row without one 'img/2.png'; names differ in upper" in said.err
    truth.write_text("path,label\n" + "\n".join(line.replace(".png", ".jpg") for line in lines))
    before = (predictions.parent / "out" / "labels.csv").read_bytes()
    arguments = ["--predictions", str(file), "--out", str(predictions.parent / "out"), *flags]
    message = refused(main, arguments, capsys)
    assert "lists none of the rows" in message and "differ in their suffix" in message
    assert (predictions.parent / "out" / "labels.csv").read_bytes() == before


def test_nothing_is_replaced_unless_it_is_told_so(predictions: Path, capsys):
    out = run(predictions)
    (out / "mine.txt").write_text("kept")
    before = (out / "labels.csv").read_bytes()
    arguments = ["--predictions", str(predictions), "--out", str(out), "--prior", "none"]
    assert "--overwrite" in refused(main, arguments, capsys)
    assert (out / "labels.csv").read_bytes() == before
    main([*arguments, "--overwrite"])
    assert (out / "labels.csv").read_bytes() != before
    assert (out / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prior", "marginl"], ["none", "marginal", "content_free", "marginl"]),
        (["--strength", "-1"], ["strength", "-1"]),
        (["--strength", "much"], ["strength", "expected float or null, got 'much'"]),
        (["--temperature", "0"], ["temperature"]),
        (["--momentum", "1"], ["momentum"]),
        (["--prior", "content_free"], ["--blank"]),
        (["--blank", "nowhere.npy"], ["nowhere.npy"]),
        (["--target_prior", "unifrom"], ["unifrom", "uniform"]),
        (["--truth", "nowhere.csv"], ["nowhere.csv"]),
        (["--tune_on", "nowhere.csv"], ["nowhere.csv"]),
        (["--classes", "nowhere.txt"], ["nowhere.txt"]),
        (["--kind", "probs"], ["not a probability", "--kind logits"]),
        (["--kind", "scores"], ["kind", "logits"]),
        (["--predictions", "nowhere.npy"], ["nowhere.npy"]),
        (["--nope", "1"], ["--nope"]),
    ],
)
def test_bad_flags_are_refused_in_two_lines(flags: list[str], words: list[str], predictions: Path, capsys):
    out = predictions.parent / "out"
    message = refused(main, ["--predictions", str(predictions), "--out", str(out), *flags], capsys)
    assert all(word in message for word in words), message
    assert not out.exists()


def test_blank_images_have_the_same_classes(predictions: Path, capsys):
    np.save(predictions.parent / "three.npy", np.ones((1, 3)))
    flags = ["--prior", "content_free", "--blank", str(predictions.parent / "three.npy")]
    flags += ["--predictions", str(predictions), "--out", str(predictions.parent / "out")]
    message = refused(main, flags, capsys)
    assert "3 classes" in message and "4" in message


def test_only_the_first_of_several_processes_works(predictions: Path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not run(predictions).exists()


def test_cleanlab_takes_the_files_as_they_are(predictions: Path):
    filters = pytest.importorskip("cleanlab.filter")
    given = TRUTH.copy()
    given[:20] = (given[:20] + 1) % 4
    out = run(predictions)
    issues = filters.find_label_issues(labels=given, pred_probs=np.load(out / "probs.npy", allow_pickle=False))
    assert issues[:20].mean() > 2 * issues[20:].mean()
    classes = json.loads((out / "classes.json").read_text())
    labels = np.array([classes.index(row["label"]) for row in rows_of(out)])
    assert not filters.find_label_issues(labels=labels, pred_probs=np.load(out / "probs.npy")).any()
