import os
from pathlib import Path

from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.listing import FileNames, find_images


def test_names_below_a_folder_are_those_of_relpath(tmp_path: Path):
    for name in ("a/1.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = find_images(tmp_path)
    assert names_below(listed, tmp_path) == ["a/1.png", "b.png"]
    # Of the listing no name is copied.
    below = names_below(listed, Path(os.path.relpath(tmp_path)))
    assert isinstance(below, FileNames) and below.text is listed.text
    others = names_below([*listed, "c.png"], tmp_path / "a")
    assert [*others] == ["1.png", "../b.png", os.path.relpath("c.png", tmp_path / "a")]
    assert others[-2:] == [*others][-2:] and others[0] == "1.png" and len(others) == 3
    assert [*names_below(listed, tmp_path / "a")] == ["1.png", "../b.png"]
