from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from debias_ssl.data.reading.feature_list import FeatureList
from debias_ssl.data.sources.listing import FileNames
from debias_ssl.system.errors import InputError

NAMES = ["a.png", "b/\u00e4.png", "b/\udcff.png", "c.tar", "d.png"]


def listed(*names: str, images: int = 3, part: int = 0) -> FeatureList:
    """Files, of which tar files have some images."""
    is_tar = np.array([name.endswith(".tar") for name in names])
    files = FileNames.of((name, len(name), 10**18 + NAMES.index(name), False) for name in names)
    of_tars = (np.where(is_tar, number, 0).astype(np.uint32) for number in (images, part))
    return FeatureList(files=files, images=next(of_tars), part=next(of_tars))


def test_a_list_is_read_as_it_was_written(tmp_path: Path):
    whole = listed(*NAMES, part=2**32 - 1)
    whole.write(tmp_path / "files.parquet")
    found = FeatureList.read(tmp_path / "files.parquet")
    assert found.is_same(whole) and whole.is_same(found) and found.files == NAMES and found.num_rows == 7
    assert not found.is_same(listed(*NAMES)) and not found.is_same(listed(*NAMES[:4], part=2**32 - 1))
    # Others read it, too.
    table = parquet.read_table(tmp_path / "files.parquet").to_pydict()
    assert table["name"][1].decode() == NAMES[1] and table["images"] == [0, 0, 0, 3, 0]
    (tmp_path / "files.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"files\.parquet' cannot be read: .*; name another folder of features"):
        FeatureList.read(tmp_path / "files.parquet")


def test_files_are_found_by_name():
    assert listed(*NAMES).find(["d.png", "e.png", "b/\udcff.png", "c.tar"]).tolist() == [4, -1, 2, 3]


def test_rows_of_another_list_are_those_of_files_that_are_as_they_were():
    was = listed(*NAMES)
    assert listed(*NAMES[::-1]).rows_in(was).tolist() == [6, 3, 4, 5, 2, 1, 0]
    assert listed("d.png", "c.tar").rows_in(listed("c.tar", "a.png")).tolist() == [-1, 0, 1, 2]
    # A tar file of which other images are meant has none of them.
    assert listed("c.tar", images=2).rows_in(was).tolist() == [-1, -1]
    assert listed("c.tar", part=1).rows_in(was).tolist() == [-1, -1, -1]
    for name in ("sizes", "mtimes"):
        changed = getattr(was.files, name).copy()
        changed[1] += 1
        now = replace(was, files=replace(was.files, **{name: changed}))
        assert now.rows_in(was).tolist() == [0, -1, 2, 3, 4, 5, 6] and not now.is_same(was)
