"""Images that cannot be prepared: they stop the job or are left out."""

from pathlib import Path

import pytest
import torch
from embedded_images import CPU, cached, folder_of, shards, spoil
from PIL import Image
from small_clip import PREPROCESSING, save_clip

from debias_ssl.contract import Place
from debias_ssl.features import embedding as features
from debias_ssl.models.clip import Clip, load_clip
from debias_ssl.system.errors import InputError, StoppedError


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
