"""The examples of names in docs/label-images.md do what it says."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from jobs import rows_of
from small_clip import paint_images, save_clip

from debias_ssl import cli, label

GUIDE = (Path(__file__).parents[2] / "docs/label-images.md").read_text()
FILES = dict(re.findall(r"`([\w.]+)`:?\n\n```\n(.*?)```", GUIDE, re.DOTALL))
COMMANDS = re.findall(r"^debias-ssl .*", GUIDE, re.MULTILINE)


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the guide, where jobs run."""
    for name in ("pets.json", "breeds.txt", "breeds.csv", "truth.csv"):
        (tmp_path / name).write_text(FILES[name])
    monkeypatch.setattr(importlib.import_module("debias_ssl.debias"), "_page", lambda *_: "")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(word: str) -> None:
    """Runs the command of the guide that has a word in it."""
    (command,) = [each for each in COMMANDS if word in each]
    _, job, *arguments = shlex.split(command)
    importlib.import_module(cli.JOBS[job][0]).main(arguments)


def test_names_above_names(guide, capsys):
    run("breeds.txt")
    written, said = (guide / "runs/breeds/labels.csv").read_text(), capsys.readouterr().out
    assert f"```\n{written}```" in GUIDE
    (table,) = re.findall(r"```\n(level .*?)```", GUIDE, re.DOTALL)
    assert table in said


@pytest.mark.parametrize(("word", "classes"), [("pets.json", ["cat", "dog", "bird"]), ("imagenet", ["tench"])])
def test_prompts_and_ids(word, classes, guide, monkeypatch, capsys):
    """With a small model in place of a large one."""
    monkeypatch.setattr(label, "_page", lambda *_: "")
    model = save_clip(guide / "model")
    monkeypatch.setattr(
        label, "load_clip", lambda _, __, device, flip, load=label.load_clip: load(model, None, device, flip=flip)
    )
    paint_images(guide / "pets", num=6, classes=("cat", "dog", "bird"))
    paint_images(guide / "val", num=4, classes=("n01440764", "n02119789"))
    run(word)
    out = guide / "runs" / word.split(".")[0]
    assert json.loads((out / "classes.json").read_text())[: len(classes)] == classes
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_known"] == summary["num"] == len(rows_of(out))
    assert ("note: 1 of 6 prompts end with a period" in capsys.readouterr().err) == (word == "pets.json")
