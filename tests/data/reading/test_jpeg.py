"""JPEG files by simplejpeg: what Pillow reads, with its pixels, or else what Pillow says."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFilter

from debias_ssl.data.reading import decode as decoding_module
from debias_ssl.data.reading import jpeg
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import decode, decoded
from debias_ssl.data.reading.jpeg import plain_jpeg
from debias_ssl.system.errors import InputError

pytest.importorskip("simplejpeg")
MANY = 10**6
NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE).resize((161, 119)).filter(ImageFilter.SMOOTH)
TURNED, UPRIGHT = Image.Exif(), Image.Exif()
TURNED[ExifTags.Base.Orientation], UPRIGHT[ExifTags.Base.Orientation] = 6, 1
UPRIGHT[ExifTags.Base.Make] = "a camera"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2, "quality": 30}),
    "progressive": ("RGB", {"progressive": True}),
    "restart markers": ("RGB", {"restart_marker_rows": 1}),
    "gray": ("L", {}),
    "an ICC profile": ("RGB", {"icc_profile": PROFILE}),
    "EXIF that says upright": ("RGB", {"exif": UPRIGHT}),
    "EXIF that is damaged": ("RGB", {"exif": b"Exif\0\0damaged"}),
    "colors that are kept as RGB": ("RGB", {"keep_rgb": True}),
}


def jpeg_of(mode: str = "RGB", **settings: Any) -> bytes:
    file = io.BytesIO()
    PHOTO.convert(mode).save(file, "JPEG", **settings)
    return file.getvalue()


def by_pillow(path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> np.ndarray | str:
    """Pixels without simplejpeg, or what is said where there are none."""
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        return found(path, **settings)


def found(path: Path, **settings: Any) -> np.ndarray | str:
    try:
        return np.asarray(decode(str(path), **settings))
    except InputError as error:
        return str(error)


def same(one: np.ndarray | str, other: np.ndarray | str) -> bool:
    return one == other if isinstance(one, str) or isinstance(other, str) else np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", PLAIN)
def test_pixels_are_those_of_pillow(kind: str, tmp_path: Path, monkeypatch):
    mode, settings = PLAIN[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of(mode, **settings))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    pixels = plain_jpeg(str(path), MANY)
    assert (pixels is None) == ("kept as RGB" in kind)
    for each in (np.asarray(decode(str(path))), decoded(str(path)), expected if pixels is None else pixels):
        assert np.array_equal(each, expected)
    assert same(found(path, channels=1), by_pillow(path, monkeypatch, channels=1))


@pytest.mark.parametrize(("mode", "settings"), [("CMYK", {}), ("RGB", {"exif": TURNED})])
def test_what_is_not_plain_is_left_to_pillow(mode: str, settings: dict[str, Any], tmp_path: Path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_of(mode, **settings))
    assert plain_jpeg(str(path), MANY) is None
    assert same(found(path), by_pillow(path, monkeypatch)) and same(decoded(str(path)), found(path))


def test_other_files_are_not_read_and_missing_ones_are_told(tmp_path: Path):
    PHOTO.save(tmp_path / "png.jpg", "PNG")
    assert plain_jpeg(str(tmp_path / "png.jpg"), MANY) is None
    assert decoded(str(tmp_path / "png.jpg")).shape == (119, 161, 3)
    with pytest.raises(InputError, match=r"cannot read image '.*gone\.jpg': .*No such file"):
        decoded(str(tmp_path / "gone.jpg"))


def test_what_is_too_large_is_not_decoded(tmp_path: Path, monkeypatch):
    path, number = tmp_path / "a.jpg", 161 * 119
    path.write_bytes(jpeg_of())
    for most in (number, number - 1):
        assert (plain_jpeg(str(path), most) is None) == (most < number)
    assert decoded(str(path), Decoding(max_pixels=number)).shape == (119, 161, 3)
    with pytest.raises(InputError, match=f"more than max_pixels, {number - 1:,}"):
        decoded(str(path), Decoding(max_pixels=number - 1))
    monkeypatch.setattr(decoding_module, "LARGE", number // 2 - 1)
    with pytest.raises(InputError, match="more than max_pixels"):
        decoded(str(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_of_damaged_files_pixels_and_errors_are_those_of_pillow(tmp_path: Path, monkeypatch, capfd):
    random, path = np.random.default_rng(1), tmp_path / "a.jpg"
    kinds = [jpeg_of(mode, **settings) for mode, settings in PLAIN.values()]
    refused = 0
    for number in range(180):
        content = bytearray(kinds[number % len(kinds)])
        if number % 2:
            del content[-int(random.integers(1, len(content) if number % 4 == 1 else 40)) :]
        for place in random.integers(2, max(len(content), 3), size=number % 3):
            if place < len(content):
                content[place] = random.integers(256)
        path.write_bytes(content)
        now, before = found(path), by_pillow(path, monkeypatch)
        assert same(now, before), (number, now, before)
        refused += isinstance(now, str)
    assert 40 < refused < 170
    assert capfd.readouterr().err == "", "libjpeg's own words are not for people"
