"""Data that was moved: a run goes on, and is evaluated, fine-tuned, distilled and reported, from where it is now."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from jobs import refused, same, weights
from PIL import Image

from debias_ssl import distill, evaluate, predict, report, train
from debias_ssl.data.splits import saved_inputs
from debias_ssl.finetune import __main__ as finetune

pytestmark = pytest.mark.usefixtures("cache")
SHORT = ["--steps", "4", "--log_every", "2", "--eval_every", "4", "--checkpoint_every", "2", "--batch_size", "4"]
SHORT += ["--unlabeled_ratio", "2", "--model.name", "wrn_10_1", "--precision", "fp32", "--method", "FixMatch"]
PARTS = ("labeled", "unlabeled", "test")


def paint(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for part, number in (("labeled", 12), ("unlabeled", 10), ("test", 8)):
        for i in range(number):
            path = folder / part / ("" if part == "unlabeled" else ("cat", "dog")[i % 2]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return folder


def flags_of(folder: Path) -> list[str]:
    return [f"--data.{part}={folder / part}" for part in PARTS]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run and its images, which nothing changes."""
    folder = tmp_path_factory.mktemp("made")
    paint(folder / "old")
    data = ["--data.name=folder", "--data.validation_per_class=2", *flags_of(folder / "old")]
    train.main([*SHORT, *data, f"--data.cache={folder / 'cache'}", "--out", str(folder / "run")])
    return folder / "run", folder / "old"


@pytest.fixture
def moved(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, list[str]]:
    """The run, and flags of its images, which are elsewhere now, each part below another folder."""
    run, old = made
    for part in PARTS:
        shutil.copytree(old / part, tmp_path / "new" / part[0] / part)
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    # Where the images were, there is nothing.
    config.write_text(config.read_text().replace(str(old), str(tmp_path / "gone")))
    return tmp_path / "run", [f"--data.{part}={tmp_path / 'new' / part[0] / part}" for part in PARTS]


def broken_off(run: Path) -> None:
    """As it was after step 2."""
    for name in ("summary.json", "model.safetensors", "checkpoints/step_00000004"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_goes_on_from_another_root_as_if_nothing_had_happened(made, moved, capsys):
    run, flags = moved
    broken_off(run)
    assert "there is no such folder" in refused(train.main, ["--out", str(run), "--resume"], capsys)
    train.main(["--out", str(run), "--resume", *flags])
    assert "resumed at step 2" in capsys.readouterr().err
    assert same(weights(run, 4), weights(made[0], 4))
    assert flags[0].removeprefix("--data.labeled=") in (run / "config.yaml").read_text()


@pytest.mark.parametrize("part", PARTS)
def test_other_images_at_the_new_root_are_refused(part: str, moved, tmp_path: Path, capsys):
    run, flags = moved
    broken_off(run)
    path = next((tmp_path / "new" / part[0]).rglob("*.png"))
    path.rename(path.with_name("renamed.png"))
    message = refused(train.main, ["--out", str(run), "--resume", *flags], capsys)
    assert ("data.test has changed since the run started" if part == "test" else "fingerprint differs") in message


def test_a_run_of_an_earlier_version_says_nothing_of_its_test_images(moved, capsys):
    run, flags = moved
    broken_off(run)
    split = json.loads((run / "split.json").read_text())
    del split["inputs"]
    (run / "split.json").write_text(json.dumps(split))
    assert "data.test was" in refused(train.main, ["--out", str(run), "--resume", *flags], capsys)


def test_a_setting_that_changes_the_run_still_may_not(moved, capsys):
    run, flags = moved
    broken_off(run)
    arguments = ["--out", str(run), "--resume", *flags]
    assert "data.bits was None" in refused(train.main, [*arguments, "--data.bits", "12"], capsys)
    assert "data.unlabeled was" in refused(train.main, [*arguments, "--data.unlabeled", "null"], capsys)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_it_is_evaluated(part: str, moved, tmp_path: Path, capsys):
    run, flags = moved
    refused(evaluate.main, ["--run", str(run), "--part", part], capsys)
    evaluate.main(["--run", str(run), "--part", part, *flags, "--out", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["accuracy"] == (last if part == "test" else last[part])["ema"]["accuracy"]


def test_it_is_fine_tuned_and_the_new_run_knows_where_its_images_are(moved, tmp_path: Path, capsys):
    run, flags = moved
    quick = ["--run", str(run), "--method", "LogitAdjustment", "--out", str(tmp_path / "fine")]
    assert "there is no such folder" in refused(finetune.main, quick, capsys)
    finetune.main([*quick, *flags])
    saved = yaml.safe_load((tmp_path / "fine" / "config.yaml").read_text())
    was = yaml.safe_load((run / "config.yaml").read_text())
    assert {name for name in was["data"] if was["data"][name] != saved["data"][name]} == {*PARTS}
    assert {**was, "data": 0} == {**saved, "data": 0}
    evaluate.main(["--run", str(tmp_path / "fine")])


def test_it_is_reported_with_its_images(moved, tmp_path: Path, capsys):
    run, flags = moved
    report.main([str(run), "--out", str(tmp_path / "without.html")])
    report.main([str(run), *flags, "--out", str(tmp_path / "with.html")])
    gone = "images of the run are missing"
    assert gone in (tmp_path / "without.html").read_text() and gone not in (tmp_path / "with.html").read_text()
    message = refused(report.main, [str(run), str(run), *flags, "--out", str(tmp_path / "two.html")], capsys)
    assert "name that run alone" in message


def test_its_student_learns_of_the_images_where_they_are(moved, tmp_path: Path):
    run, flags = moved
    arguments = ["--teacher", str(run), *SHORT[:-2], *flags, "--out", str(tmp_path / "student")]
    distill.main(arguments)
    # The student goes on when its teacher has moved, and not with another one.
    broken_off(tmp_path / "student")
    run.rename(tmp_path / "teacher")
    arguments[1] = str(tmp_path / "teacher")
    inputs = saved_inputs(tmp_path / "student" / "split.json")
    assert inputs is not None and {*inputs} == {"data.test", "teacher"}
    distill.main([*arguments, "--resume"])
    assert (tmp_path / "student" / "summary.json").exists()


def test_another_teacher_is_refused(moved, tmp_path: Path, capsys):
    run, flags = moved
    arguments = ["--teacher", str(run), *SHORT[:-2], *flags, "--out", str(tmp_path / "student")]
    distill.main(arguments)
    broken_off(tmp_path / "student")
    train.main(["--config", str(run / "config.yaml"), *flags, "--seed", "1", "--out", str(tmp_path / "other")])
    shutil.copy(run / "split.json", tmp_path / "other" / "split.json")
    arguments[1] = str(tmp_path / "other")
    message = refused(distill.main, [*arguments, "--resume"], capsys)
    assert "teacher has changed since the run started" in message


def test_predict_takes_settings_of_data(moved, tmp_path: Path, capsys):
    run, _ = moved
    flags = ["--run", str(run), "--images", str(tmp_path / "new" / "t"), "--out", str(tmp_path / "p.csv")]
    with pytest.raises(SystemExit):
        predict.main([*flags, "--workers", "0", "--max_pixels", "63"])
    assert "it has 64 pixels, more than max_pixels, 63" in capsys.readouterr().err
    predict.main([*flags, "--workers", "0", "--data.max_pixels", "64"])
    assert (tmp_path / "p.csv").read_text().count(".png") == 8
