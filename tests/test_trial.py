"""`debias-ssl trial`: by the method that helps, or on the labels alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused as refused_by
from sklearn.datasets import load_digits

from debias_ssl import load_run, trial
from debias_ssl.formulas.agreement import class_agreement
from debias_ssl.reporting.report import write_report

DIGITS = Path(__file__).parent.parent / "configs" / "digits.yaml"
FLAGS = ["--config", str(DIGITS), "--steps", "8", "--eval_every", "8", "--checkpoint_every", "8", "--divisions", "1"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    return refused_by(trial.main, arguments, capsys)


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trial") / "t"
    # No gain is as large as that.
    trial.main([*FLAGS, "--methods", "DebiasPL,SoftMatch", "--margin", "0.9", "--out", str(out)])
    return out


def test_agreement_is_that_of_the_averaged_models_of_two_halves(tried: Path):
    record: dict[str, Any] = json.loads((tried / "trial.json").read_text())
    assert list(record["agreements"]) == ["LabelsOnly", "DebiasPL", "SoftMatch"]
    halves = [json.loads((tried / "halves" / f"{name}.json").read_text()) for name in ("1a", "1b")]
    assert (
        sorted(halves[0]["labeled"] + halves[1]["labeled"])
        == json.loads((tried / "runs" / "LabelsOnly" / "seed-0" / "split.json").read_text())["labeled"]
    )

    digits: Any = load_digits()
    pixels = np.delete(digits.images, np.s_[2::3], axis=0)
    others = np.setdiff1d(halves[0]["unlabeled"], halves[0]["labeled"] + halves[1]["labeled"])
    shown = np.round(pixels[others] * (255 / 16)).astype(np.uint8)[..., None]
    for name, found in record["agreements"].items():
        runs = [load_run(tried / "halves" / half / name / "seed-0") for half in ("1a", "1b")]
        assert [sum(run.labeled_counts) for run in runs] == [20, 20]

        classes = [torch.from_numpy(run.predict(shown).argmax(-1)) for run in runs]
        assert found == [pytest.approx(class_agreement(classes[0], classes[1], 10).mean().item())]


def test_labels_alone_are_trained_and_the_page_says_why(tried: Path):
    assert [path.name for path in (tried / "runs").iterdir()] == ["LabelsOnly"]
    run = tried / "runs" / "LabelsOnly" / "seed-0"
    record = json.loads((run / "trial.json").read_text())
    assert record == json.loads((tried / "trial.json").read_text()) and record["chosen"] == "LabelsOnly"
    write_report([run], tried.parent / "page.html")
    assert f"Chosen by a trial: {record['why']}." in (tried.parent / "page.html").read_text()


def test_the_same_command_trains_nothing_twice(tried: Path, monkeypatch):
    begun = []
    monkeypatch.setattr("debias_ssl.runs.comparison.train", lambda *args, **settings: begun.append(args))
    before = (tried / "trial.json").read_bytes()
    trial.main([*FLAGS, "--methods", "DebiasPL,SoftMatch", "--margin", "0.9", "--out", str(tried)])
    assert not begun and (tried / "trial.json").read_bytes() == before


def test_what_is_asked_for_more_strictly_is_decided_anew_without_new_halves(tried: Path, monkeypatch, capsys):
    """With no margin the best method is trained, and no half again."""
    begun = []
    monkeypatch.setattr("debias_ssl.trial._train", lambda runs, jobs: begun.extend(run.title for run in runs))
    monkeypatch.setattr(trial.Verdict, "gain", lambda self, variant: {"DebiasPL": 0.1, "SoftMatch": 0.2}[variant])
    flags = ["--methods", "DebiasPL,SoftMatch", "--margin", "0.15", "--train", "false"]
    trial.main([*FLAGS, *flags, "--out", str(tried)])
    assert json.loads((tried / "trial.json").read_text())["chosen"] == "SoftMatch"
    assert len(begun) == 6
    assert "SoftMatch *" in capsys.readouterr().out


def test_a_teacher_that_is_another_variant_is_trained_first(tmp_path: Path, monkeypatch):
    (tmp_path / "variants.yaml").write_text("Round: {method: SelfTraining, teacher: 'variant:LabelsOnly'}\n")
    monkeypatch.setattr(trial.Verdict, "gain", lambda self, variant: 0.2)
    trial.main([*FLAGS, "--variants", str(tmp_path / "variants.yaml"), "--out", str(tmp_path / "t")])
    runs = tmp_path / "t" / "runs"
    assert (runs / "LabelsOnly" / "seed-0" / "summary.json").exists()
    assert str(runs / "LabelsOnly" / "seed-0") in (runs / "Round" / "seed-0" / "config.yaml").read_text()


def test_other_settings_are_refused(tried: Path, capsys):
    assert "cannot be resumed: optim.lr was" in refused([*FLAGS, "--optim.lr", "0.5", "--out", str(tried)], capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--divisions", "0"], "--divisions is 0, must be at least 1"),
        (["--margin", "1"], "--margin is 1.0, must be in [0, 1)"),
        (["--methods", "Supervised"], "nothing to try: all variants are trained on the labels alone"),
    ],
)
def test_wrong_flags_are_refused(flags: list[str], said: str, tmp_path: Path, capsys):
    assert said in refused([*FLAGS, *flags, "--out", str(tmp_path / "t")], capsys)


def test_variants_must_have_the_same_labels(tmp_path: Path, capsys):
    (tmp_path / "v.yaml").write_text("four: {}\nfive: {data: {labels_per_class: 5}}\n")
    arguments = [*FLAGS, "--variants", str(tmp_path / "v.yaml"), "--out", str(tmp_path / "t")]
    assert "the variants have different images or labels: compare them with debias-ssl compare" in refused(
        arguments, capsys
    )
