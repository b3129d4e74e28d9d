"""Images of more than 8 bits, and of more pixels than Pillow reads without a word: what is read, and what is said."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused
from PIL import Image, TiffImagePlugin

from debias_ssl import label
from debias_ssl.data.__main__ import main
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading import decode as decoding_module
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sources.images import Images
from debias_ssl.system.errors import InputError

# Of a picture of 12 bits, from black to white.
TWELVE = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
EIGHT = (TWELVE >> 4).astype(np.uint8)


def gray(path: Path, bits: int | None = None) -> np.ndarray:
    return np.asarray(decode(str(path), channels=1, decoding=Decoding(bits=bits)))


def images_of(*paths: Path) -> Images:
    return Images(pixels=None, labels=np.zeros(len(paths), dtype=np.int64), names=[str(path) for path in paths])


def png(path: Path, width: int, height: int) -> Path:
    """A black image of one bit a pixel: large, and of few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


# Bits.


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_bits_say_what_white_is(suffix: str, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(TWELVE).save(path)
    assert gray(path).max() == 15, "sixteen bits are taken for granted"
    np.testing.assert_array_equal(gray(path, bits=12), EIGHT)
    assert gray(path, bits=8).max() == 255, "more than white is white"
    # Of 8 bits nothing is scaled.
    Image.fromarray(EIGHT).save(tmp_path / "b.png")
    np.testing.assert_array_equal(gray(tmp_path / "b.png", bits=12), EIGHT)


def test_a_tiff_file_says_its_bits_by_its_largest_value(tmp_path: Path):
    for number, largest in enumerate((4095, 3000)):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[281] = largest
        Image.fromarray(TWELVE).save(tmp_path / f"{number}.tif", tiffinfo=tags)
    np.testing.assert_array_equal(gray(tmp_path / "0.tif"), EIGHT)
    assert gray(tmp_path / "1.tif").max() == 15, "the largest value of one picture, and of no number of bits"
    np.testing.assert_array_equal(gray(tmp_path / "0.tif", bits=16), TWELVE >> 8)


def test_a_tiff_file_of_twelve_bits_a_pixel_says_so(tmp_path: Path):
    values = TWELVE.ravel().astype(int)
    packed = bytearray()
    for first, second in zip(values[::2], values[1::2], strict=True):
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    entries = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(packed))]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    (tmp_path / "a.tif").write_bytes(
        head + bytes(packed) + struct.pack("<H", len(entries)) + fields + struct.pack("<I", 0)
    )
    np.testing.assert_array_equal(gray(tmp_path / "a.tif"), EIGHT)


def test_a_pgm_file_is_scaled_by_its_own_largest_value(tmp_path: Path):
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 4095\n" + TWELVE.astype(">u2").tobytes())
    found = gray(tmp_path / "a.pgm").astype(int)
    assert found.max() == 255 and np.abs(found - EIGHT).max() <= 1


def test_colors_of_sixteen_bits_are_refused_with_bits(tmp_path: Path):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress((b"\0" + bytes(12)) * 2)
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    assert decode(str(tmp_path / "a.png")).size == (2, 2)
    with pytest.raises(InputError, match=r"a\.png': its colors have 16 bits, .* bits 12 is for gray"):
        decode(str(tmp_path / "a.png"), decoding=Decoding(bits=12))


@pytest.mark.parametrize("input", ["resident", "streaming"])
def test_readers_read_by_the_bits_and_the_cache_keeps_them_apart(input, tmp_path: Path):
    Image.fromarray(TWELVE).save(tmp_path / "a.png")
    largest = []
    for bits in (None, 12, None):
        config = DataConfig(bits=bits, input=input, workers=0)
        reader = make_reader(images_of(tmp_path / "a.png"), config, torch.device("cpu"), progress=False)
        largest.append(int(reader.center(torch.tensor([0])).max()))
    assert largest == [15, 255, 15]


@pytest.mark.parametrize("bits", [7, 17])
def test_bits_out_of_range_are_refused(bits: int):
    with pytest.raises(InputError, match=rf"data\.bits is {bits}, must be in \[8, 16]"):
        DataConfig(bits=bits)


def test_check_says_the_largest_value_and_what_to_set(config: DataConfig, tree: Path, capsys):
    flags = [text for name in ("name", "labeled", "test") for text in (f"--data.{name}", str(getattr(config, name)))]
    for path in (tree / "labeled").rglob("*.png"):
        Image.fromarray(TWELVE).resize((12, 12), Image.Resampling.NEAREST).save(path)
    main(["check", *flags])
    said = " ".join(capsys.readouterr().out.split())
    assert "9 gray images with 16 bits; the largest value is 4,095, of 65,535 for 16 bits: dark; " in said
    assert "if they hold 12 bits, set data.bits 12" in said and said.count("16 bits;") == 1
    main(["check", *flags, "--data.bits", "12"])
    said = " ".join(capsys.readouterr().out.split())
    assert "the largest value is 4,095, of 4,095 for 12 bits" in said and "set data.bits" not in said
    main(["check", *flags, "--data.bits", "10"])
    assert "everything above is white; if they hold 12 bits, set data.bits 12" in capsys.readouterr().out


# Pixels.


def test_an_image_that_is_too_large_is_named_with_the_setting_that_allows_it(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(decoding_module, "LARGE", 500)
    path = png(tmp_path / "a.png", 40, 30)
    with pytest.raises(
        InputError, match=r"a\.png': it has 1,200 pixels, more than max_pixels, 1,000: .*max_pixels 1200"
    ):
        decode(str(path))
    assert decode(str(path), decoding=Decoding(max_pixels=1200)).size == (40, 30)
    with pytest.raises(InputError, match="more than max_pixels, 1,199"):
        decode(str(path), decoding=Decoding(max_pixels=1199))
    assert capfd.readouterr().err == ""


def test_pillows_own_limit_gives_way_for_the_call_alone(tmp_path: Path, monkeypatch):
    """Warnings are errors here: Pillow's own would be one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = png(tmp_path / "a.png", 40, 30)
    assert decode(str(path)).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(InputError):
        decode(str(path), decoding=Decoding(max_pixels=1))
    assert Image.MAX_IMAGE_PIXELS == 100


def test_a_large_image_is_told_of_once_with_its_name(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.setattr(decoding_module, "LARGE", 700)
    paths = [png(tmp_path / f"{i}.png", 40, 30) for i in range(2)]
    decoding_module._LARGE_TOLD.clear()
    decode(str(paths[0]), decoding=Decoding(max_pixels=1200))
    assert capfd.readouterr().err == "", "what is allowed is not told of"
    for path in paths:
        decode(str(path))
    said = capfd.readouterr().err
    assert said.count("note: ") == 1 and repr(str(paths[0])) in said and "--data.max_pixels 1200" in said


def test_what_is_too_large_is_skipped_until_it_is_allowed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(decoding_module, "LARGE", 500)
    images = images_of(png(tmp_path / "large.png", 40, 30), png(tmp_path / "small.png", 4, 4))
    for allowed, number in ((None, 1), (1200, 2), (None, 1)):
        found, bad = without_unreadable(images, DataConfig(max_pixels=allowed), progress=False)
        assert len(found) == number and len(bad) == 2 - number


def test_label_takes_both_settings_and_checks_them(tmp_path: Path, capsys):
    flags = ["--images", str(tmp_path), "--classes", "imagenet", "--model", "m", "--out", str(tmp_path / "out")]
    for name, words in (("bits", "bits is 1, must be in [8, 16]"), ("max_pixels", "max_pixels is -1, must be at")):
        value = words.split(" is ")[1].split(",")[0]
        assert words in refused(label.main, [*flags, f"--{name}", value], capsys)
