"""Lists of files as arrays, and what listing many files costs: counts of looks at the disk, not seconds."""

import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.cache import _cache_key
from debias_ssl.data.sources import listing
from debias_ssl.data.sources.images import Images, fingerprint
from debias_ssl.data.sources.listing import FileNames, find_images, joined, picked, shared_listing
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.task import make_task
from debias_ssl.distributed import start_up
from debias_ssl.distributed.start_up import SharedStart
from debias_ssl.system import texts

PATHS = ["a/1.png", "a/\u00e4\u6f22.png", os.fsdecode(b"b/\xff.png"), "", "c/long name.png"]


def names_of(*paths: str) -> FileNames:
    return FileNames.of((path, 10 + i, 20 + i, i % 2 == 1) for i, path in enumerate(paths))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listing, texts):
        monkeypatch.setattr(module, "BLOCK", 2)


@contextmanager
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts questions to the disk, about a file or a folder; entries of a scan once looked at."""
    counts: Counter[str] = Counter()
    stat, scandir = os.stat, os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry):
            self.name, self.is_dir, self.is_symlink, self._entry = entry.name, entry.is_dir, entry.is_symlink, entry

        def stat(self) -> os.stat_result:
            counts["stat"] += 1
            return self._entry.stat()

    @contextmanager
    def scanned(path: Path) -> Iterator[Iterator[Entry]]:
        counts["scandir"] += 1
        with scandir(path) as entries:
            yield (Entry(entry) for entry in entries)

    def counted(*arguments, **settings) -> os.stat_result:
        counts["stat"] += 1
        return stat(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counted)
        patch.setattr(os, "scandir", scanned)
        yield counts


# The list.


def test_names_are_those_of_a_list_of_texts():
    names = names_of(*PATHS)
    assert len(names) == 5 and [*names] == PATHS and names == PATHS
    assert [names[i] for i in range(-5, 5)] == PATHS * 2
    assert names[1:4] == PATHS[1:4] and names[::-2] == PATHS[::-2] and names[:0] == []
    assert PATHS[2] in names and names.index(PATHS[4]) == 4
    with pytest.raises(IndexError):
        names[5]


@pytest.mark.parametrize("positions", [[], [3], [4, 0, 2, 2, 1], [1, 2, 3], [0, 1, 2, 3, 4]])
def test_a_part_keeps_sizes_and_times_with_the_names(positions: list[int]):
    part = picked(names_of(*PATHS), np.array(positions, dtype=np.int64))
    assert isinstance(part, FileNames)
    assert [*part.stats()] == [(PATHS[i], 10 + i, 20 + i) for i in positions]
    assert part.links.tolist() == [i % 2 == 1 for i in positions]


def test_lists_are_joined_as_arrays_where_all_are():
    names = joined(names_of(*PATHS), names_of(), names_of("z"))
    assert isinstance(names, FileNames)
    assert [*names.stats()] == [*names_of(*PATHS).stats(), ("z", 10, 20)]
    assert names.links.tolist() == [False, True, False, True, False, False]
    assert joined(names_of("a"), ["b"]) == ["a", "b"] and joined([], names_of("a")) == ["a"] and joined([]) == []


def test_what_paths_begin_with_is_held_once():
    names = FileNames.of(((path, 10, 20, False) for path in PATHS), prefix="data/\u00e4/")
    paths = [f"data/\u00e4/{path}" for path in PATHS]
    assert names == paths and names[1] == paths[1] and names[3:] == paths[3:]
    assert names.part(np.array([4, 0])) == [paths[4], paths[0]]
    written = names.written_out()
    assert written == paths and written.prefix == "" and [*written.stats()] == [(path, 10, 20) for path in paths]
    assert names.below("data/./\u00e4") == PATHS and names.below("data") is None
    assert written.below(".") == paths and names_of("/a.png").below(".") is None
    # Folders of classes are listed one by one.
    both = joined(names, FileNames.of([("1.png", 3, 4, True)], prefix="b/"))
    assert both == [*paths, "b/1.png"] and joined(names, names) == paths * 2


def test_images_are_found_in_the_order_of_their_whole_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = ["a-b/x.png", "a.png", "a/b/c.JPG", "a/x.png", "b.png/in.png", "z.png"]
    hidden = [".x.png", "a/.hidden/y.png", "a/notes.txt"]
    for name in shown + hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "z.png").unlink()
    (tmp_path / "z.png").symlink_to(tmp_path / "a" / "x.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "around").symlink_to(tmp_path)
    found = find_images(tmp_path)
    # As pathlib lists them.
    known = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(known & {*shown}) == sorted(shown)
    assert found == [str(tmp_path / name) for name in sorted(shown)]
    assert found.sizes.tolist() == [os.stat(name).st_size for name in found]
    assert found.mtimes.tolist() == [os.stat(name).st_mtime_ns for name in found]
    assert found.links.tolist() == [os.path.islink(name) for name in found] and found.links.sum() == 1
    monkeypatch.chdir(tmp_path)
    assert find_images(Path()) == sorted(shown) and find_images(Path("a/")) == ["a/b/c.JPG", "a/x.png"]


def test_hashes_are_those_of_the_same_paths_as_texts(config: DataConfig):
    data = load_data(config)
    assert isinstance(data.train.names, FileNames)
    texts = Images(pixels=None, labels=data.train.labels, names=[*data.train.names])
    assert fingerprint(data.train) == fingerprint(texts)
    assert _cache_key(data.train.names, 8) == _cache_key(texts.names, 8)


# Its cost.


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return many_files(tmp_path / "many", 5, 400)


def many_files(root: Path, classes: int, each: int) -> Path:
    """Class trees of hard links to one image for each folder; a file may have some ten thousand links."""
    for part, number in (("labeled", each), ("test", 2)):
        for k in range(classes):
            folder = root / part / f"class {k}"
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
            for i in range(1, number):
                os.link(folder / "0.png", folder / f"{i}.png")
    return root


def of(root: Path) -> DataConfig:
    return DataConfig(
        name="folder",
        labeled=str(root / "labeled"),
        test=str(root / "test"),
        labels_per_class=1,
        image_size=8,
        input="streaming",
        workers=0,
    )


def start(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Counter[str]]:
    """The hash of the training images, and what a process asks of the disk until its split is drawn."""
    with looks(monkeypatch) as counts:
        config = of(root)
        data = load_data(config)
        mark = fingerprint(data.train)
        fingerprint(data.test)
        _cache_key(data.train.names)
    return mark, counts


def test_a_process_looks_at_each_file_once(many: Path, monkeypatch: pytest.MonkeyPatch):
    _, counts = start(many, monkeypatch)
    # Those of the folders, and some of Python's own.
    assert 2010 <= counts["stat"] < 2010 + 60 and counts["scandir"] <= 15


def test_another_process_of_a_start_looks_at_no_file(many: Path, monkeypatch: pytest.MonkeyPatch, cache: Path):
    alone, _ = start(many, monkeypatch)
    first = SharedStart(name="start", is_first=True)
    monkeypatch.setattr(start_up, "_under_way", [first])
    assert start(many, monkeypatch)[0] == alone
    monkeypatch.setattr(start_up, "_under_way", [SharedStart(name="start", is_first=False)])
    mark, counts = start(many, monkeypatch)
    assert mark == alone and counts["stat"] < 60 and counts["scandir"] == 0
    # Another start sees what has changed.
    (many / "labeled" / "class 0" / "0.png").unlink()
    monkeypatch.setattr(start_up, "_under_way", [SharedStart(name="next", is_first=False)])
    assert start(many, monkeypatch)[0] != alone
    assert len([*cache.glob("start-*.listing")]) == 2
    first.kept.close()
    assert not [*cache.glob("start-*.listing")]


LISTS_UNTIL_KILLED = """
import sys, time
from debias_ssl.data.sources.listing import FileNames, shared_listing
from debias_ssl.distributed import start_up

with (start := start_up.SharedStart(name="killed", is_first=True)).kept:
    start_up._under_way.append(start)
    shared_listing("a", sys.argv[1], lambda: (FileNames.of([("a/1.png", 1, 2, False)]), ["x"]))
    print("listed", flush=True)
    time.sleep(600)
"""


def test_a_listing_of_a_start_that_was_killed_goes_at_the_next_one(monkeypatch: pytest.MonkeyPatch, cache: Path):
    process = subprocess.Popen([sys.executable, "-c", LISTS_UNTIL_KILLED, str(cache)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"listed\n"
        (abandoned,) = cache.glob("killed-*.listing")
        left = sorted(path.name for path in abandoned.iterdir())
        for is_killed in (False, True):
            if is_killed:
                process.kill()
                process.wait(30)
            first = SharedStart(name="start", is_first=True)
            with first.kept:
                monkeypatch.setattr(start_up, "_under_way", [first])
                shared_listing("a", str(cache), lambda: (names_of("a/1"), ["x"]))
                # One that is under way keeps all that it has, and is read by its other processes.
                assert [path.name for path in cache.glob("killed-*")] == ([] if is_killed else [abandoned.name])
                assert is_killed or sorted(path.name for path in abandoned.iterdir()) == left
            assert not [*cache.glob("start-*")]
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


def test_a_listing_that_cannot_be_written_is_made_by_each(many: Path, monkeypatch: pytest.MonkeyPatch):
    alone, _ = start(many, monkeypatch)

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    for is_first in (True, False):
        monkeypatch.setattr(start_up, "_under_way", [SharedStart(name="start", is_first=is_first)])
        mark, counts = start(many, monkeypatch)
        assert mark == alone and counts["stat"] > 2000


def test_lists_of_different_names_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch, cache: Path):
    # A folder may be listed as a class tree, and as images of unknown class.
    expected = {"a": (names_of("a/1", "a/2"), ["x", "y"]), "a/.": (names_of("a/1"), [""]), "b": (names_of(), [])}
    for is_first in (True, False):
        monkeypatch.setattr(start_up, "_under_way", [SharedStart(name="start", is_first=is_first)])
        found = {
            what: shared_listing(what, None, lambda what=what, first=is_first: expected[what] if first else wrong())
            for what in expected
        }
        assert found == expected


def wrong() -> tuple[FileNames, list[str]]:
    raise AssertionError("looked for again")


@pytest.mark.slow
def test_a_hundred_thousand_files_start_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listing, "BLOCK", 4096)
    root = many_files(tmp_path / "many", 100, 1000)
    mark, counts = start(root, monkeypatch)
    assert counts["stat"] < 100_000 + 200 + 500 and counts["scandir"] < 250
    tracemalloc.start()
    data = load_data(of(root))
    held, peak = tracemalloc.get_traced_memory()
    assert peak < 3 * held
    tracemalloc.reset_peak()
    fingerprint(data.train)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(data.train.names, FileNames)
    per_name = len(data.train.names.text) / len(data.train)
    # The name, four numbers, and little else; a list of paths holds more than 700 bytes each.
    assert held < 100_000 * (per_name + 60) and peak - held < 3_000_000
    texts = [
        str(path)
        for k in sorted(range(100), key=lambda k: f"class {k}")
        for path in sorted((root / "labeled" / f"class {k}").iterdir())
    ]
    assert data.train.names == texts
    assert mark == fingerprint(Images(pixels=None, labels=data.train.labels, names=texts))
    task = make_task(of(root), seed=0, place=Place(), progress=False)
    assert task.fingerprint == mark and len(task.split.labeled) == 100
