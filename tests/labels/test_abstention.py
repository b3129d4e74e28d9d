"""Rows without a label: by functions and by the jobs, what is written of them, what reads it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of
from sklearn.metrics import roc_auc_score
from test_removal import made

from debias_ssl import debias_matrix
from debias_ssl.debias import main as debias
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Rows, label_rows, labeling_of
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.system.errors import InputError

NUM = 2000


def labels(num_tuned: int = 0, seed: int = 0, num: int = NUM, **settings: Any) -> Any:
    """Of made logits with a preference of 0 to 3; the truth is said, and labels of the first rows to tune on."""
    logits, truth = made(num, seed)
    logits = 1.5 * (logits - torch.linspace(0, 3, 10))
    tuned = np.where(np.arange(num) < num_tuned, truth.numpy(), -1) if num_tuned else None
    return debias_matrix(logits, truth=truth.numpy(), tune_on=tuned, **settings)


def test_without_a_setting_nothing_has_a_score():
    plain = labels()
    assert plain.score is None and plain.abstained is None and "abstention" not in plain.summary()


@pytest.mark.parametrize("coverage", [1, 0.9, 0.25, 1e-6])
def test_a_coverage_is_met(coverage: float):
    found = labels(coverage=coverage)
    figures = found.summary()["abstention"]
    assert abs((~found.abstained).mean() - coverage) < 0.001 and not found.notes
    assert figures["coverage"] == pytest.approx((~found.abstained).mean())
    assert (
        figures["num_labeled"] + figures["num_abstained"]
        == NUM
        == sum(figures["abstained"].values()) + (~found.abstained).sum()
    )
    assert found.score[~found.abstained].min() == np.float32(figures["threshold"])
    # The surest are right more often.
    right = found.label == found.truth
    assert figures["accuracy"] == pytest.approx(right[~found.abstained].mean())
    assert coverage == 1 or figures["accuracy"] > right.mean()


def test_a_coverage_is_one_of_the_rows_that_are_not_tuned_on():
    found = labels(num_tuned=500, coverage=0.4)
    assert (~found.abstained)[found.reported].mean() == pytest.approx(0.4, abs=0.001)
    assert found.summary()["abstention"]["coverage"] == pytest.approx(0.4, abs=0.001)
    everything = labels(num_tuned=NUM, coverage=0.4)
    assert (~everything.abstained).mean() == pytest.approx(0.4, abs=0.001)
    assert everything.summary()["abstention"]["coverage"] is None


def test_a_precision_is_inside_its_interval_on_other_rows():
    inside, found = [], []
    for seed in range(10):
        labeled = labels(num_tuned=400, seed=seed, num=3000, min_precision=0.85)
        figures = labeled.summary()["abstention"]
        low, high = figures["on_tuned"]["interval"]
        inside.append(low <= figures["accuracy"] <= high)
        found.append(figures["accuracy"])
        tuned = ~labeled.reported & ~labeled.abstained
        right = labeled.label == labeled.truth
        assert figures["on_tuned"]["num_labeled"] == tuned.sum() and figures["on_tuned"]["num"] == 400
        assert figures["on_tuned"]["precision"] == pytest.approx(right[tuned].mean())
    assert np.mean(inside) >= 0.9 and np.mean(found) == pytest.approx(0.86, abs=0.02)


def test_all_rows_may_abstain():
    found = labels(min_score=1.01)
    figures = found.summary()["abstention"]
    assert found.abstained.all() and figures["coverage"] == 0 and "accuracy" not in figures
    assert found.notes == ("no row gets a label: all scores are below the threshold",)


def test_a_score_alone_leaves_all_rows_their_label():
    found = labels(unknown="margin")
    figures = found.summary()["abstention"]
    assert not found.abstained.any() and figures["threshold"] is None and figures["coverage"] == 1
    np.testing.assert_allclose(found.score, found.top2_gap, atol=1e-6)
    np.testing.assert_allclose(labels(unknown="max_prob").score, found.confidence)
    probs = found.probs.astype(float)
    entropy = 1 + (probs * np.log(probs)).sum(1) / np.log(10)
    np.testing.assert_allclose(labels(coverage=0.5).score, entropy, atol=1e-5)


def test_the_energy_is_that_of_logits_as_they_are():
    logits, _ = made(100)
    found: Any = debias_matrix(logits, temperature=2.0, unknown="energy")
    np.testing.assert_allclose(found.score, (logits / 2).logsumexp(1), rtol=1e-5)
    with pytest.raises(InputError, match=r"^unknown energy .* choose max_prob"):
        debias_matrix(logits.softmax(1), unknown="energy")


def test_many_rows_of_one_score_are_told():
    logits = np.repeat(made(4)[0].numpy(), 25, 0)
    found: Any = debias_matrix(logits, coverage=0.3, target_prior="uniform")
    assert (~found.abstained).mean() == 0.5
    assert found.notes == (
        "50.0% of the rows get a label instead of 30.0%: many rows have the same score at the threshold",
    )


def test_negatives_take_the_rows_that_are_like_them():
    """Rows of two classes, and others that are of a third, whose name is among the negatives."""
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], 100)
    logits = torch.from_numpy(rng.normal(size=(300, 3)) + 3 * np.eye(3)[kind])
    scores = {}
    for name, negatives in (("with", [logits[:, 2:]]), ("without", None)):
        rows = Rows(
            chunks=[logits[:, :2]],
            names=RowNumbers(300),
            classes=("a", "b"),
            target=torch.full((2,), 0.5, dtype=torch.float64),
            negatives=negatives,
        )
        config = DebiasConfig(unknown="max_prob")
        removal = find_removal(rows, config, is_quiet=True)
        parts = [part for part, _ in label_rows(rows, removal, "max_prob", is_quiet=True)]
        found: Any = labeling_of(rows, config, removal, parts)
        scores[name] = found.score
        # They are never a label, nor part of what is removed.
        assert removal.prior.shape == (2,) and found.label.max() == 1
    assert roc_auc_score(kind < 2, scores["with"]) > 0.95 > 0.9 > roc_auc_score(kind < 2, scores["without"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    logits, truth = made(400)
    np.save(tmp_path / "logits.npy", (1.5 * logits).numpy())
    np.save(tmp_path / "truth.npy", truth.numpy())
    np.save(tmp_path / "probs.npy", logits.softmax(1).numpy())
    np.save(tmp_path / "few.npy", np.where(np.arange(400) < 100, truth.numpy(), -1))
    return tmp_path


def command(folder: Path, *flags: str) -> list[str]:
    given = ["--predictions", str(folder / "logits.npy"), "--out", str(folder / "out"), "--overwrite"]
    files = {"FEW": str(folder / "few.npy"), "PROBS": str(folder / "probs.npy")}
    return [*given, *(files.get(flag, flag) for flag in flags)]


def test_the_job_writes_what_the_function_says(folder: Path, capsys):
    debias(command(folder, "--coverage", "0.3", "--truth", str(folder / "truth.npy")))
    said = capsys.readouterr().out
    rows, summary = rows_of(folder / "out"), json.loads((folder / "out" / "summary.json").read_text())
    found: Any = debias_matrix(
        np.load(folder / "logits.npy"),
        truth=np.load(folder / "truth.npy"),
        coverage=0.3,
    )
    figures = summary["abstention"]
    assert figures == found.summary()["abstention"] and figures["num_labeled"] == 120
    assert [*rows[0]][-2:] == ["score", "abstained"]
    for row, score, abstained, label in zip(rows, found.score, found.abstained, found.label, strict=True):
        assert row["label"] == ("" if abstained else str(label)) and row["abstained"] == str(bool(abstained)).lower()
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)
    assert f"labeled   120 of 400 rows (30.00%), by entropy of at least {figures['threshold']:.4g}; right where" in said
    page = (folder / "out" / "report.html").read_text()
    assert "Risk against coverage" in page and "Classes of rows without a label" in page


def test_without_a_setting_nothing_else_is_written(folder: Path):
    debias(command(folder))
    assert [*rows_of(folder / "out")[0]] == [
        *("row", "label", "confidence", "top2_gap", "plain_label", "plain_confidence"),
    ]
    assert "abstention" not in json.loads((folder / "out" / "summary.json").read_text())
    assert "Without a label" not in (folder / "out" / "report.html").read_text()


def test_a_folder_with_rows_without_labels_is_read_again(folder: Path):
    debias(command(folder, "--coverage", "0.3"))
    before = rows_of(folder / "out")
    again = folder / "again"
    debias(["--predictions", str(folder / "out" / "probs.npy"), "--prior", "none", "--out", str(again)])
    kept = [(a["label"], b["label"]) for a, b in zip(before, rows_of(again), strict=True) if a["label"]]
    assert len(kept) == 120 and all(a == b for a, b in kept)
    # As a truth, rows without a label are unknown.
    truth = ["--truth", str(folder / "out" / "labels.csv"), "--out", str(folder / "t")]
    debias(["--predictions", str(folder / "logits.npy"), *truth])
    assert json.loads((folder / "t" / "summary.json").read_text())["num_known"] == 120


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coverage", "0.5", "--min_score", "0.5"], "coverage and min_score are both a limit"),
        (["--coverage", "0"], "coverage is 0"),
        (["--coverage", "90"], "coverage is 90"),
        (["--min_precision", "0.9"], "--min_precision needs the labels of some rows: pass them with --tune_on FILE"),
        (["--min_precision", "1"], "min_precision is 1"),
        (["--min_precision", "0.995", "--tune_on", "FEW"], "100 rows of --tune_on: at least 199 rows are needed"),
        (
            ["--min_precision", "0.98", "--tune_on", "FEW"],
            "is not reached, even by the most certain of the 100 rows of --tune_on",
        ),
        (["--unknown", "confidence"], "'max_prob', 'margin', 'entropy', 'energy'"),
        (
            ["--unknown", "energy", "--predictions", "PROBS"],
            "--unknown energy is the sum of exp(f), which is 1 for all",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(flags: list[str], words: str, folder: Path, capsys):
    assert words in refused(debias, command(folder, *flags), capsys)
    assert not (folder / "out" / "labels.csv").exists()
