"""What is measured of long-tailed classifiers, on numbers small enough to be counted by hand."""

import re
from pathlib import Path

import long_tail as script
import pytest
import torch
from jobs import refused
from launched import DIGITS

FLAGS = ["--config", str(DIGITS), "--data.labels_per_class", "20", "--steps", "2", "--batch_size", "8"]
FLAGS += ["--unlabeled_ratio", "1", "--model.name", "wrn_10_1"]
PRIOR = torch.tensor([0.8, 0.2])


def test_norms_against_counts():
    norms, counts = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([100, 10, 1])
    assert script.rank_correlation(norms, counts) == pytest.approx(1)
    assert script.rank_correlation(norms.flip(0), counts) == pytest.approx(-1)
    # Ranks 1, 3, 2 against 1, 2, 3: 1 - 6 * 2 / 24.
    assert script.rank_correlation(torch.tensor([3.0, 1.0, 2.0]), counts) == pytest.approx(0.5)
    assert script.head_to_tail(norms, counts) == pytest.approx(3)
    assert script.head_to_tail(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 10, 100])) == pytest.approx(4)


@pytest.mark.parametrize(
    ("scores", "flips"),
    [
        # -2 / .8 = -2.5 and -1 / .2 = -5: the rare class was ahead and falls behind.
        ([-2.0, -1.0], 1),
        # -5 / .8 = -6.25 and -1 / .2 = -5: it stays ahead.
        ([-5.0, -1.0], 0),
        # -4 / .8 and -1 / .2 are level.
        ([-4.0, -1.0], 0),
        # Where it is behind, or a score is positive, division does not put it down.
        ([-1.0, -2.0], 0),
        ([1.0, 2.0], 0),
        ([2.0, 1.0], 0),
        ([-1.0, 1.0], 0),
    ],
)
def test_order_flips_worked(scores, flips):
    assert script.wrong_flips(torch.tensor([scores]), PRIOR, 1.0).tolist() == [flips]
    assert script.wrong_flips(torch.tensor([scores]), PRIOR, 0.0).tolist() == [0]


def test_pairs_are_counted_by_image():
    prior = torch.tensor([0.5, 0.3, 0.2])
    scores = torch.tensor([[-1.2, -1.1, -1.0], [3.0, -1.1, -1.0], [3.0, 2.0, 1.0]])
    # First image: 2 before 1, 2 before 0 and 1 before 0 all turn around; second: 2 before 1 alone.
    assert script.wrong_flips(scores, prior, 1.0).tolist() == [3, 1, 0]
    # The first image's prediction goes from class 2 to class 0; the third's from 0 (6) to 1 (6.67), which is rarer.
    assert script.to_more_frequent(scores, prior, 1.0) == pytest.approx(1 / 3)


@pytest.fixture
def trained():
    """Four images of each of three classes; of the rarest, three are taken for the most frequent one."""
    labels = torch.arange(12) // 4
    logits = 4 * torch.eye(3)[labels]
    logits[8:11, 0] = 5.0
    return script.Trained(
        logits=logits, labels=labels, norms=torch.tensor([3.0, 1.0, 1.0]), counts=torch.tensor([80, 15, 5])
    )


def test_errors_of_groups(trained):
    found = script.errors(trained.logits, trained)
    assert found == pytest.approx({"balanced": 0.25, "head": 0, "medium": 0, "tail": 0.75})


@pytest.mark.parametrize("correction", script.CORRECTIONS)
def test_corrections_mend_the_tail_and_do_nothing_at_tau_0(trained, correction):
    assert script.corrected(trained, correction, 0.0).equal(trained.logits)
    # 5 + log(1 / .8) is below 4 + log(1 / .05); 5 / 3 below 4, and 5 / .8 below 4 / .05.
    assert script.errors(script.corrected(trained, correction, 1.0), trained)["tail"] == 0


def test_the_tables_say_what_was_measured(trained):
    runs = {
        (loss, optimizer): [trained, trained] for loss in ("CrossEntropy", "Balanced") for optimizer in ("sgd", "adamw")
    }
    losses = script.loss_table(runs)
    assert losses.rows[0] == [
        "CrossEntropy",
        "sgd",
        "25.0 ± 0.0",
        "0.0 ± 0.0",
        "0.0 ± 0.0",
        "75.0 ± 0.0",
        "0.87 ± 0.00",
        "3.00 ± 0.00",
    ]
    assert len(losses.rows) == 4
    assert script.correction_table(runs).rows[0][-1] == "0.0 ± 0.0 (tau 0.5)"
    flips = {row[0]: row[2:] for row in script.flip_table(runs).rows[:2]}
    # Logits are 0 or more; log-probabilities are all negative, and those of the right classes 1 and 2 are ahead.
    assert flips["logits"][:2] == ["0.0 ± 0.0", "0.0 ± 0.0"]
    assert flips["log-probabilities"][:2] == ["100.0 ± 0.0", "100.0 ± 0.0"]
    text = script.text_of(losses)
    assert text.count("\n|") == 6 and "| Balanced | adamw | 25.0 ± 0.0 |" in text


def test_the_command_writes_tables_and_a_page(tmp_path: Path, capsys, monkeypatch):
    # Two of the losses are enough here.
    kept = {name: script.LABELED_LOSSES[name] for name in ("CrossEntropy", "LogitAdjusted")}
    monkeypatch.setattr(script, "LABELED_LOSSES", kept)
    out, tail = tmp_path / "out", ["--data.labeled_imbalance", "20", "--seeds", "0"]
    message = refused(script.main, [*FLAGS, "--out", str(out)], capsys)
    assert "the labels have no long tail" in message and not out.exists()

    script.main([*FLAGS, *tail, "--out", str(out)])
    text = (out / "long_tail.txt").read_text()
    assert capsys.readouterr().out == text
    assert len(re.findall(r"^\| \w+ \| (?:sgd|adamw) \|", text, re.MULTILINE)) >= 4
    page = (out / "long_tail.html").read_text()
    assert page.count("<figure") == 4 and "nan" not in text
    optimizers = {folder.parent.name: (folder / "config.yaml").read_text() for folder in out.glob("*/seed-0")}
    assert set(optimizers) == {f"{loss}-{name}" for loss in kept for name in script.OPTIMIZERS}
    assert "lr: 0.002" in optimizers["LogitAdjusted-adamw"] and "lr: 0.03" in optimizers["LogitAdjusted-sgd"]

    weights = out / "CrossEntropy-sgd" / "seed-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    message = refused(script.main, [*FLAGS, *tail, "--out", str(out)], capsys)
    assert "pass --resume to go on, --overwrite to replace it" in message
    script.main([*FLAGS, *tail, "--out", str(out), "--resume"])
    assert (out / "long_tail.txt").read_text() == text and weights.stat().st_mtime_ns == written
    message = refused(script.main, [*FLAGS, *tail, "--out", str(out), "--resume", "--optim.lr", "0.5"], capsys)
    assert "optim.lr was 0.03, now it is 0.5" in message
