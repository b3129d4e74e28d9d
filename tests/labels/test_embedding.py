"""Features of images on disk: made once, in the same bits however, and never those of other images."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_clip import paint_images, save_clip

from debias_ssl.contract import Place
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.features import find_features
from debias_ssl.labels import embedding as features
from debias_ssl.labels.embedding import FeatureCache, embed
from debias_ssl.labels.feature_store import FolderStore, MemoryStore
from debias_ssl.models.clip import Clip, encode, load_clip
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(save_clip(tmp_path_factory.mktemp("clip")), None, CPU)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_SIZE", 4)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return paint_images(tmp_path / "images")


def cached(clip: Clip, images: list[Path], folder: str = "features", **settings: Any) -> FeatureCache:
    root = images[0].parents[1]
    settings = {"place": Place(), "batch_size": 3} | settings
    store = FolderStore(folder=root.parent / folder)
    return embed(clip, [str(path) for path in images], root, store, **settings)


def folder_of(cache: FeatureCache) -> Path:
    assert isinstance(cache.store, FolderStore)
    return cache.store.folder


def shards(cache: FeatureCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder_of(cache).glob("*.npy"))}


def spoil(path: Path) -> None:
    """Overwrites a file so that nothing but reading it would tell."""
    stat = path.stat()
    path.write_bytes(b"?" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_features_are_the_images_in_order(clip: Clip, images: list[Path]):
    cache = cached(clip, images)
    chunks = [*cache.chunks()]
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert cache.names == [path.relative_to(cache.root).as_posix() for path in images]
    expected = encode(clip, torch.stack([clip.preprocess(decode(str(path))) for path in images]))
    torch.testing.assert_close(torch.cat(chunks), expected, atol=1e-3, rtol=0)
    assert torch.cat(chunks).equal(torch.cat([*cache.chunks()])), "they can be gone through again"
    assert np.load(folder_of(cache) / "shard_00002.npy").dtype == np.float16


def test_features_in_memory_are_those_of_a_folder(clip: Clip, images: list[Path]):
    spoil(images[6])
    files, root = [str(path) for path in images], images[0].parents[1]
    in_memory = embed(clip, files, root, MemoryStore(), Place(), batch_size=3, on_error="skip")
    on_disk = cached(clip, images, on_error="skip")
    assert torch.cat([*in_memory.chunks()]).equal(torch.cat([*on_disk.chunks()]))
    assert in_memory.names == on_disk.names and in_memory.unreadable == on_disk.unreadable
    assert [*in_memory.unreadable] == [6]


def test_the_trainer_finds_them(clip: Clip, images: list[Path]):
    cache = cached(clip, images)
    found = find_features([str(folder_of(cache))], [str(images[7]), str(images[2])])
    assert torch.from_numpy(found.astype(np.float32)).equal(torch.cat([*cache.chunks()])[[7, 2]])


def test_workers_and_relative_paths_change_nothing(clip: Clip, images: list[Path], monkeypatch):
    expected = shards(cached(clip, images))
    assert shards(cached(clip, images, "by_workers", workers=2)) == expected
    monkeypatch.chdir(images[0].parents[2])
    cache = embed(
        clip, [os.path.relpath(path) for path in images], Path("images"), FolderStore(folder=Path("features")), Place()
    )
    assert shards(cache) == expected


def test_batches_do_not_cross_shards(clip: Clip, images: list[Path], monkeypatch):
    sizes = []
    monkeypatch.setattr(features, "encode", lambda clip, batch: sizes.append(len(batch)) or encode(clip, batch))
    cached(clip, images)
    assert sizes == [3, 1, 3, 1, 2]


def test_what_was_made_before_a_kill_is_kept(clip: Clip, images: list[Path], monkeypatch):
    expected = shards(cached(clip, images, "whole"))
    calls: Iterator[int] = iter(range(100))

    def killed(clip: Clip, batch: torch.Tensor) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return encode(clip, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(features, "encode", killed)
        cached(clip, images)
    folder = images[0].parents[2] / "features"
    assert [path.name for path in folder.glob("*.npy")] == ["shard_00000.npy"]
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    before = (folder / "shard_00000.npy").stat().st_mtime_ns
    for path in images[:4]:
        spoil(path)
    assert shards(cached(clip, images)) == expected
    assert (folder / "shard_00000.npy").stat().st_mtime_ns == before


def test_a_second_time_no_image_is_read(clip: Clip, images: list[Path]):
    before = shards(cached(clip, images))
    for path in images:
        spoil(path)
    assert shards(cached(clip, images)) == before


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", None])
def test_a_damaged_shard_is_made_anew(clip: Clip, images: list[Path], damage):
    cache = cached(clip, images)
    before = shards(cache)
    path = folder_of(cache) / "shard_00001.npy"
    path.write_bytes(before[path.name][:-1] if damage is None else damage)
    assert shards(cached(clip, images)) == before
    np.save(path, np.zeros((4, 7), dtype=np.float16))
    assert shards(cached(clip, images)) == before


def test_features_of_other_images_or_models_are_not_used(tmp_path: Path, clip: Clip, images: list[Path]):
    cache = cached(clip, images)
    before = shards(cache)
    fix = r": name another folder by --features, or delete that one$"
    other = load_clip(save_clip(tmp_path / "other", seed=1), None, CPU)
    with pytest.raises(InputError, match=r"holds features of another model \(weights differ\)" + fix):
        cached(other, images)
    with pytest.raises(InputError, match=r"other images \('bee/9.png' was removed\)" + fix):
        cached(clip, images[:-1])
    with pytest.raises(InputError, match=r"these images in another order"):
        cached(clip, images[::-1])
    new = images[0].with_name("new.png")
    new.write_bytes(images[0].read_bytes())
    with pytest.raises(InputError, match=r"other images \('ant/new.png' is new\)"):
        cached(clip, [*images, new])
    images[3].touch()
    images[4].touch()
    with pytest.raises(InputError, match=r"other images \('ant/6.png' has changed, and 1 more differ\)" + fix):
        cached(clip, images)
    (folder_of(cache) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"it has no manifest.json"):
        cached(clip, images)
    assert shards(cache) == before


def test_stop_names_the_first_image_that_cannot_be_read(clip: Clip, images: list[Path]):
    for path in (images[5], images[6], images[9]):
        spoil(path)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"cannot read image '{images[5]}': .*skip it \(--on_error skip"):
            cached(clip, images)


def test_skip_leaves_out_what_cannot_be_read(clip: Clip, images: list[Path]):
    expected = torch.cat([*cached(clip, images, "whole").chunks()])
    for i in (4, 5, 6, 7, 9):
        spoil(images[i])
    cache = cached(clip, images, on_error="skip", batch_size=2)
    assert cache.places.tolist() == [0, 1, 2, 3, 8]
    assert [len(chunk) for chunk in cache.chunks()] == [4, 1]
    assert cache.names == [images[i].relative_to(cache.root).as_posix() for i in cache.places]
    torch.testing.assert_close(torch.cat([*cache.chunks()]), expected[cache.places], atol=1e-3, rtol=0)
    assert [*cache.named_unreadable] == [images[i].relative_to(cache.root).as_posix() for i in (4, 5, 6, 7, 9)]
    assert "cannot identify image file" in cache.named_unreadable["ant/8.png"]
    with pytest.raises(InputError, match=f"cannot read image '{images[4]}'"):
        cached(clip, images)


def test_images_of_which_none_can_be_read_are_refused(clip: Clip, images: list[Path]):
    for path in images:
        spoil(path)
    with pytest.raises(InputError, match=rf"none of 10 images can be read, such as '{images[0]}'"):
        cached(clip, images, on_error="skip")


def test_a_folder_that_cannot_be_made_is_told_of(clip: Clip, images: list[Path]):
    (images[0].parents[2] / "taken").write_text("")
    with pytest.raises(
        InputError, match=r"cannot write to '.*taken/features/manifest.json': .*; name another folder by --features"
    ):
        cached(clip, images, "taken/features")


def test_a_process_makes_its_own_shards_alone(clip: Clip, images: list[Path], monkeypatch):
    cache = cached(clip, images)
    before = shards(cache)
    (folder_of(cache) / "shard_00001.npy").unlink()
    monkeypatch.setattr(features, "_first_of_all", lambda number, place: number)
    with pytest.raises(FileNotFoundError, match=r"shard_00001\.npy"):
        cached(clip, images, place=Place(rank=0, num_processes=2))
    cached(clip, images, place=Place(rank=1, num_processes=2))
    assert shards(cache) == before
