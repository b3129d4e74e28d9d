"""Features are those of the images in order; what is there is used again, and nothing else."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_images import CPU, FIX, cached, encode, folder_of, shards, spoil
from small_clip import save_clip

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.features import feature_notes, find_features
from debias_ssl.data.sources.listing import FileNames
from debias_ssl.features.embedding import embed
from debias_ssl.features.store import FolderStore, MemoryStore
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.models.clip import Clip, load_clip
from debias_ssl.models.resizing import RESIZED
from debias_ssl.system.errors import InputError


def test_features_are_the_images_in_order(clip: Clip, images: list[Path]):
    cache = cached(clip, images)
    chunks = [*cache.chunks()]
    assert [len(chunk) for chunk in chunks] == [4, 4, 2]
    assert cache.names == [path.relative_to(cache.root).as_posix() for path in images]
    expected = clip.encode(torch.stack([clip.preprocess(decode(str(path))) for path in images]))
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
    monkeypatch.setattr(Clip, "encode", lambda clip, batch: sizes.append(len(batch)) or encode(clip, batch))
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
        patched.setattr(Clip, "encode", killed)
        cached(clip, images)
    folder = images[0].parents[2] / "features"
    assert sorted(path.name for path in folder.glob("*.npy")) == ["content_00000.npy", "shard_00000.npy"]
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


def test_features_of_another_model_or_without_a_manifest_are_not_used(tmp_path: Path, clip: Clip, images: list[Path]):
    cache = cached(clip, images)
    before = shards(cache)
    other = load_clip(save_clip(tmp_path / "other", seed=1), None, CPU)
    with pytest.raises(InputError, match=r"holds features of another model \(weights differ\)" + FIX):
        cached(other, images)
    (folder_of(cache) / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"it has no manifest.json"):
        cached(clip, images)
    assert shards(cache) == before


def test_features_of_another_precision_are_not_used(clip: Clip, images: list[Path]):
    before = shards(cached(clip, images, precision="bf16"))
    message = r"holds features of --precision bf16, not fp32: pass --precision bf16, choose another folder with"
    with pytest.raises(InputError, match=message):
        cached(clip, images)
    assert shards(cached(clip, images, precision="bf16")) == before


@pytest.mark.parametrize("key", ["decoder", "precision"])
def test_features_of_an_earlier_version_are_not_used(clip: Clip, images: list[Path], key: str):
    folder = folder_of(cached(clip, images))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("decoder", "precision") if key == "precision" else (key,):
        del manifest["model"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"holds features from another version, which read some images differently .*" + FIX
    ):
        cached(clip, images)
    assert "are from another version" in feature_notes([str(folder)])[0]


def test_features_of_images_that_pillow_resized_are_not_used(clip: Clip, images: list[Path]):
    folder = folder_of(cached(clip, images))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["model"][RESIZED]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match=r"holds features from another version, which resized images differently .*" + FIX
    ):
        cached(clip, images)


def test_features_are_of_one_background(clip: Clip, images: list[Path]):
    before = shards(cached(clip, images, decoding=Decoding(background="#FFF")))
    assert shards(cached(clip, images, decoding=Decoding(background="white"))) == before
    with pytest.raises(InputError, match=r"another model \(background differ\)"):
        cached(clip, images, decoding=Decoding(background="black"))


def test_a_folder_is_gone_through_once_and_no_file_is_looked_at_again(clip: Clip, images: list[Path], monkeypatch):
    root, scanned, looked_at = images[0].parents[1], [], []
    scandir, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(str(path)) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda path, **rest: looked_at.append(str(path)) or stat(path, **rest))
    for number in range(2):
        names = images_to_label(str(root), ("ant", "bee"))[0].names
        cache = embed(clip, names, root, FolderStore(folder=root.parent / "features"), Place())
        folders = [path for path in scanned if Path(path).is_relative_to(root)]
        assert sorted(folders) == sorted([str(root), str(root / "ant"), str(root / "bee")] * (number + 1))
        assert not [path for path in looked_at if path.endswith(".png")]
        # The names of the rows are those of the listing, without the folder.
        assert isinstance(names, FileNames) and isinstance(cache.names, FileNames) and cache.names.text is names.text
