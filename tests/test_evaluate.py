"""`debias-ssl evaluate`: figures of runs and of files of predictions, before and after a temperature."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused
from launched import DIGITS, Launched
from pages import check_self_contained
from scipy.stats import binomtest

from debias_ssl import evaluate, train
from debias_ssl.formulas.calibration import calibration_figures, fit_temperature
from debias_ssl.reporting.page import percent

CLASSES = ["ant", "bee", "cat", "dog"]
NUM, TRUE_TEMPERATURE = 3000, 2.5
KINDS = ("ema", "labels")


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """Logits that are overconfident by a known temperature, their classes and the truth."""
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(NUM, 4, generator=generator)
    truth = torch.multinomial((logits / TRUE_TEMPERATURE).softmax(1), 1, generator=generator).squeeze(1)
    np.save(tmp_path / "logits.npy", logits.numpy())
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    np.save(tmp_path / "truth.npy", truth.numpy())
    return tmp_path / "logits.npy"


def matrix_flags(predictions: Path) -> list[str]:
    return ["--predictions", str(predictions), "--truth", str(predictions.parent / "truth.npy")]


def figures_of(predictions: Path, *flags: str) -> dict[str, Any]:
    out = predictions.parent / "figures.json"
    evaluate.main([*matrix_flags(predictions), *flags, "--out", str(out), "--overwrite"])
    return json.loads(out.read_text())


def expected(predictions: Path, rows: np.ndarray, temperature: float) -> dict[str, float]:
    logits = torch.from_numpy(np.load(predictions)[rows]) / temperature
    return calibration_figures(logits, torch.from_numpy(np.load(predictions.parent / "truth.npy")[rows]))


def test_a_file_of_predictions_has_figures(predictions: Path, capsys):
    figures = figures_of(predictions)
    of_all = expected(predictions, np.arange(NUM), 1.0)
    assert figures["classes"] == CLASSES and np.sum(figures["confusion"]) == NUM
    assert "calibration" not in figures and "head_recall" not in figures
    for name in ("accuracy", "ece", "nll"):
        assert figures[name] == pytest.approx(of_all[name], abs=1e-6)
    said = capsys.readouterr().out
    assert "3000 x 4 logits" in said and f"nll           {of_all['nll']:>8.4f} nats" in said


def test_the_temperature_of_a_file_is_judged_on_the_other_rows(predictions: Path, capsys):
    few = predictions.parent / "few.csv"
    truth = np.load(predictions.parent / "truth.npy")
    few.write_text("row,label\n" + "".join(f"{i},{CLASSES[truth[i]]}\n" for i in range(0, NUM, 3)))
    calibration = figures_of(predictions, "--calibrate", "--tune_on", str(few))["calibration"]
    fitted, judged = np.arange(0, NUM, 3), np.delete(np.arange(NUM), np.s_[::3])
    assert calibration["temperature"] == pytest.approx(
        fit_temperature(torch.from_numpy(np.load(predictions)[fitted]), torch.from_numpy(truth[fitted]))
    )
    assert calibration["temperature"] == pytest.approx(TRUE_TEMPERATURE, rel=0.15)
    assert (calibration["num_tuned_on"], calibration["num"]) == (1000, 2000)
    for key, temperature in (("before", 1.0), ("after", calibration["temperature"])):
        for name, value in expected(predictions, judged, temperature).items():
            assert calibration[key][name] == pytest.approx(value, abs=1e-6)
    before, after = calibration["before"], calibration["after"]
    assert after["accuracy"] == before["accuracy"]
    for name in ("ece", "equal_mass_ece", "class_wise_ece", "nll", "brier"):
        assert after[name] < before[name]
    share, mean, accuracy = (np.array(after["bins"][key], dtype=float) for key in ("share", "confidence", "accuracy"))
    assert np.nansum(share * np.abs(mean - accuracy)) == pytest.approx(after["ece"])
    assert after["bins"]["confidence"][0] is None
    said = capsys.readouterr().out
    assert f"temperature {calibration['temperature']:.4g}, fitted on 1,000 rows of {few}\n" in said
    (row,) = [line.split() for line in said.splitlines() if line.startswith("after")]
    assert row[1:7:2] == [f"{100 * after[name]:.2f}" for name in ("accuracy", "ece", "equal_mass_ece")]
    assert row[-2:] == [f"{after['nll']:.4f}", f"{after['brier']:.4f}"]


def test_a_share_of_the_rows_is_drawn_and_left_out(predictions: Path):
    figures = figures_of(predictions, "--calibrate", "--tune_on", ".2")
    assert (figures["calibration"]["num_tuned_on"], np.sum(figures["confusion"])) == (600, 2400)
    assert figures["calibration"]["temperature"] == pytest.approx(TRUE_TEMPERATURE, rel=0.15)
    assert figures == figures_of(predictions, "--calibrate", "--tune_on", ".2")
    assert figures != figures_of(predictions, "--calibrate", "--tune_on", ".2", "--seed", "1")


def test_folds_judge_all_rows(predictions: Path, capsys):
    figures = figures_of(predictions, "--calibrate", "--folds", "4")
    calibration = figures["calibration"]
    assert np.sum(figures["confusion"]) == calibration["num"] == NUM
    of_all = expected(predictions, np.arange(NUM), calibration["temperature"])
    # The temperature of all rows is the best for them, so that those of other folds are a little worse.
    assert of_all["nll"] < calibration["after"]["nll"] < of_all["nll"] + 0.01
    temperatures = calibration["fold_temperatures"]
    assert len(set(temperatures)) == 4 and min(temperatures) < calibration["temperature"] < max(temperatures)
    assert "evaluated in 4 folds" in capsys.readouterr().out


def test_probabilities_with_paths_are_read_as_debias_reads_them(predictions: Path):
    probs = torch.from_numpy(np.load(predictions)).double().softmax(1).numpy()
    truth, file = np.load(predictions.parent / "truth.npy"), predictions.parent / "p.csv"
    with file.open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["path", "label", "confidence", *(f"p_{name}" for name in CLASSES)])
        rows.writerows([f"{i}.png", "ant", 1, *row] for i, row in enumerate(probs))
    labels = predictions.parent / "truth.csv"
    labels.write_text("path,label\n" + "".join(f"{i}.png,{CLASSES[truth[i]]}\n" for i in range(1000)))
    out = predictions.parent / "o.json"
    evaluate.main(
        ["--predictions", str(file), "--truth", str(labels), "--calibrate", "--folds", "2", "--out", str(out)]
    )
    calibration = json.loads(out.read_text())["calibration"]
    assert calibration["num"] == 1000
    for name, value in expected(predictions, np.arange(1000), 1.0).items():
        assert calibration["before"][name] == pytest.approx(value, abs=1e-4)


def test_figures_of_few_rows_have_intervals(predictions: Path, capsys):
    truth, right = predictions.parent / "few.csv", np.load(predictions).argmax(1)
    truth.write_text("Row,Class\n" + "".join(f"{i},{CLASSES[right[i]]}\n" for i in range(3)))
    out = predictions.parent / "o.json"
    evaluate.main(["--predictions", str(predictions), "--truth", str(truth), "--out", str(out)])
    figures = json.loads(out.read_text())
    assert (figures["num"], figures["num_known"], figures["accuracy"]) == (NUM, 3, 1)
    expected = binomtest(3, 3).proportion_ci(method="wilson")
    assert figures["accuracy_interval"] == pytest.approx([expected.low, 1])
    assert [interval is None for interval in figures["recall_intervals"]] == [r is None for r in figures["recalls"]]
    said = capsys.readouterr().out
    assert f"3 of 3 rows of {truth} matched" in said and f"known         3 of {NUM} rows\n" in said
    assert "accuracy        100.00 %   (95 % interval: 43.85 to 100.00 %)" in said
    truth.write_text("row,label\n3,\n")
    assert "labels none" in refused(evaluate.main, ["--predictions", str(predictions), "--truth", str(truth)], capsys)


def test_the_page_shows_both(predictions: Path):
    page = predictions.parent / "page.html"
    figures = figures_of(predictions, "--calibrate", "--tune_on", ".5", "--report", str(page))
    text = page.read_text()
    check_self_contained(text, min_figures=2)
    for name in ("before", "after"):
        assert f"Reliability, {name}: ECE {percent(figures['calibration'][name]['ece'])}" in text
        assert f"{figures['calibration'][name]['brier']:.4f}" in text
    assert "1,500 rows of" in text


def test_rows_that_are_all_right_end_at_a_bound_and_it_is_said(predictions: Path, capsys):
    np.save(predictions.parent / "truth.npy", np.load(predictions).argmax(1))
    calibration = figures_of(predictions, "--calibrate", "--tune_on", ".1")["calibration"]
    assert calibration["temperature"] == 0.001
    assert "note: a temperature is at 0.001" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--calibrate"], ["--tune_on", "--folds"]),
        (["--calibrate", "--tune_on", "few.csv"], ["'few.csv' is neither"]),
        (["--calibrate", "--tune_on", "1.5"], ["--tune_on 1.5", "3000 rows"]),
        (["--calibrate", "--tune_on", "0.00001"], ["no row to fit on"]),
        (["--calibrate", "--tune_on", "nan"], ["--tune_on nan"]),
        (["--calibrate", "--tune_on", ".2", "--folds", "5"], ["pass one of them"]),
        (["--calibrate", "--folds", "1"], ["--folds is 1", "at least 2"]),
        (["--calibrate", "--folds", "3001"], ["--folds is 3001", "3000"]),
        (["--calibrate", "--folds", "two"], ["folds", "two"]),
        (["--calibrate", "--folds", "2", "--seed", "-1"], ["--seed is -1"]),
        (["--tune_on", ".2"], ["--tune_on", "--calibrate"]),
        (["--report", "page.html"], ["--report", "--calibrate"]),
        (["--part", "validation"], ["--part", "--predictions"]),
        (["--data.name", "digits"], ["--data.name"]),
        (["--run", "somewhere"], ["--run FOLDER, or --predictions FILE"]),
        (["--kind", "probs"], ["not a probability"]),
    ],
)
def test_what_does_not_fit_is_told(flags, words, predictions: Path, capsys):
    out = predictions.parent / "o.json"
    message = refused(evaluate.main, [*matrix_flags(predictions), *flags, "--out", str(out)], capsys)
    assert all(word in message for word in words), message
    assert not out.exists()


def test_nothing_to_evaluate_is_told(predictions: Path, capsys):
    assert "--run FOLDER, or --predictions FILE" in refused(evaluate.main, [], capsys)
    assert "needs --truth" in refused(evaluate.main, ["--predictions", str(predictions)], capsys)
    np.save(predictions.parent / "truth.npy", np.full(NUM, -1))
    assert "labels none" in refused(evaluate.main, matrix_flags(predictions), capsys)


def test_rows_to_fit_on_must_leave_rows_to_judge(predictions: Path, capsys):
    truth = str(predictions.parent / "truth.npy")
    message = refused(evaluate.main, [*matrix_flags(predictions), "--calibrate", "--tune_on", truth], capsys)
    assert "leaves no row" in message


def test_files_are_replaced_only_when_told_to(predictions: Path, capsys):
    for flag, name in (("--out", "o.json"), ("--report", "o.html")):
        path = predictions.parent / name
        path.write_text("mine")
        arguments = [*matrix_flags(predictions), "--calibrate", "--folds", "2", flag, str(path)]
        assert "--overwrite" in refused(evaluate.main, arguments, capsys) and path.read_text() == "mine"
        evaluate.main([*arguments, "--overwrite"])
        assert path.read_text() != "mine"
        (predictions.parent / "folder").mkdir(exist_ok=True)
        assert "is a folder" in refused(evaluate.main, [*arguments[:-1], str(predictions.parent / "folder")], capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    short = ["--steps", "6", "--log_every", "6", "--eval_every", "6", "--unlabeled_ratio", "1"]
    train.main(["--config", str(DIGITS), *short, "--data.validation_per_class", "5", "--out", str(out)])
    return out


def test_a_run_is_calibrated_on_its_validation_images(trained: Path, tmp_path: Path, capsys):
    out, page = tmp_path / "f.json", tmp_path / "p.html"
    evaluate.main(["--run", str(trained), "--calibrate", "--out", str(out), "--report", str(page)])
    figures = json.loads(out.read_text())
    part = {
        name: tuple(torch.from_numpy(np.load(trained / "predictions" / f"{name}_{kind}.npy")) for kind in KINDS)
        for name in ("test", "validation")
    }
    temperature = fit_temperature(*part["validation"])
    assert figures["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-4)
    assert figures["calibration"]["num_tuned_on"] == 50 and figures["calibration"]["num"] == len(part["test"][1])
    logits, labels = part["test"]
    for key, scale in (("before", 1.0), ("after", temperature)):
        for name, value in calibration_figures(logits / scale, labels).items():
            assert figures["calibration"][key][name] == pytest.approx(value, abs=1e-4)
    assert figures["nll"] == pytest.approx(figures["calibration"]["before"]["nll"])
    assert "fitted on 50 validation images" in capsys.readouterr().out
    assert "Reliability, after" in page.read_text()


def test_processes_share_the_images_of_a_run(trained: Path, tmp_path: Path):
    figures = []
    for num in (1, 2):
        out = tmp_path / f"{num}.json"
        # Batches that do not divide the images, so that one process has fewer of them.
        Launched(num, out, base=["--run", str(trained), "--calibrate", "--batch_size", "7"], job="evaluate").finish()
        figures.append(json.loads(out.read_text()))
    one, two = figures
    assert two["confusion"] == one["confusion"] and two["calibration"]["num"] == one["calibration"]["num"]
    assert two["nll"] == pytest.approx(one["nll"], rel=1e-6)
    assert two["calibration"]["temperature"] == pytest.approx(one["calibration"]["temperature"], rel=1e-4)


def test_a_run_in_folds(trained: Path, tmp_path: Path):
    out = tmp_path / "f.json"
    flags = ["--part", "validation", "--calibrate", "--folds", "5", "--out", str(out)]
    evaluate.main(["--run", str(trained), *flags])
    calibration = json.loads(out.read_text())["calibration"]
    assert calibration["num"] == 50 and len(calibration["fold_temperatures"]) == 5
    assert calibration["tuned_on"] == "validation images"


def test_what_a_run_cannot_be_calibrated_on(trained: Path, tmp_path: Path, capsys):
    run = ["--run", str(trained), "--calibrate"]
    assert "--folds" in refused(evaluate.main, [*run, "--part", "validation"], capsys)
    assert "validation images" in refused(evaluate.main, [*run, "--tune_on", ".2"], capsys)
    assert "--truth" in refused(evaluate.main, [*run, "--truth", "truth.npy"], capsys)
    # A run without validation images: the split says so.
    split = json.loads((trained / "split.json").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.yaml", "model.json", "model.safetensors", "method.safetensors"):
        (bare / name).write_bytes((trained / name).read_bytes())
    (bare / "split.json").write_text(json.dumps(split | {"validation": []}))
    message = refused(evaluate.main, ["--run", str(bare), "--calibrate"], capsys)
    assert "data.validation_per_class" in message and "--folds 5" in message


# -- memory

MEASURED = """
import sys, threading
# A job imports them where it needs them: they are no memory of the predictions.
import accelerate, scipy.optimize, sklearn.datasets, torch._dynamo
from debias_ssl import evaluate


def now():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024


most = start = now()
done = threading.Event()


def watch():
    global most
    while not done.wait(0.005):
        most = max(most, now())


watching = threading.Thread(target=watch)
watching.start()
evaluate.main(sys.argv[1:])
done.set()
watching.join()
print(most - start)
"""


def megabytes_above_the_start(*arguments: str) -> float:
    """Of an evaluation in a process of its own; pages of a file that is mapped do not count, as the system may drop
    them.
    """
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell how much memory is used")
def test_memory_holds_a_part_of_the_rows(tmp_path: Path):
    """60,000 rows of 500 classes are 120 MB in fp32, and 240 MB in fp64.

    Measured: 55 MB, 72 MB with rows to fit a temperature on, 76 MB in folds, and 85 MB where they are probabilities.
    """
    labels = np.arange(60_000) % 500
    matrix = np.random.default_rng(0).standard_normal((60_000, 500), dtype=np.float32)
    matrix[np.arange(60_000), labels] += 2
    np.save(tmp_path / "logits.npy", matrix)
    np.exp(matrix, out=matrix)
    np.save(tmp_path / "probs.npy", matrix / matrix.sum(1, keepdims=True))
    np.save(tmp_path / "truth.npy", labels)
    for kind, flags in (
        ("logits", []),
        ("logits", ["--calibrate", "--tune_on", ".1"]),
        ("logits", ["--calibrate", "--folds", "3"]),
        ("probs", ["--calibrate", "--folds", "2"]),
    ):
        files = ["--predictions", str(tmp_path / f"{kind}.npy"), "--truth", str(tmp_path / "truth.npy")]
        assert megabytes_above_the_start(*files, *flags) < 120, (kind, flags)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell how much memory is used")
def test_memory_holds_a_part_of_the_predictions_of_a_run(tmp_path: Path):
    """Measured: 79 MB, and 104 MB in folds."""
    settings = ["--data.name", "many_classes.five_hundred", "--data.labels_per_class", "1", "--model.name"]
    settings += ["many_classes.Linear", "--steps", "1", "--batch_size", "8", "--unlabeled_ratio", "1"]
    train.main([*settings, "--out", str(tmp_path / "run")])
    for flags in ([], ["--calibrate", "--folds", "3"]):
        assert megabytes_above_the_start("--run", str(tmp_path / "run"), *flags) < 150, flags
