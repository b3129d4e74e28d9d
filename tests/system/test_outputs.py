"""What jobs wrote is known from what others put into the same folder, and no output is an input."""

import json
import os
from pathlib import Path

import pytest
from killing import killed_after

from debias_ssl.system.errors import InputError, WriteError
from debias_ssl.system.outputs import MANIFEST, Outputs, check_apart

NAMES = ("done.json", "parts/part_[0-9]*", "run.yaml")


def outputs_in(folder: Path, kind: str = "a run") -> Outputs:
    return Outputs(folder=folder, kind=kind, names=NAMES)


def written(folder: Path) -> Outputs:
    """A folder with all names, in which others have put a file of their own."""
    outputs = outputs_in(folder)
    outputs.claim("done.json", "parts", "run.yaml")
    (folder / "parts" / "part_1").mkdir(parents=True)
    for name in ("done.json", "run.yaml", "parts/part_1/x", "parts/part_02", "parts/part_best", "mine.txt"):
        (folder / name).write_text(name)
    return outputs


@pytest.mark.parametrize("name", ["done.json", "parts", "run.yaml"])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_nobody_claimed_is_refused_by_name(tmp_path: Path, name: str, is_link: bool):
    # A link to nothing is there too: a write would go through it.
    (tmp_path / name).symlink_to(tmp_path / "nothing") if is_link else (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"holds {name}, which is not listed in its written.json"):
        outputs_in(tmp_path).check_foreign()
    with pytest.raises(InputError, match=f"holds {name}, "):
        outputs_in(tmp_path).claim(name)
    outputs_in(tmp_path).clear()
    assert os.path.lexists(tmp_path / name) and not (tmp_path / MANIFEST).exists()


def test_other_names_are_nobodys_business(tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    outputs_in(tmp_path).check_foreign()


def test_what_came_after_the_last_look_and_was_not_claimed_stays(tmp_path: Path):
    outputs = outputs_in(tmp_path)
    outputs.claim("done.json")
    for name in ("done.json", "run.yaml"):
        (tmp_path / name).touch()
    outputs.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_what_was_claimed_is_removed_and_nothing_beside_it_or_in_it(tmp_path: Path):
    outputs = written(tmp_path)
    outputs.check_foreign()
    assert outputs.held() == ["done.json", "parts", "run.yaml"]
    outputs.clear()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "parts", MANIFEST}
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["part_best"]
    # The folder stays that of the jobs, and the next one may write into it.
    outputs.check_foreign()
    (tmp_path / "parts" / "part_best").unlink()
    outputs.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_was_moved_and_linked_to_is_emptied_and_the_link_stays(tmp_path: Path):
    outputs = written(tmp_path / "a")
    (tmp_path / "a" / "parts").rename(tmp_path / "large")
    (tmp_path / "a" / "parts").symlink_to(tmp_path / "large")
    outputs.clear()
    assert (tmp_path / "a" / "parts").is_symlink() and [p.name for p in (tmp_path / "large").iterdir()] == ["part_best"]


def test_outputs_of_another_kind_are_foreign(tmp_path: Path):
    written(tmp_path)
    labels = outputs_in(tmp_path, "labels")
    with pytest.raises(InputError, match=r"holds done\.json, parts, run\.yaml, which .* as written for labels"):
        labels.check_foreign()
    labels.clear()
    assert (tmp_path / "done.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a run": {}}', '{"a run": {"names": [3]}}', '{"version": "2"}'])
def test_a_manifest_of_somebody_else_is_refused(tmp_path: Path, text: str):
    (tmp_path / MANIFEST).write_text(text)
    for work in (outputs_in(tmp_path).check_foreign, lambda: outputs_in(tmp_path).claim("done.json")):
        with pytest.raises(InputError, match=r"written\.json' does not list what was written there"):
            work()
    assert (tmp_path / MANIFEST).read_text() == text


def test_a_removal_that_is_killed_anywhere_says_so_and_is_completed(tmp_path: Path):
    number, states = 0, []
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        outputs = written(folder)
        if not killed_after(number, outputs.clear):
            break
        whole = outputs.held() == ["done.json", "parts", "run.yaml"] and (folder / "parts" / "part_1" / "x").exists()
        gone = outputs.held() == ["parts"] and not outputs.is_incomplete()
        # What marks the run as finished goes first, and what marks it as one goes last.
        assert whole or gone or outputs.is_incomplete()
        assert (folder / "run.yaml").exists() or not (folder / "done.json").exists()
        assert (folder / "run.yaml").exists() or not (folder / "parts" / "part_02").exists()
        states.append(outputs.is_incomplete())
        outputs.check_foreign()
        outputs.clear()
        assert sorted(p.name for p in folder.iterdir() if p.suffix != ".tmp") == ["mine.txt", "parts", MANIFEST]
        assert json.loads((folder / MANIFEST).read_text()) == {"a run": {"names": ["parts"]}}
    assert 6 < number < 99 and {*states} == {True, False}


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch):
    outputs = written(tmp_path)

    def refusing(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refusing)
    with pytest.raises(WriteError, match=f"cannot write to '{tmp_path}': Permission denied"):
        outputs.clear()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("data", "--out '.*data' is --images itself"),
        ("data/out", "lies in --images"),
        (".", "contains --images"),
        ("link", "is --images itself"),
        ("link/out", "lies in --images"),
        ("data/../link/a/b", "lies in --images"),
        ("labels.csv", "is --truth itself"),
        ("labels.csv/a", "lies in --truth"),
    ],
)
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, out: str, words: str):
    (tmp_path / "data").mkdir()
    (tmp_path / "labels.csv").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    inputs = {"--images": tmp_path / "data", "--truth": [str(tmp_path / "labels.csv")], "--model": "ViT", "--x": None}
    with pytest.raises(InputError, match=words):
        check_apart(tmp_path / out, "--out", inputs)


@pytest.mark.parametrize("out", ["data2", "data2/labels", "other/../data2", "labels.csv2"])
def test_an_output_beside_an_input_is_not_refused(tmp_path: Path, out: str):
    (tmp_path / "data").mkdir()
    (tmp_path / "labels.csv").touch()
    check_apart(tmp_path / out, "--out", {"--images": tmp_path / "data", "--truth": str(tmp_path / "labels.csv")})
