"""Lists of images that have changed: only new and changed images are encoded."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_images import FIX, cached, encode, folder_of, shards, spoil
from PIL import Image
from small_clip import paint_images

from debias_ssl.contract import Place
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.features import find_features
from debias_ssl.data.sources.folder import find_files
from debias_ssl.features.embedding import FeatureCache, embed
from debias_ssl.features.store import FolderStore, ShardRows
from debias_ssl.models.clip import Clip
from debias_ssl.system.errors import InputError


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def of_generation(generation: int, num_shards: int) -> list[str]:
    """The files of features that were brought up to date so many times."""
    shards = [f"{kind}_{number:05d}.{generation}.npy" for kind in ("content", "shard") for number in range(num_shards)]
    return sorted([f"files.{generation}.parquet", "manifest.json", *shards])


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
    message = r"holds features of 10 images; 4 of them are among these 4, unchanged"
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
