import json
from pathlib import Path

import pytest
import superclasses as script
import torch
from jobs import refused, settings_of
from small_clip import save_clip

NAMES = "cat\nship\ndog\ntruck\n"


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    path = tmp_path / "classes.txt"
    path.write_text(NAMES)
    return path


def test_a_table_gives_the_setting_of_a_run(classes: Path, tmp_path: Path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("superclass,class\nvehicle,truck\nanimal,dog\nvehicle,ship\nanimal,cat\n")
    script.main(["--classes", str(classes), "--table", str(table)])
    said = capsys.readouterr().out
    expected = ["animal", "vehicle", "animal", "vehicle"]
    assert json.loads(said) == expected
    resolved = settings_of("--method", "SCAD", "--method.superclasses", said.strip())[1]
    assert resolved["method"]["init_args"]["superclasses"] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,group\ncat,a\n", "the columns class and superclass are expected, there are class, group"),
        ("class,superclass\ncat,a\ncow,a\n", "line 3: 'cow' is no class"),
        ("class,superclass\ncat,a\ncat,b\n", "line 3: 'cat' has two rows"),
        ("class,superclass\ncat,\n", "line 2: 'cat' has no superclass"),
        ("class,superclass\ncat,a\n", "no row for 'ship', 'dog', 'truck'"),
    ],
)
def test_a_wrong_table_is_refused(text: str, message: str, classes: Path, tmp_path: Path, capsys):
    table = tmp_path / "table.csv"
    table.write_text(text)
    assert message in refused(script.main, ["--classes", str(classes), "--table", str(table)], capsys)


def test_vectors_that_are_close_make_a_superclass():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    assert script.of_vectors(vectors, ("cat", "ship", "dog", "truck"), 2) == ["cat", "ship", "cat", "ship"]
    assert script.of_vectors(vectors, ("cat", "ship", "dog", "truck"), 1) == ["cat"] * 4


def test_clip_makes_superclasses(classes: Path, tmp_path: Path, capsys):
    command = ["--classes", str(classes), "--model", save_clip(tmp_path / "clip")]
    script.main([*command, "--num", "2"])
    assert len(set(json.loads(capsys.readouterr().out))) == 2
    assert "--num is 5, must be in [1, 4]" in refused(script.main, [*command, "--num", "5"], capsys)
    assert "one of --table and --model is needed" in refused(script.main, command[:2], capsys)
