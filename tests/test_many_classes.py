"""A whole short run of 1,000 classes: trained, evaluated, its images predicted, its page made."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many_classes import thousand
from pages import check_self_contained
from PIL import Image

from debias_ssl import evaluate, predict, report, train
from debias_ssl.data.sources import SourceConfig
from debias_ssl.training.journal import Journal

NUM_TEST, C = 2_000, 1_000


def run(out: Path, *flags: str) -> Path:
    settings = ["--data.name", "many_classes.thousand", "--data.labels_per_class", "1", "--data.augment.flip", "false"]
    settings += ["--data.validation_per_class", "1", "--data.augment.ops", "[identity]", "--data.augment.cutout", "0"]
    settings += ["--model.name", "many_classes.Linear", "--optim.name", "adam", "--optim.lr", "0.05"]
    settings += ["--batch_size", "100", "--unlabeled_ratio", "1", "--precision", "fp32"]
    train.main([*settings, *flags, "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--steps", "60", "--log_every", "10", "--eval_every", "20", "--checkpoint_every", "30"]
    return run(tmp_path_factory.mktemp("runs") / "thousand", *flags)


def test_it_learns_and_its_files_stay_small(trained: Path):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["raw"]["last"]["accuracy"] > 0.3
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    # Ten numbers of each class, where it has that many, and not ten of each pair of classes.
    assert max(map(len, lines)) < 100_000
    logits = np.load(trained / "predictions" / "test_ema.npy")
    assert logits.shape == (NUM_TEST, C)


def test_evaluate_has_the_figures_of_the_run(trained: Path, tmp_path: Path):
    evaluate.main(["--run", str(trained), "--calibrate", "--out", str(tmp_path / "f.json")])
    figures, summary = (json.loads(path.read_text()) for path in (tmp_path / "f.json", trained / "summary.json"))
    logits = torch.from_numpy(np.load(trained / "predictions" / "test_ema.npy"))
    labels = torch.from_numpy(np.load(trained / "predictions" / "test_labels.npy"))
    hits = logits.argmax(1) == labels
    assert figures["accuracy"] == summary["ema"]["last"]["accuracy"] == pytest.approx(hits.double().mean().item())
    assert figures["recalls"] == torch.zeros(C).index_add(0, labels, hits / 2).tolist()
    assert figures["calibration"]["num_tuned_on"] == C and len(figures["classes"]) == C


def test_predict_has_a_column_for_each_class(trained: Path, tmp_path: Path):
    pixels = thousand(SourceConfig()).test.pixels
    assert pixels is not None
    for i in range(12):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels[i, ..., 0]).save(tmp_path / "images" / f"{i:02}.png")
    out = tmp_path / "labels.csv"
    predict.main(["--run", str(trained), "--images", str(tmp_path / "images"), "--out", str(out), "--workers", "0"])
    with out.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    logits = torch.from_numpy(np.load(trained / "predictions" / "test_ema.npy"))[:12]
    assert [row["label"] for row in rows] == [f"class {k}" for k in logits.argmax(1)]
    probs = torch.tensor([[float(row[f"p_class {k}"]) for k in range(C)] for row in rows])
    torch.testing.assert_close(probs, logits.softmax(1), rtol=1e-4, atol=1e-6)


def test_the_page_can_be_opened(trained: Path, tmp_path: Path):
    report.main([str(trained), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    check_self_contained(text, min_figures=3)
    # Of the classes that do worst and best, and not of a million pairs.
    assert len(text) < 5_000_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell how much memory is used")
def test_two_hundred_evaluations_keep_no_memory_and_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What an evaluation makes, of 1,100 images, 100 classes and both models, is 0.9 MB in fp32: kept, 130 MB here."""
    out, memory, files = tmp_path / "run", [], []
    write_evaluation = Journal.write_evaluation

    def measured(journal: Journal, *arguments: Any) -> None:
        write_evaluation(journal, *arguments)
        memory.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024)
        files.append({path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*")})

    monkeypatch.setattr(Journal, "write_evaluation", measured)
    often = ["--log_every", "1", "--eval_every", "1", "--checkpoint_every", "1", "--median_of", "5"]
    run(out, "--steps", "200", *often, "--data.name", "many_classes.hundred", "--batch_size", "10")
    assert len(memory) == 200 and max(memory[150:]) - max(memory[20:50]) < 20
    early, late = ({name for name in found if "step_" not in name} for found in (files[20], files[-1]))
    assert early == late
    for found in (files[20], files[-1]):
        assert len({name.split("/")[1] for name in found if name.startswith("checkpoints/")}) == 2
    lines = [len(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 400 and files[-1]["metrics.jsonl"] < 1.3 * 10 * files[19]["metrics.jsonl"]
    # Not all pairs of classes: those are beside, of the last evaluation alone.
    assert max(lines) < 10_000 and files[-1]["confusion.npz"] < 3 * files[20]["confusion.npz"]
