import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading import cache as reading_cache
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import center_crop, decode, random_crop, unreadable
from debias_ssl.data.reading.reader import Reader, make_reader
from debias_ssl.data.sampling.keyed import uniform
from debias_ssl.data.sources.folder import find_files
from debias_ssl.data.sources.images import Images
from debias_ssl.data.sources.load import load_data
from debias_ssl.system.errors import InputError

Paint = Callable[..., Path]
CPU = torch.device("cpu")
LARGEST = 1 - 2**-24


def reader_of(images: Images, config: DataConfig, **settings) -> Reader:
    return make_reader(images, replace(config, **settings), CPU, progress=False)


def training(config: DataConfig) -> Images:
    return load_data(config).train


def spoil(path: str, keep_time: bool) -> None:
    """Makes a file unreadable; its size, and if wanted its time, stay as they were."""
    stat = os.stat(path)
    Path(path).write_bytes(b"x" * stat.st_size)
    later = 0 if keep_time else 10**9
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))


# One image.


def test_decoding_gives_three_channels_or_one(tmp_path: Path):
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    path = str(tmp_path / "gray.png")
    assert np.array_equal(np.asarray(decode(path)), np.stack([gray] * 3, -1))
    assert np.array_equal(np.asarray(decode(path, channels=1)), gray)
    assert center_crop(decode(path, channels=1), 4).shape == (4, 4, 1)


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_broken_image_is_named_with_the_mend(tmp_path: Path, paint: Paint, content: bytes | None):
    path = paint(tmp_path / "x.png", 0)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(InputError, match=r"cannot read image '.*x\.png': .*skip it \(--on_error skip") as caught:
        decode(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"cannot read image '.*gone\.png': .*No such file"):
        decode(str(tmp_path / "gone.png"))


def test_the_center_of_a_wide_image_is_cropped_and_of_a_square_one_kept():
    wide = gradient(20, 8)
    assert np.array_equal(center_crop(wide, 8), np.asarray(wide)[:, 6:14])
    square = gradient(8, 8)
    assert np.array_equal(center_crop(square, 8), np.asarray(square))


@pytest.mark.parametrize("side", [32, 28])
def test_a_share_of_the_shorter_side_is_cropped_from_images_of_any_size(side: int):
    # 28 / 32 is .875; an image that has the size already is no exception.
    result = center_crop(gradient(32, 32), side, share=0.875)
    if side == 28:
        assert np.array_equal(result, np.asarray(gradient(32, 32))[2:30, 2:30])
    assert result[0, 0, 0] == pytest.approx(2, abs=1) and result[-1, -1, 0] == pytest.approx(29, abs=1)


def test_center_crop_resizes_both_up_and_down():
    for side in (5, 50):
        assert center_crop(gradient(20, 30), side).shape == (side, side, 3)
    flat = Image.new("RGB", (20, 30), (7, 8, 9))
    assert np.unique(center_crop(flat, 5).reshape(-1, 3), axis=0).tolist() == [[7, 8, 9]]


def test_a_random_crop_of_the_whole_area_is_a_plain_resize():
    image = gradient(24, 24)
    for corner in (0.0, 0.5, LARGEST):
        crop = random_crop(image, 12, torch.tensor([0.3, 0.5, corner, corner]), (1.0, 1.0))
        assert np.array_equal(crop, np.asarray(image.resize((12, 12), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(("number", "first"), [(0.0, 0), (0.4, 2), (LARGEST, 4)])
def test_a_random_crop_reaches_from_corner_to_corner(number: float, first: int):
    # A quarter of 8 x 8 pixels is 4 x 4, which fits at 5 places in each direction.
    image, other = gradient(8, 8), 4 - first
    crop = random_crop(
        image, 4, torch.tensor([0.0, 0.5, number, LARGEST - number if number else LARGEST]), (0.25, 0.25)
    )
    assert np.array_equal(crop, np.asarray(image)[first : first + 4, other : other + 4])


@pytest.mark.parametrize(("aspect", "size"), [(0.0, (21, 28)), (0.5, (24, 24)), (LARGEST, (28, 21))])
def test_a_random_crop_has_an_aspect_ratio_of_three_to_four_at_most(aspect: float, size: tuple[int, int]):
    # A quarter of 48 x 48 pixels is 576: 24 x 24, or 20.8 x 27.7.
    image = gradient(48, 48)
    crop = random_crop(image, 16, torch.tensor([0.0, aspect, 0.0, 0.0]), (0.25, 1.0))
    assert np.array_equal(crop, np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, (0, 0, *size))))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (17, 31)])
def test_a_random_crop_stays_inside_images_of_any_shape(size: tuple[int, int]):
    image = gradient(*size)
    # Red and green of a crop are the places that it shows.
    for numbers in torch.cartesian_prod(*[torch.tensor([0.0, 0.7, LARGEST])] * 4):
        crop = random_crop(image, 4, numbers, (0.01, 1.0))
        assert crop.shape == (4, 4, 3)
        assert crop[..., 0].max() < size[0] and crop[..., 1].max() < size[1]


def test_areas_of_random_crops_are_uniform_in_the_scale():
    image, areas = gradient(128, 128), []
    for numbers in uniform(0, 0, 0, torch.arange(400), 4):
        # With as many pixels as the image has, every column and row of the crop is seen.
        first, last = random_crop(image, 128, numbers, (0.2, 0.6))[[0, -1], [0, -1], :2].astype(int)
        areas.append(np.prod(last - first + 1) / 128**2)
    assert 0.18 < min(areas) < 0.21 and 0.59 < max(areas) < 0.63
    # Uniform on .2...6, of which the mean of 400 has a standard deviation of .006.
    assert np.mean(areas) == pytest.approx(0.4, abs=0.025)
    assert np.mean(np.array(areas) < 0.3) == pytest.approx(0.25, abs=0.1)


# Readers.


def test_resident_and_streaming_readers_give_equal_images(config: DataConfig):
    images, index = training(config), torch.tensor([3, 14, 3, 0])
    for size in (None, 8, 16):
        resident = reader_of(images, config, input="resident", image_size=size)
        streaming = reader_of(images, config, input="streaming", image_size=size)
        assert resident.is_resident and not streaming.is_resident
        assert torch.equal(resident.center(index), streaming.center(index))
        assert resident.shape == streaming.shape == (size or 12, size or 12, 3)


def test_the_images_are_those_at_the_positions_asked_for(config: DataConfig):
    images = training(config)
    batch = reader_of(images, config, input="resident").center(torch.tensor([5, 0]))
    for pixels, position in zip(batch, (5, 0), strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(images.names[position])))


def test_small_files_are_resident_and_large_ones_are_streamed(config: DataConfig, monkeypatch: pytest.MonkeyPatch):
    images = training(config)
    assert reader_of(images, config).is_resident
    # 15 images of 12 x 12 x 3 bytes.
    monkeypatch.setattr("debias_ssl.data.reading.reader.RESIDENT_BYTES", 15 * 12 * 12 * 3 - 1)
    assert not reader_of(images, config).is_resident
    assert reader_of(images, config, input="resident").is_resident


def test_resized_views_are_cropped_by_their_own_numbers(config: DataConfig):
    images = training(config)
    reader = reader_of(images, config, crop="resized", image_size=8)
    numbers = uniform(0, 0, 0, torch.arange(4), 4)
    index = torch.tensor([1, 12])
    views = reader.crops(index, [numbers[:2], numbers[2:]])
    for view, rows in zip(views, (numbers[:2], numbers[2:]), strict=True):
        for crop, position, row in zip(view, index.tolist(), rows, strict=True):
            expected = random_crop(decode(str(images.names[position])), 8, row, config.crop_scale)
            assert np.array_equal(crop, expected)
    assert not torch.equal(*views)


def test_resized_evaluation_shows_the_customary_share_of_the_center(config: DataConfig):
    images = training(config)
    reader = reader_of(images, config, crop="resized", image_size=12)
    expected = center_crop(decode(images.names[0]), 12, share=0.875)
    assert np.array_equal(reader.center(torch.tensor([0]))[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "resized"}, r"needs data\.image_size"),
        ({"crop": "resized", "image_size": 8, "input": "resident"}, r"set data\.input to streaming or auto"),
    ],
)
def test_random_crops_need_a_size_and_files(config: DataConfig, settings: dict, message: str):
    with pytest.raises(InputError, match=message):
        reader_of(training(config), config, **settings)


def test_arrays_are_neither_resized_nor_cropped_at_random():
    config = DataConfig()
    images = training(config)
    assert images.pixels is not None
    reader = reader_of(images, config, image_size=8)
    assert torch.equal(reader.center(torch.tensor([4, 2])), torch.from_numpy(images.pixels[[4, 2]]))
    for settings in ({"image_size": 16}, {"crop": "resized", "image_size": 8}):
        with pytest.raises(InputError, match="are for image files, not for arrays"):
            reader_of(images, config, **settings)


@pytest.mark.parametrize("how", ["resident", "streaming"])
def test_images_of_different_sizes_need_a_size(tmp_path: Path, paint: Paint, config: DataConfig, how: str):
    for i, size in enumerate([(12, 12), (12, 12), (16, 16)]):
        paint(tmp_path / "mixed" / f"{i}.png", i, size)
    images = find_files(str(tmp_path / "mixed"), "--images")
    everything = torch.arange(3)
    # What was resized before is not taken for what need not be.
    assert reader_of(images, config, input=how, image_size=12).center(everything).shape == (3, 12, 12, 3)
    message = r"2\.png' has 16 x 16 pixels, but the first image has 12 x 12: set data\.image_size"
    with pytest.raises(InputError, match=message):
        reader_of(images, config, input=how).center(everything)


def test_a_first_image_that_is_not_square_needs_a_size(tmp_path: Path, paint: Paint, config: DataConfig):
    paint(tmp_path / "wide" / "0.png", 0, (12, 8))
    images = find_files(str(tmp_path / "wide"), "--images")
    with pytest.raises(InputError, match=r"0\.png' has 12 x 8 pixels: set data\.image_size"):
        reader_of(images, config)
    assert reader_of(images, config, image_size=6).shape == (6, 6, 3)


@pytest.mark.parametrize("how", ["resident", "streaming"])
def test_a_broken_file_among_many_is_named(config: DataConfig, how: str):
    images = training(config)
    spoil(images.names[7], keep_time=False)
    with pytest.raises(InputError, match=f"cannot read image '{images.names[7]}'"):
        reader_of(images, config, input=how).center(torch.arange(15))


# The cache.


def pixels_of(reader: Reader) -> Tensor:
    return reader.center(torch.arange(15))


def test_decoded_images_are_kept_and_used_again(config: DataConfig, cache: Path):
    images = training(config)
    first = pixels_of(reader_of(images, config)).clone()
    assert len(list(cache.glob("*.npy"))) == 1
    # Nothing shows that these have changed, so they are not read again; the size is known from the setting.
    for name in images.names[1:]:
        spoil(name, keep_time=True)
    assert torch.equal(pixels_of(reader_of(images, config)), first)
    assert len(list(cache.iterdir())) == 1


def test_decoded_images_are_made_anew_when_a_file_changes(config: DataConfig, paint: Paint):
    images = training(config)
    first = pixels_of(reader_of(images, config)).clone()
    stat = os.stat(images.names[4])
    paint(Path(images.names[4]), 77)
    os.utime(images.names[4], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    again = pixels_of(reader_of(training(config), config))
    changed = (again != first).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [4]


def test_another_size_or_list_of_files_has_its_own_array(config: DataConfig, cache: Path):
    images = training(config)
    for chosen, size in ((images, 12), (images, 8), (images.part([1, 0]), 8), (images.part([0, 1]), 8)):
        reader_of(chosen, config, image_size=size)
    assert len(list(cache.glob("*.npy"))) == 4


def test_changing_the_pixels_in_memory_leaves_the_cache_as_it_was(config: DataConfig):
    images = training(config)
    reader = reader_of(images, config)
    assert reader.pixels is not None
    before = reader.pixels.clone()
    reader.pixels.zero_()
    assert torch.equal(pixels_of(reader_of(images, config)), before)


def test_a_decoding_that_fails_leaves_nothing_behind(config: DataConfig, cache: Path):
    images = training(config)
    spoil(images.names[9], keep_time=False)
    with pytest.raises(InputError):
        reader_of(images, config)
    assert list(cache.iterdir()) == []


def test_a_decoding_that_is_interrupted_goes_on(config: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch):
    images = training(config)
    expected = pixels_of(reader_of(images, config)).clone()
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    kept.unlink()
    monkeypatch.setattr(reading_cache, "PART", 4)
    decoded: list[str] = []

    def decoding(stop_at: int | None) -> None:
        def decode(file: str, **settings: Any) -> Any:
            if len(decoded) == stop_at:
                raise KeyboardInterrupt
            decoded.append(file)
            return original(file, **settings)

        monkeypatch.setattr(reading_cache, "decode", decode)

    original = reading_cache.decode
    monkeypatch.setattr(reading_cache, "in_threads", map)
    decoding(stop_at=10)
    with pytest.raises(KeyboardInterrupt):
        reader_of(images, config)
    # Two parts of four are kept; one of them is then damaged.
    (parts,) = cache.iterdir()
    assert [path.name for path in sorted(parts.iterdir())] == ["000000", "000001"]
    damaged = parts / "000001"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    decoded.clear()
    decoding(stop_at=None)
    assert torch.equal(pixels_of(reader_of(images, config)), expected)
    assert decoded == [*images.names[4:]]
    # The array is the one that is made in one go, and nothing stays beside it.
    assert [path.read_bytes() for path in cache.iterdir()] == [content]


def test_parts_that_another_host_has_joined_are_not_missed(
    config: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    images = training(config)
    expected = pixels_of(reader_of(images, config)).clone()
    (kept,) = cache.iterdir()
    aside = kept.rename(cache.parent / "aside")
    join = reading_cache._join

    def late(path: Path, parts: Path, shape: tuple[int, ...]) -> None:
        shutil.rmtree(parts)
        aside.rename(path)
        join(path, parts, shape)

    monkeypatch.setattr(reading_cache, "_join", late)
    assert torch.equal(pixels_of(reader_of(images, config)), expected)


def test_a_search_for_unreadable_files_that_is_interrupted_goes_on(config: DataConfig, monkeypatch: pytest.MonkeyPatch):
    images = training(config)
    monkeypatch.setattr(reading_cache, "LIST_PART", 6)
    searched: list[str] = []

    def searching(names: Sequence[str], progress: bool, decoding: Decoding) -> dict[str, str]:
        if searched and "begun again" not in searched:
            raise KeyboardInterrupt
        searched.extend(names)
        return {}

    monkeypatch.setattr(reading_cache, "unreadable", searching)
    with pytest.raises(KeyboardInterrupt):
        without_unreadable(images, config, progress=False)
    searched.append("begun again")
    without_unreadable(images, config, progress=False)
    assert sorted(searched) == sorted([*images.names, "begun again"])


def test_a_cache_of_ones_own_is_used(config: DataConfig, tmp_path: Path, cache: Path):
    reader_of(training(config), config, cache=str(tmp_path / "mine" / "deep"))
    assert len(list((tmp_path / "mine" / "deep").glob("*.npy"))) == 1 and not cache.exists()


def test_a_cache_that_cannot_be_made_is_told_with_the_mend(config: DataConfig, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make the folder '.*file': .*; set XDG_CACHE_HOME .*data\.cache"):
        reader_of(training(config), config, cache=str(tmp_path / "file"))


# Files that cannot be read.


def test_unreadable_files_are_listed_with_the_reason(config: DataConfig):
    images = training(config)
    for i in (2, 11):
        spoil(images.names[i], keep_time=False)
    bad = unreadable(images.names, progress=False)
    assert list(bad) == [images.names[2], images.names[11]]
    assert all("cannot identify image file" in reason for reason in bad.values())


def test_unreadable_files_are_left_out_with_their_labels(config: DataConfig):
    images = training(config)
    spoil(images.names[3], keep_time=False)
    rest, bad = without_unreadable(images, config, progress=False)
    assert list(bad) == [images.names[3]]
    assert list(rest.names) == [*images.names[:3], *images.names[4:]]
    assert rest.labels.tolist() == [0] * 3 + [1] * 5 + [-1] * 6


def test_what_is_unreadable_is_found_once_and_again_after_a_change(config: DataConfig, paint: Paint):
    images = training(config)
    assert without_unreadable(images, config, progress=False)[1] == {}
    spoil(images.names[3], keep_time=True)
    assert without_unreadable(images, config, progress=False)[1] == {}, "nothing shows that the file has changed"
    spoil(images.names[3], keep_time=False)
    assert list(without_unreadable(training(config), config, progress=False)[1]) == [images.names[3]]


def test_a_list_without_any_readable_image_is_refused(config: DataConfig):
    images = training(config).part([0, 1])
    for name in images.names:
        spoil(name, keep_time=False)
    with pytest.raises(InputError, match=r"none of 2 images can be read, such as '.*0\.png'"):
        without_unreadable(images, config, progress=False)


def test_arrays_are_always_readable():
    images = training(DataConfig())
    assert without_unreadable(images, DataConfig(), progress=False) == (images, {})
