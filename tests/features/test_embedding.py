"""Features of images on disk: made once, in the same bits however, and never those of other images."""

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_clip import PREPROCESSING, paint_images, save_clip

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.features import feature_notes, find_features
from debias_ssl.data.sources.folder import find_files
from debias_ssl.data.sources.listing import FileNames
from debias_ssl.features import embedding as features
from debias_ssl.features.embedding import FeatureCache, embed
from debias_ssl.features.store import FolderStore, MemoryStore, ShardRows
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.models.clip import Clip, load_clip
from debias_ssl.models.resizing import RESIZED
from debias_ssl.system.errors import InputError, StoppedError

CPU = torch.device("cpu")
encode = Clip.encode


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


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_generation(generation: int, num_shards: int) -> list[str]:
    """The files of features that were brought up to date so many times."""
    shards = [f"{kind}_{number:05d}.{generation}.npy" for kind in ("content", "shard") for number in range(num_shards)]
    return sorted([f"files.{generation}.parquet", "manifest.json", *shards])


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


FIX = r": choose another folder with --features, or delete that one$"


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


# Lists of images that have changed.


def changed(images: list[Path]) -> list[Path]:
    """One image is new, so that all others move by one, one is another one, and one is gone."""
    new = images[0].with_name("00.png")
    Image.new("RGB", (20, 16), "red").save(new)
    Image.new("RGB", (20, 16), "blue").save(images[6])
    images[3].unlink()
    return sorted([new, *images[:3], *images[4:]])


def rows_of(cache: FeatureCache) -> dict[str, bytes]:
    values = torch.cat([*cache.chunks()])
    return {name: row.numpy().tobytes() for name, row in zip(cache.names, values, strict=True)}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that pass through the network."""
    sizes: list[int] = []
    monkeypatch.setattr(Clip, "encode", lambda clip, batch: sizes.append(len(batch)) or encode(clip, batch))
    return sizes


def test_only_new_and_changed_images_are_read(clip: Clip, images: list[Path], encoded: list[int], capsys):
    before = rows_of(cached(clip, images))
    kept = images[1]
    now = changed(images)
    spoil(kept)
    encoded.clear()
    cache = cached(clip, now, progress=True)
    assert encoded == [1, 1], "the new one in the first shard, the changed one in the second"
    after = rows_of(cache)
    assert [*after] == [path.relative_to(cache.root).as_posix() for path in now]
    others = before.keys() - {"ant/6.png", "bee/3.png"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    expected = clip.encode(torch.stack([clip.preprocess(decode(str(path))) for path in (now[0], images[6])]))
    found = np.stack([np.frombuffer(after[name], np.float32) for name in (cache.names[0], "bee/3.png")])
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=0)
    note = (
        "features of 8 of 10 images are used again; 2 images are new, or have another name, size or time: they are read"
    )
    assert f"note: {folder_of(cache)}: {note}" in capsys.readouterr().err
    # Nothing of the earlier list stays, and the trainer finds the features of the new one.
    assert names_in(folder_of(cache)) == of_generation(1, 3)
    found = find_features([str(folder_of(cache))], [str(path) for path in now[::-1]])
    assert [row.astype(np.float32).tobytes() for row in found[::-1]] == [*after.values()]
    encoded.clear()
    assert rows_of(cached(clip, now)) == after and not encoded


def test_another_order_is_the_same_features(clip: Clip, images: list[Path], encoded: list[int]):
    before = rows_of(cached(clip, images))
    encoded.clear()
    cache = cached(clip, images[::-1])
    assert rows_of(cache) == before and cache.names == [*before][::-1] and not encoded


def test_images_that_were_moved_and_joined_by_one_are_known(clip: Clip, images: list[Path], encoded: list[int]):
    before, root = rows_of(cached(clip, images)), images[0].parents[1]
    moved = root.rename(root.with_name("moved"))
    now = [moved / path.relative_to(root) for path in images]
    encoded.clear()
    assert rows_of(cached(clip, now)) == before and not encoded
    Image.new("RGB", (20, 16), "red").save(moved / "new.png")
    assert before.items() <= rows_of(cached(clip, [*now, moved / "new.png"])).items() and encoded == [1]


def test_features_that_would_largely_be_lost_are_kept(clip: Clip, images: list[Path]):
    before = shards(cached(clip, images))
    message = r"holds features of 10 images, of which 4 are among these 4 as they were"
    with pytest.raises(InputError, match=message + FIX):
        cached(clip, images[:4])
    other = paint_images(images[0].parents[1].with_name("others"), num=3, classes=("cat", "eel"))
    for i, path in enumerate(other):
        Image.new("RGB", (20, 16), (i, 0, 0)).save(path)
    with pytest.raises(InputError, match=r"features of images in '.*images', not in '.*others'" + FIX):
        cached(clip, other)
    assert shards(cached(clip, images)) == before


def test_the_same_images_in_another_copy_keep_their_features(
    clip: Clip, images: list[Path], encoded: list[int], capsys
):
    before, root = rows_of(cached(clip, images)), images[0].parents[1]
    shutil.copytree(root, root.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(root)
    copies = [root.with_name("copy") / path.relative_to(root) for path in images]
    assert all(path.stat().st_mtime_ns > 0 for path in copies)
    encoded.clear()
    assert rows_of(cached(clip, copies, progress=True)) == before and not encoded
    said = capsys.readouterr().err
    assert "features of 0 of 10 images are used again; 10 images are new, or have another" in said
    assert "note: 10 images have known contents, and their stored features are used" in said
    # They are known by their times from now on, and are not read again.
    for path in copies:
        spoil(path)
    assert rows_of(cached(clip, copies)) == before and not encoded


def test_a_renamed_folder_keeps_its_features(clip: Clip, images: list[Path], encoded: list[int]):
    before, root = rows_of(cached(clip, images)), images[0].parents[1]
    (root / "bee").rename(root / "wasp")
    now = sorted(root.rglob("*.png"))
    encoded.clear()
    after = rows_of(cached(clip, now))
    assert {name.replace("wasp", "bee"): row for name, row in after.items()} == before and not encoded


def test_content_decides_and_not_the_name_or_the_size(clip: Clip, images: list[Path], encoded: list[int]):
    before = rows_of(cached(clip, images))
    one, other = images[0].read_bytes(), images[1].read_bytes()
    images[0].write_bytes(other)
    images[1].write_bytes(one)
    images[2].write_bytes(images[2].read_bytes()[:-1] + b"?")
    images[3].write_bytes(images[3].read_bytes())
    encoded.clear()
    after = rows_of(cached(clip, images))
    names = [*before]
    assert [after[names[0]], after[names[1]]] == [before[names[1]], before[names[0]]]
    assert encoded == [1], "its last byte is another one"
    assert {name: after[name] for name in names[3:]} == {name: before[name] for name in names[3:]}


def test_other_content_of_the_same_size_and_time_is_not_seen(clip: Clip, images: list[Path], encoded: list[int]):
    """What is promised is no more: files whose name, size and time are as before are not read."""
    before = rows_of(cached(clip, images))
    spoil(images[0])
    encoded.clear()
    assert rows_of(cached(clip, images)) == before and not encoded


def test_an_image_that_was_in_a_tar_file_is_known_outside_of_it(clip: Clip, images: list[Path], encoded: list[int]):
    root = images[0].parents[1]
    with tarfile.open(root / "all.tar", "w") as tar:
        for path in images:
            tar.add(path, path.relative_to(root))
    store = FolderStore(folder=root.parent / "features")
    names = find_files(str(root / "all.tar"), "--images").names
    before = rows_of(embed(clip, names, root, store, Place(), batch_size=3))
    encoded.clear()
    assert [*rows_of(cached(clip, images)).values()] == [*before.values()] and not encoded


def test_contents_without_their_features_are_of_no_use(clip: Clip, images: list[Path], encoded: list[int]):
    """As a kill leaves them, of an image that could not be read before: its content is written first."""
    content = images[5].read_bytes()
    spoil(images[5])
    cache = cached(clip, images, on_error="skip")
    before, shard = rows_of(cache), (folder_of(cache) / "shard_00001.npy").read_bytes()
    images[5].write_bytes(content)
    cached(clip, images)
    generation = folder_of(cache) / "shard_00001.1.npy"
    generation.write_bytes(shard)
    (images[0].parents[1] / "ant").rename(images[0].parents[1] / "emmet")
    encoded.clear()
    now = sorted(images[0].parents[1].rglob("*.png"))
    after = rows_of(cached(clip, now))
    assert encoded == [1] and len(after) == 10
    assert before.items() <= {name.replace("emmet", "ant"): row for name, row in after.items()}.items()


def test_shards_of_a_list_that_was_not_finished_and_is_damaged_are_not_taken(
    clip: Clip, images: list[Path], monkeypatch
):
    folder = folder_of(cached(clip, images))
    expected = rows_of(cached(clip, images[1:], "whole"))
    write, calls = FolderStore.write, iter(range(100))

    def killed(self: FolderStore, number: int, rows: ShardRows) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(self, number, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderStore, "write", killed)
        cached(clip, images[::-1])
    (folder / "files.1.parquet").write_bytes(b"PAR1")
    assert rows_of(cached(clip, images[1:])) == expected
    assert names_in(folder) == of_generation(2, 3)


@pytest.mark.parametrize("name", ["content_00001.npy", "files.parquet"])
def test_damaged_files_beside_the_features(clip: Clip, images: list[Path], encoded: list[int], name: str):
    cache = cached(clip, images)
    before, path = rows_of(cache), folder_of(cache) / name
    path.write_bytes(path.read_bytes()[:100])
    for image in images:
        os.utime(image, ns=(0, 0))
    encoded.clear()
    if name == "files.parquet":
        with pytest.raises(InputError, match=r"files\.parquet' cannot be read: .*; name another folder"):
            cached(clip, images)
    else:
        # The images of one shard are not known again.
        assert rows_of(cached(clip, images)) == before and sum(encoded) == 4


def test_a_kill_while_features_are_brought_up_to_date_loses_nothing(clip: Clip, images: list[Path], monkeypatch):
    """Stopped at every change of a file: old or new features are whole all the time, and no work is done twice."""
    folder = folder_of(cached(clip, images))
    shutil.copytree(folder, folder.with_name("whole"))
    now = changed(images)
    stay = [str(path) for path in now if path in images and path != images[6]]
    expected = shards(cached(clip, now, "whole"))
    old = find_features([str(folder)], stay).tobytes()
    steps = done = 0
    while not done:
        place = f"killed_{steps}"
        shutil.copytree(folder, folder.with_name(place))
        calls, made, rename, unlink = iter(range(1000)), [], os.replace, Path.unlink

        def counted(act, calls=calls, after=steps):
            def wrapped(*arguments, **settings):
                if next(calls) >= after:
                    raise KeyboardInterrupt
                return act(*arguments, **settings)

            return wrapped

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(rename))
            patch.setattr(Path, "unlink", counted(unlink))
            try:
                cached(clip, now, place)
                done = 1
            except KeyboardInterrupt:
                pass
        assert find_features([str(folder.with_name(place))], stay).tobytes() == old
        whole = {path.name for path in folder.with_name(place).glob("shard_*.1.npy")}
        with monkeypatch.context() as patch:
            patch.setattr(Clip, "encode", lambda clip, batch, made=made: made.append(1) or encode(clip, batch))
            assert shards(cached(clip, now, place)) == expected
        # One batch in each of the first two shards.
        assert len(made) == 2 - sum(f"shard_0000{number}.1.npy" in whole for number in range(2))
        left = [name for name in names_in(folder.with_name(place)) if not name.startswith(".")]
        assert left == of_generation(1, 3) == sorted(["files.1.parquet", "manifest.json", *expected])
        steps += 1
    assert steps > 8


def test_images_that_change_again_before_the_end_lose_nothing(clip: Clip, images: list[Path], encoded, monkeypatch):
    cached(clip, images)
    now = changed(images)
    calls, write = iter(range(100)), FolderStore.write

    def killed(self: FolderStore, number: int, rows: ShardRows) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        write(self, number, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderStore, "write", killed)
        cached(clip, now)
    encoded.clear()
    cache = cached(clip, now[:-1])
    assert not encoded, "the first two shards had been made, with all that is new"
    assert names_in(folder_of(cache)) == of_generation(2, 3)


def test_an_image_that_could_not_be_read_is_tried_again(clip: Clip, images: list[Path], encoded: list[int]):
    content, stat = images[5].read_bytes(), images[5].stat()
    spoil(images[5])
    before = rows_of(cached(clip, images, on_error="skip"))
    shard = images[0].parents[2] / "features" / "shard_00001.npy"
    time = shard.stat().st_mtime_ns
    assert rows_of(cached(clip, images, on_error="skip")) == before and shard.stat().st_mtime_ns == time
    images[5].write_bytes(content)
    os.utime(images[5], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    encoded.clear()
    after = rows_of(cached(clip, images))
    assert encoded == [1] and len(after) == 10 and before.items() <= after.items()


def test_images_in_tar_files_that_have_grown_keep_their_features(clip: Clip, images: list[Path], encoded: list[int]):
    root = images[0].parents[1]
    for number, part in enumerate((images[:6], images[6:])):
        with tarfile.open(root / f"{number}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.name)

    def labeled() -> FeatureCache:
        names = find_files(str(root / "*.tar"), "--images").names
        return embed(clip, names, root, FolderStore(folder=root.parent / "of_tars"), Place())

    before = rows_of(labeled())
    Image.new("RGB", (20, 16), "red").save(root / "new.png")
    with tarfile.open(root / "1.tar", "a") as tar:
        tar.add(root / "new.png", "new.png")
    encoded.clear()
    after = rows_of(labeled())
    assert encoded == [1] and len(after) == 11 and before.items() <= after.items()


# Images that cannot be prepared.


def test_a_strip_is_read_like_another_picture(clip: Clip, images: list[Path]):
    Image.new("RGB", (20_000, 1), "red").save(images[0])
    Image.new("RGB", (20, 20), "red").save(images[1])
    values = torch.cat([*cached(clip, images).chunks()])
    torch.testing.assert_close(values[0], values[1], atol=1e-3, rtol=0)


def test_an_image_that_the_model_cannot_take_stops_or_is_left_out(tmp_path: Path, images: list[Path]):
    longest = save_clip(tmp_path / "longest", preprocess_cfg=PREPROCESSING | {"resize_mode": "longest"})
    clip = load_clip(longest, None, CPU)
    Image.new("RGB", (2000, 1)).save(images[4])
    message = (
        rf"cannot prepare image '{images[4]}' of 2000 x 1 pixels for the model: height and width must be > 0; .*skip"
    )
    with pytest.raises(InputError, match=message):
        cached(clip, images)
    assert cached(clip, images, on_error="skip").unreadable == {4: "height and width must be > 0"}


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
        InputError, match=r"cannot write to '.*taken/features/files.parquet': .*; choose another folder with --features"
    ):
        cached(clip, images, "taken/features")


def test_a_process_makes_its_own_shards_alone(clip: Clip, images: list[Path], monkeypatch):
    cache = cached(clip, images)
    before = shards(cache)
    (folder_of(cache) / "shard_00001.npy").unlink()
    monkeypatch.setattr(features, "_of_all", lambda number, place: torch.tensor([number]))
    with pytest.raises(StoppedError, match=r"shard_00001\.npy' is missing or damaged \(No such file or directory\)"):
        cached(clip, images, place=Place(rank=0, num_processes=2))
    cached(clip, images, place=Place(rank=1, num_processes=2))
    assert shards(cache) == before
