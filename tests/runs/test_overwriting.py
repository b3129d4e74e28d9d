"""A run that replaces another is killed at each step of its work with files: nothing of both is ever mixed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from jobs import refused, same, weights
from killing import killed_after
from launched import DIGITS

from debias_ssl import train
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.outputs import MANIFEST
from debias_ssl.training.journal import read_journal

SETTINGS = ["--config", str(DIGITS), "--batch_size", "4", "--unlabeled_ratio", "1"]
OLD = [*SETTINGS, "--steps", "4", "--checkpoint_every", "2", "--log_every", "2", "--eval_every", "2"]
NEW = [*SETTINGS, "--steps", "2", "--checkpoint_every", "1", "--log_every", "1", "--eval_every", "1"]


# Steps between two kills.
STRIDES = [13, pytest.param(1, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "old"
    train.main([*OLD, "--out", str(out), "--seed", "1"])
    (out / "mine.txt").write_text("kept")
    (out / "checkpoints" / "best.pt").write_text("kept")
    return out


@pytest.fixture(scope="module")
def new(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "new"
    train.main([*NEW, "--out", str(out)])
    return out


def check_is_new(out: Path, new: Path) -> None:
    """The folder holds the new run, to the bit, nothing of the old one, and what others have put there."""
    assert same(weights(out, 2), weights(new, 2))
    names = {str(path.relative_to(new)) for path in new.rglob("*")}
    foreign = {"mine.txt", "checkpoints/best.pt"}
    assert {str(path.relative_to(out)) for path in out.rglob("*")} == names | foreign
    for name in ("config.yaml", "split.json", "model.safetensors", MANIFEST):
        assert (out / name).read_bytes() == (new / name).read_bytes(), name
    ours, theirs = read_journal(out / "metrics.jsonl"), read_journal(new / "metrics.jsonl")
    assert [(r["step"], r.get("loss"), r.get("ema")) for r in ours] == [
        (r["step"], r.get("loss"), r.get("ema")) for r in theirs
    ]
    np.testing.assert_array_equal(*(np.load(each / "predictions" / "test_ema.npy") for each in (out, new)))
    assert all((out / name).read_text() == "kept" for name in foreign)


def exit_status(arguments: list[str]) -> int:
    try:
        train.main(arguments)
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        return stopped.code
    return 0


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("again", ["--overwrite", "--resume"])
def test_a_run_that_replaces_another_may_be_killed_at_each_step(
    old: Path, new: Path, again: str, stride: int, tmp_path: Path
):
    before = (old / "summary.json").read_bytes()
    refusals, completed, arguments = 0, 0, [*NEW, "--out", str(tmp_path / "a")]
    number = 0
    while True:
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        shutil.copytree(old, tmp_path / "a")
        if not killed_after(number, lambda: train.main([*arguments, "--overwrite"])):
            break
        folder = RunFolder(tmp_path / "a")
        if folder.is_finished() and (folder.path / "summary.json").read_bytes() == before:
            # Nothing is said to be finished that is not whole.
            assert folder.holds_run() and same(weights(folder.path, 4), weights(old, 4))
        status = exit_status([*arguments, again])
        if again == "--overwrite" or status == 0:
            completed += 1
            assert status == 0
            check_is_new(folder.path, new)
        else:
            refusals += 1
            assert status == 2
            assert exit_status([*arguments, "--overwrite"]) == 0
            check_is_new(folder.path, new)
        number += stride
    check_is_new(tmp_path / "a", new)
    assert completed > 2 and (refusals > 1) == (again == "--resume")


def test_a_run_that_ended_before_its_settings_were_written_is_begun_anew(new: Path, tmp_path: Path, capsys):
    arguments = [*NEW, "--out", str(tmp_path / "a")]
    shutil.copytree(new, tmp_path / "a")
    for name in ("config.yaml", "summary.json"):
        (tmp_path / "a" / name).unlink()
    # Of another run with the same names.
    (tmp_path / "a" / "checkpoints" / "step_00000002").rename(tmp_path / "a" / "checkpoints" / "step_00000009")
    message = refused(train.main, arguments, capsys)
    assert "--resume" in message and "--overwrite" in message
    train.main([*arguments, "--resume"])
    assert [path.name for path in sorted((tmp_path / "a" / "checkpoints").iterdir())] == [
        "step_00000001",
        "step_00000002",
    ]
    assert same(weights(tmp_path / "a", 2), weights(new, 2))


@pytest.mark.parametrize("flag", [[], ["--resume"], ["--overwrite"]])
@pytest.mark.parametrize(
    "name",
    ["checkpoints/step_2", "summary.json", "metrics.jsonl", "config.yaml", "predictions/x.npy", "model.safetensors"],
)
def test_what_others_wrote_is_neither_replaced_nor_removed(name: str, flag: list[str], tmp_path: Path, capsys):
    path = tmp_path / "a" / name
    path.parent.mkdir(parents=True)
    path.write_text("steps: 2")
    message = refused(train.main, [*NEW, "--out", str(tmp_path / "a"), *flag], capsys)
    assert f"holds {name.split('/')[0]}, which" in message
    assert [each for each in (tmp_path / "a").rglob("*") if each.is_file()] == [path]
    assert path.read_text() == "steps: 2"


def test_settings_that_would_be_replaced_cannot_be_those_of_the_run(new: Path, tmp_path: Path, capsys):
    shutil.copytree(new, tmp_path / "a")
    settings = ["--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "a")]
    assert "contains --config" in refused(train.main, [*settings, "--overwrite"], capsys)
    train.main([*settings, "--resume"])
    (tmp_path / "a" / "split.json").rename(tmp_path / "a" / "fixed.json")
    split = ["--data.split", str(tmp_path / "a" / "fixed.json")]
    assert "contains data.split" in refused(train.main, [*settings, *split, "--resume"], capsys)


def test_the_manifest_says_what_a_run_wrote(new: Path):
    found = json.loads((new / MANIFEST).read_text())
    assert found == {"a run": {"names": sorted(path.name for path in new.iterdir() if path.name != MANIFEST)}}
