"""Which pseudo-labels become labels, and generations that follow each other."""

import json
from pathlib import Path

import crest as script
import numpy as np
import pytest
import torch
from jobs import refused
from launched import DIGITS

from debias_ssl.data.splits import Split
from debias_ssl.system.files import read_yaml
from debias_ssl.training.journal import read_journal

FLAGS = ["--config", str(DIGITS), "--method", "FixMatch", "--steps", "4", "--eval_every", "4", "--batch_size", "8"]
FLAGS += ["--data.labels_per_class", "20", "--data.labeled_imbalance", "20", "--data.unlabeled_per_class", "40"]


@pytest.mark.parametrize(
    ("counts", "alpha", "expected"),
    [
        # Frequent classes give as many as the rare ones have labels, relative to the first.
        ((8, 4, 1), 1.0, [1 / 8, 4 / 8, 1]),
        ((27, 8, 1), 1 / 3, [1 / 3, 2 / 3, 1]),
        # The order of the classes is that of their counts, not that of their numbers.
        ((1, 8, 4), 1.0, [1, 1 / 8, 4 / 8]),
        ((8, 4, 1), 0.0, [1, 1, 1]),
        ((5, 5, 5), 2.0, [1, 1, 1]),
        # The most frequent class gives nothing where another has no labels.
        ((8, 4, 0), 1.0, [0, 4 / 8, 1]),
    ],
)
def test_rates_worked(counts, alpha, expected):
    assert script.rates(counts, alpha).tolist() == pytest.approx(expected)


def test_the_surest_of_each_class_are_taken():
    top, label = [0.6, 0.9, 0.7, 0.8, 0.5, 0.95, 0.55], [0, 0, 0, 0, 1, 1, 2]
    probs = torch.zeros(7, 3)
    for i, (confidence, k) in enumerate(zip(top, label, strict=True)):
        probs[i] = (1 - confidence) / 2
        probs[i, k] = confidence
    # Half of the four of class 0, .9 of the two of class 1 rounded down, all of class 2.
    rows, classes = script.most_confident(probs, torch.tensor([0.5, 0.9, 1.0]))
    assert rows.tolist() == [1, 3, 5, 6] and classes.tolist() == [0, 0, 1, 2]
    rows, classes = script.most_confident(probs, torch.zeros(3))
    assert rows.tolist() == classes.tolist() == []


def test_a_whole_number_is_not_lost_to_rounding():
    # 10 * (.7 - .4) is 2.9999999999999996 in floating point.
    rows, _ = script.most_confident(torch.eye(2)[[0] * 10], torch.tensor([0.7 - 0.4, 1.0], dtype=torch.float64))
    assert len(rows) == 3


def test_temperature_falls_from_one_to_the_smallest():
    plan = script.Generations(generations=3, min_temperature=0.5)
    assert [plan.temperature(g) for g in range(3)] == [1, 0.75, 0.5]
    assert script.Generations(generations=1).temperature(0) == 1
    assert script.Generations(min_temperature=None).temperature(2) is None
    assert script.aligned_shares((16, 4, 0), 1.0) == pytest.approx([0.8, 0.2, 0])
    assert script.aligned_shares((16, 4), 0.5) == pytest.approx([2 / 3, 1 / 3])
    assert script.aligned_shares((16, 4), 0.0) == [0.5, 0.5]


def test_a_split_grows_by_pseudo_labels_and_keeps_its_unlabeled_images():
    split = Split(labeled=np.array([2, 5]), unlabeled=np.array([0, 1, 2, 5, 7]), validation=np.array([3]))
    assert script.candidates(split).tolist() == [0, 1, 7]
    grown = script.grown(split, np.array([1, 1, 0, 0, 1, 1, 0, 1]), np.array([0, 7]), np.array([0, 1]))
    assert grown.labeled.tolist() == [0, 2, 5, 7]
    # Images 2 and 5 have their own labels, 0 and 7 what the model says.
    assert grown.labels is not None and grown.labels.tolist() == [0, 0, 1, 1]
    assert grown.unlabeled is split.unlabeled and grown.validation is split.validation


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crest") / "out"
    script.main([*FLAGS, "--generations", "3", "--out", str(out)])
    return out


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_each_generation_adds_pseudo_labels_to_the_first_ones_labels(finished: Path):
    first, *others = [read(finished / f"gen_{g}" / "split.json") for g in range(3)]
    assert "labels" not in first
    for split, rows in zip(others, read(finished / "crest.json")[1:], strict=True):
        assert set(split["labeled"]) > set(first["labeled"])
        assert set(split["labeled"]) <= set(first["labeled"]) | set(first["unlabeled"])
        assert split["unlabeled"] == first["unlabeled"]
        assert rows["labels"] == len(first["labeled"])
        assert rows["pseudo-labels"] == len(split["labeled"]) - len(first["labeled"])
    assert [row["t"] for row in read(finished / "crest.json")] == [1, 0.75, 0.5]


def test_a_generation_is_a_run_with_its_own_prior(finished: Path):
    counts = np.array(read(finished / "gen_0" / "model.json")["labeled_counts"])
    assert counts[0] == 20 and counts[-1] == 1
    for g, t in enumerate((1, 0.75, 0.5)):
        prior = read_yaml(finished / f"gen_{g}" / "config.yaml")["method"]["init_args"]["prior"]
        assert prior == pytest.approx((counts**t / (counts**t).sum()).tolist())


def test_a_killed_script_goes_on_and_ends_with_the_same_bits(finished: Path, tmp_path: Path, monkeypatch):
    out, trained = tmp_path / "out", []
    train = script.train

    def dying(config, resolved, folder, **flags):
        if folder.name == "gen_1" and not trained:
            trained.append(folder)
            raise KeyboardInterrupt
        train(config, resolved, folder, **flags)

    monkeypatch.setattr(script, "train", dying)
    with pytest.raises(SystemExit):
        script.main([*FLAGS, "--generations", "3", "--out", str(out)])
    assert not (out / "gen_1").exists()
    written = (out / "gen_0" / "model.safetensors").stat().st_mtime_ns
    script.main([*FLAGS, "--generations", "3", "--out", str(out), "--resume"])
    assert (out / "gen_0" / "model.safetensors").stat().st_mtime_ns == written
    for g in range(3):
        weights = [(each / f"gen_{g}" / "model.safetensors").read_bytes() for each in (finished, out)]
        assert weights[0] == weights[1]
        assert len(read_journal(out / f"gen_{g}" / "metrics.jsonl")) == len(
            read_journal(finished / f"gen_{g}" / "metrics.jsonl")
        )
    assert read(out / "crest.json") == read(finished / "crest.json")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass --resume to go on with them, --overwrite to replace"),
        (["--resume", "--alpha", "0.9"], "crest.alpha was 0.333"),
        (["--resume", "--steps", "5"], "steps was 4, now it is 5"),
    ],
)
def test_generations_that_are_there_are_kept(finished: Path, capsys, flags, message):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert message in refused(script.main, [*FLAGS, "--generations", "3", "--out", str(finished), *flags], capsys)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_crest_without_alignment_goes_over_any_method_and_overwrites_its_own_files(tmp_path: Path, capsys):
    out = tmp_path / "out"
    asked = [*FLAGS, "--method", "DebiasPL", "--generations", "1", "--out", str(out)]
    message = refused(script.main, asked, capsys)
    assert "DebiasPL has no such setting: pass --method FixMatch or AdaMatch" in message and not out.exists()
    script.main([*asked, "--min_temperature", "null"])
    assert "| 0 | - | " in capsys.readouterr().out
    (out / "notes.txt").write_text("mine")
    (out / "gen_5").mkdir()
    script.main([*asked, "--min_temperature", "null", "--seed", "1", "--overwrite"])
    assert sorted(path.name for path in out.iterdir()) == [
        "crest.json",
        "crest.yaml",
        "gen_0",
        "notes.txt",
        "split_0.json",
    ]


@pytest.mark.parametrize("flags", [["--generations", "0"], ["--alpha=-1"], ["--min_temperature", "2"]])
def test_plans_that_make_no_sense_are_refused(tmp_path: Path, capsys, flags):
    assert ", must be " in refused(script.main, [*FLAGS, "--out", str(tmp_path / "out"), *flags], capsys)
    assert not (tmp_path / "out").exists()
