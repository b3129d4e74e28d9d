"""Every script with flags prints its help, so that none is left behind by a renamed function or setting."""

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FLAGS = re.compile(r"ArgumentParser\(|make_parser\(")
TEXTS = {path: path.read_text() for path in sorted(SCRIPTS.glob("*/*.py"))}
WITH_FLAGS = [path for path, text in TEXTS.items() if FLAGS.search(text) and "__main__" in text]


@pytest.mark.parametrize("path", WITH_FLAGS, ids=lambda path: path.name)
def test_a_script_prints_its_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(path), run_name="__main__")
    assert exit_.value.code in (0, None) and "usage: " in capsys.readouterr().out


def test_every_folder_is_described():
    described = re.findall(r"^\| `(\w+)/` \|", (SCRIPTS / "README.md").read_text(), re.MULTILINE)
    assert {*described} == {path.parent.name for path in SCRIPTS.glob("*/*.*")}
    assert [path.name for path in SCRIPTS.iterdir() if path.is_file()] == ["README.md"]
