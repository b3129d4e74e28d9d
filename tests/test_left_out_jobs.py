"""Every job that reads a folder tells, in one line, what it leaves out there."""

from pathlib import Path

import pytest
from small_clip import paint_images, save_clip
from test_moved import SHORT, flags_of, paint

from debias_ssl import distill, evaluate, label, predict, train
from debias_ssl.data import __main__ as data
from debias_ssl.finetune import __main__ as finetune

pytestmark = pytest.mark.usefixtures("cache")
# How many files of other suffixes each part has.
OTHERS = {"labeled": 3, "unlabeled": 4, "test": 5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = paint(tmp_path_factory.mktemp("images") / "all")
    for part, number in OTHERS.items():
        for i in range(number):
            (folder / part / ("" if part == "unlabeled" else "cat") / f"{i}.mov").write_bytes(b"x")
    return folder


def notes(images: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The parts of the data whose note was printed, each once."""
    said = capsys.readouterr()
    lines = [line for line in (said.err + said.out).splitlines() if "entries are left out" in line]
    told = [part for part, number in OTHERS.items() for line in lines if f"{images / part}: {number} of" in line]
    assert len(told) == len(lines) and all(line.startswith("note: ") and line.endswith(" .mov") for line in lines)
    return told


def test_all_jobs_tell_what_they_leave_out(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags, run = ["--data.name=folder", "--data.validation_per_class=2", *flags_of(images)], tmp_path / "run"
    data.main(["check", *flags])
    table = capsys.readouterr()
    assert "left out   4 entries of" in table.out and "\n                  4 .mov\n" in table.out
    train.main([*SHORT, *flags, "--out", str(run)])
    assert notes(images, capsys) == ["labeled", "unlabeled", "test"]
    distill.main([*SHORT[:-2], "--teacher", str(run), "--out", str(tmp_path / "student")])
    assert notes(images, capsys) == ["labeled", "unlabeled", "test"]
    finetune.main(["--run", str(run), "--method", "TauNormalization", "--out", str(tmp_path / "tuned")])
    assert notes(images, capsys) == ["labeled", "unlabeled", "test"]
    evaluate.main(["--run", str(run)])
    assert notes(images, capsys) == ["test"]
    predict.main(["--run", str(run), "--images", str(images / "unlabeled"), "--out", str(tmp_path / "p.csv")])
    assert notes(images, capsys) == ["unlabeled"]


def test_label_tells_it_too(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    paint_images(tmp_path / "images")
    (tmp_path / "images" / "a.mov").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    flags = [f"--images={tmp_path / 'images'}", f"--classes={tmp_path / 'classes.txt'}", f"--out={tmp_path / 'out'}"]
    label.main([*flags, "--model", save_clip(tmp_path / "clip"), "--workers", "0", "--precision", "fp32"])
    said = f"note: {tmp_path / 'images'}: 1 of 11 entries are left out: 1 .mov\n"
    assert capsys.readouterr().err.count(said) == 1
