"""Files that are whole or not there."""

from pathlib import Path

import pytest

from debias_ssl.system.files import remove_unfinished, replacing


def test_two_writers_of_one_file_do_not_meet_whatever_their_numbers(tmp_path: Path):
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second" and first.read_text() == "first"
    assert path.read_text() == "first" and [*tmp_path.iterdir()] == [path]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyError), replacing(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


def test_what_killed_writers_left_is_removed(tmp_path: Path):
    with replacing(tmp_path / "a" / "b.txt") as aside:
        aside.write_text("half")
        killed = aside.with_name(aside.name.replace("b.txt", "c.txt"))
        killed.write_text("half")
    remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]
