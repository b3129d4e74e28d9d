"""Files that are whole or not there."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from debias_ssl.system import files
from debias_ssl.system.errors import InputError, WriteError
from debias_ssl.system.files import CHECK_BYTES, is_whole, remove_unfinished, replacing, writing_to_cache


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


def test_a_file_of_a_cache_is_whole_as_it_was_written_and_not_otherwise(tmp_path: Path):
    path = tmp_path / "a"
    assert not is_whole(path)
    with writing_to_cache(path) as write:
        write(b"first")
        assert not path.exists()
        write(b"second")
    written = path.read_bytes()
    assert written[:-CHECK_BYTES] == b"firstsecond" and is_whole(path)
    for damaged in (b"", bytes(CHECK_BYTES), written[:-1], written + b"0", b"F" + written[1:]):
        path.write_bytes(damaged)
        assert not is_whole(path), damaged


def test_a_cache_that_cannot_be_written_to_is_told_with_the_mend(tmp_path: Path):
    (tmp_path / "file").touch()
    message = r"cannot write to '.*file/a': .*; set XDG_CACHE_HOME .* or data\.cache"
    with pytest.raises(InputError, match=message), writing_to_cache(tmp_path / "file" / "a") as write:
        write(b"content")


def test_parts_of_a_file_stand_in_their_order_however_much_the_system_takes_at_a_time(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, part, place: pwrite(file, bytes(part[:3]), place))
    parts = [np.full(5, k, dtype=np.uint8) for k in range(40)]
    with files.writing_parts(tmp_path / "whole") as write:
        for part in parts:
            write(part.data)
    assert (tmp_path / "whole").read_bytes() == np.concatenate(parts).tobytes()


@pytest.mark.parametrize("good", [0, 3, 39])
def test_a_part_that_cannot_be_written_leaves_the_old_file(good: int, tmp_path, monkeypatch):
    pwrite, places = os.pwrite, iter(range(100))

    def fills(*arguments):
        if next(places) >= good:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fills)
    (tmp_path / "whole").write_bytes(b"old")
    with pytest.raises(WriteError, match="No space left"), files.writing_parts(tmp_path / "whole") as write:
        for _ in range(40):
            write(b"new")
        write.wait()
    assert (tmp_path / "whole").read_bytes() == b"old" and [*tmp_path.iterdir()] == [tmp_path / "whole"]
