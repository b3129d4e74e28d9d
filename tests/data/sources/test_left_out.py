"""What of a folder or a tar file is left out: counted by reason, in words that say what to do, without its names."""

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources import left_out
from debias_ssl.data.sources.folder import find_files
from debias_ssl.data.sources.images import left_out_notes
from debias_ssl.data.sources.left_out import LeftOut
from debias_ssl.data.sources.listing import find_images
from debias_ssl.data.sources.load import load_data
from debias_ssl.distributed import start_up
from debias_ssl.distributed.start_up import SharedStart
from debias_ssl.system.errors import InputError

Paint = Callable[..., Path]


def fill(folder: Path, *names: str) -> Path:
    """Files that nobody reads."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_each_entry_is_an_image_or_counted_by_reason(tmp_path: Path):
    folder = fill(tmp_path / "photos", *(f"{i}.jpg" for i in range(6)), *(f"{i}.CR2" for i in range(4)))
    fill(
        folder,
        "a/x.mp4",
        "a/y.txt",
        "a/name",
        "a/scan.no 17",
        "a/long.abcdefghijklm",
        ".hidden.png",
        "a/._0.jpg",
        ".git/x",
    )
    for name in ("gone.jpg", "also gone.jpg"):
        (folder / name).symlink_to(tmp_path / "nowhere.jpg")
    (folder / "up").symlink_to(folder)
    (folder / "up.jpg").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    found = find_images(folder)
    assert len(found) == 6
    assert found.left_out == {
        ".cr2": 4,
        ".mp4": 1,
        ".txt": 1,
        left_out.NO_SUFFIX: 1,
        left_out.OTHER_SUFFIXES: 2,
        left_out.HIDDEN_IMAGES: 1,
        left_out.HIDDEN: 1,
        left_out.HIDDEN_FOLDERS: 1,
        left_out.NOWHERE: 2,
        left_out.TO_FOLDERS: 2,
        left_out.NO_FILES: 1,
    }


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything may be read here")
def test_a_folder_that_may_not_be_read_is_counted(tmp_path: Path):
    fill(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    assert find_images(tmp_path).left_out == {left_out.CLOSED: 1}


def test_a_folder_that_may_not_be_read_is_counted_for_whoever_may_read_all(tmp_path: Path, monkeypatch):
    fill(tmp_path, "a.jpg", "closed/b.jpg")
    scandir = os.scandir

    def closed(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert find_images(tmp_path).left_out == {left_out.CLOSED: 1}


def test_the_note_has_the_numbers_and_the_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(left_out, "EXTENSIONS", left_out.EXTENSIONS - {".heic"})
    monkeypatch.setattr("debias_ssl.data.sources.listing.EXTENSIONS", left_out.EXTENSIONS)
    monkeypatch.setattr(left_out, "NEEDED", {".heic": "the package pillow-heif"})
    folder = fill(tmp_path, *(f"{i}.jpg" for i in range(60)), *(f"{i}.heic" for i in range(40)))
    fill(folder, *(f"{i}.svg" for i in range(30)), *(f"{i}.txt" for i in range(5)))
    for i in range(20):
        (folder / f"gone{i}.jpg").symlink_to(tmp_path / "nowhere")
    assert left_out_notes(find_files(str(folder), "--images")) == [
        f"{folder}: 95 of 155 entries are left out: 40 .heic (needs the package pillow-heif), 30 .svg, "
        "20 links to nothing, 5 others"
    ]


def test_a_note_has_five_reasons_at_most():
    counts = {f".a{i}": 10 - i for i in range(8)}
    note = LeftOut(where="x", number=1_000, counts=counts).note
    assert note == "x: 52 of 1,052 entries are left out: 10 .a0, 9 .a1, 8 .a2, 7 .a3, 6 .a4, 12 others"


def test_what_nobody_takes_for_an_image_is_worth_no_note(tmp_path: Path):
    folder = fill(tmp_path, "a.jpg", "labels.csv", "README.md", "._a.jpg", ".DS_Store")
    images = find_files(str(folder), "--images")
    assert left_out_notes(images) == []
    assert [each.counts for each in images.left_out] == [{".csv": 1, ".md": 1, left_out.HIDDEN: 2}]


def test_counting_holds_no_names(tmp_path: Path):
    fill(tmp_path, "a.jpg", *(f"scan.{i:05}" for i in range(3000)))
    counts = find_images(tmp_path).left_out
    assert sum(counts.values()) == 3000 and len(counts) == left_out.MOST_SUFFIXES + 1
    assert counts[left_out.OTHER_SUFFIXES] == 3000 - left_out.MOST_SUFFIXES


def test_images_beside_the_folders_of_classes_are_told(config: DataConfig, tree: Path, paint: Paint):
    for i in range(3):
        paint(tree / "labeled" / f"{i}.png", i)
    fill(tree / "labeled", ".hidden/x.png", "notes.txt", "dog/clip.mov")
    data = load_data(config)
    assert left_out_notes(data.train, data.test) == [
        f"{tree / 'labeled'}: 6 of 15 entries are left out: 3 images beside the folders of the classes, 1 .mov, "
        "1 hidden folders, 1 others"
    ]


def test_a_place_without_images_is_refused_with_what_is_there(config: DataConfig, tree: Path, tmp_path: Path):
    fill(tmp_path / "raw", "a.nef", "b.nef")
    with pytest.raises(InputError, match=r"it has no images \(left out: 2 \.nef\)$"):
        find_files(str(tmp_path / "raw"), "--images")
    fill(tree / "labeled" / "eel", "a.nef")
    with pytest.raises(InputError, match=r"eel' has no images \(left out: 1 \.nef\); remove it or fill it"):
        load_data(config)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.cls", "a.json", "b.mp4", "c.mp4", ".hidden.png", "__MACOSX/._a.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
        link, folder = tarfile.TarInfo("d.jpg"), tarfile.TarInfo("folder")
        link.type, link.linkname, folder.type = tarfile.SYMTYPE, "a.jpg", tarfile.DIRTYPE
        tar.addfile(link)
        tar.addfile(folder)
    return path


def test_members_of_tar_files_are_counted_too(shard: Path):
    for _ in range(2):  # the second time from the index
        images = find_files(str(shard), "--images")
        counts = {".json": 1, ".mp4": 2, left_out.HIDDEN_IMAGES: 1, left_out.HIDDEN: 1, left_out.LINKS: 1}
        assert [each.counts for each in images.left_out] == [counts]
    assert left_out_notes(find_files(str(shard), "--images")) == [
        f"{shard}: 6 of 7 entries are left out: 2 .mp4, 1 hidden images, 1 links, devices and the like, 2 others"
    ]


def test_an_index_is_of_the_suffixes_that_can_be_read(shard: Path, monkeypatch: pytest.MonkeyPatch):
    assert len(find_files(str(shard), "--images")) == 1
    from debias_ssl.data.sources import shard_index

    shard_index.read_index.cache_clear()
    monkeypatch.setattr(shard_index, "EXTENSIONS", {".jpg", ".mp4"})
    assert len(find_files(str(shard), "--images")) == 3


def test_processes_that_read_the_listing_know_it_too(config: DataConfig, tree: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tree / "unlabeled", "a.mov")
    expected = left_out_notes(load_data(config).train)
    assert len(expected) == 1
    for is_first in (True, False):
        monkeypatch.setattr(start_up, "_under_way", [SharedStart(name="start", is_first=is_first)])
        assert left_out_notes(load_data(config).train) == expected


def test_a_folder_that_is_named_twice_is_told_once(config: DataConfig, tree: Path):
    fill(tree / "test" / "dog", "a.mov")
    data = load_data(replace(config, labeled=config.test, unlabeled=None))
    assert len(left_out_notes(data.train, data.test)) == 1


def test_a_hundred_thousand_names_that_are_left_out_take_no_memory(monkeypatch: pytest.MonkeyPatch):
    class Entry:
        def __init__(self, number: int):
            self.name, self.path = f"{number:09}.mp4", ""

        def is_dir(self, follow_symlinks: bool = True) -> bool:
            return False

        def is_symlink(self) -> bool:
            return False

    class Entries:
        def __enter__(self):
            return map(Entry, range(100_000))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda _: Entries())
    tracemalloc.start()
    counts = find_images(Path("x")).left_out
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == {".mp4": 100_000} and peak < 300_000
