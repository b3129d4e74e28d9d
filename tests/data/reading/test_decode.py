"""Pictures as cameras and drawing programs write them: turned by EXIF data, with transparency, of many formats."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torchvision.io import decode_image

from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading import config as reading_config
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import center_crop, decode
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sources.images import Images
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")
# Three columns and two rows of blocks of colors that JPEG keeps apart; no turn of it is like another.
BLOCKS = np.kron(
    np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 0, 0], [250, 250, 250]]]),
    np.ones((16, 16, 1), dtype=int),
).astype(np.uint8)
PICTURE = Image.fromarray(BLOCKS)
XMP = """<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?><x:xmpmeta xmlns:x='adobe:ns:meta/'>
<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{}"/></rdf:RDF></x:xmpmeta>"""


def upright(orientation: int, pixels: np.ndarray = BLOCKS) -> np.ndarray:
    """How a picture is meant whose file has these pixels, by the definition of the EXIF standard.

    The numbers say where row 0 and column 0 of the file are: 1 top and left, 2 top and right, 3 bottom and right,
    4 bottom and left, 5 left and top, 6 right and top, 7 right and bottom, 8 left and bottom.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ExifTags.Base.Orientation] = orientation
    return data


def pixels_of(path: Path, **settings: Any) -> np.ndarray:
    return np.asarray(decode(str(path), **settings)).astype(int)


def images_of(*paths: Path) -> Images:
    return Images(pixels=None, labels=np.zeros(len(paths), dtype=np.int64), names=[str(path) for path in paths])


# Orientation.


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "tif", "avif", "mpo"])
def test_pictures_stand_as_their_exif_data_says(suffix: str, orientation: int, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    settings: dict[str, Any] = {"webp": {"lossless": True}, "avif": {"quality": 100}}.get(suffix, {"quality": 95})
    PICTURE.save(path, exif=exif(orientation), **settings)
    found = pixels_of(path)
    assert found.shape == upright(orientation).shape
    assert np.abs(found - upright(orientation)).mean() < 8


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision are deprecated")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_torchvision_turns_them_the_same_way(suffix: str, orientation: int, tmp_path: Path):
    path = tmp_path / f"a.{suffix}"
    PICTURE.save(path, exif=exif(orientation), quality=95)
    expected = decode_image(str(path), apply_exif_orientation=True).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels_of(path) - expected).max() <= 2


@pytest.mark.parametrize("orientation", [2, 6, 7])
def test_xmp_data_counts_where_there_is_no_exif_data(orientation: int, tmp_path: Path):
    PICTURE.save(tmp_path / "a.webp", lossless=True, xmp=XMP.format(orientation).encode())
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.webp"), upright(orientation))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("cmyk.jpg", PICTURE.convert("CMYK")),
        ("gray.png", PICTURE.convert("L")),
        ("palette.png", PICTURE.quantize(8)),
        ("alpha.png", PICTURE.convert("RGBA")),
        ("16.png", Image.fromarray(BLOCKS[..., 0].astype(np.uint16) * 257)),
        ("16.tif", Image.fromarray(BLOCKS[..., 0].astype(np.uint16) * 257)),
        ("gray.tif", PICTURE.convert("L")),
        ("cmyk.tif", PICTURE.convert("CMYK")),
        ("float.tif", Image.fromarray(BLOCKS[..., 0].astype(np.float32))),
        ("bits.png", PICTURE.convert("1")),
    ],
)
def test_pictures_of_every_kind_are_turned(name: str, image: Image.Image, tmp_path: Path):
    image.save(tmp_path / f"1_{name}", quality=95)
    image.save(tmp_path / f"6_{name}", exif=exif(6), quality=95)
    for channels in (1, 3):
        plain, turned = (pixels_of(tmp_path / f"{i}_{name}", channels=channels) for i in (1, 6))
        np.testing.assert_array_equal(turned, upright(6, plain))


@pytest.mark.parametrize(
    "data",
    [
        b"Exif\0\0" + bytes(3),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12\0\x03",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\0\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
        b"no exif at all",
    ],
    ids=["cut", "nowhere", "long", "text", "99", "none"],
)
def test_damaged_exif_data_says_nothing(data: bytes, tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        # Pillow's warning of it is kept from people; the tests make errors of all.
        patch.setattr("PIL.TiffImagePlugin.warnings.warn", lambda *_, **__: None)
        for suffix in ("jpg", "png", "webp"):
            PICTURE.save(tmp_path / f"plain.{suffix}", quality=95)
            PICTURE.save(tmp_path / f"damaged.{suffix}", exif=data, quality=95)
            plain, damaged = (pixels_of(tmp_path / f"{name}.{suffix}") for name in ("plain", "damaged"))
            np.testing.assert_array_equal(damaged, plain)


def test_sides_are_compared_after_the_turn(tmp_path: Path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    PICTURE.resize((8, 8)).save(paths[0])
    PICTURE.save(paths[1], exif=exif(6))
    with pytest.raises(InputError, match=r"b\.png' has 32 x 48 pixels, but the first image has 8 x 8"):
        make_reader(images_of(*paths), DataConfig(input="resident"), CPU, progress=False)


@pytest.mark.parametrize("input", ["resident", "streaming"])
def test_readers_crop_the_upright_picture(input: Any, tmp_path: Path):
    PICTURE.save(tmp_path / "a.png", exif=exif(6))
    reader = make_reader(images_of(tmp_path / "a.png"), DataConfig(input=input, image_size=32), CPU, progress=False)
    expected = center_crop(Image.fromarray(np.ascontiguousarray(upright(6))), 32)
    np.testing.assert_array_equal(reader.center(torch.tensor([0]))[0].numpy(), expected)


# Transparency.


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(path: Path, bits: int, color: int, width: int, rows: list[bytes], clear: bytes) -> Path:
    """A PNG file with a tRNS chunk."""
    head = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = chunk(b"IHDR", head) + chunk(b"tRNS", clear) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


@pytest.mark.parametrize(
    ("name", "color"), [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#102030", (16, 32, 48))]
)
def test_what_is_transparent_shows_the_background_in_proportion(name: str, color: tuple[int, ...], tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True, exact=True)
    share = pixels[..., 3:] / 255
    expected = share * pixels[..., :3] + (1 - share) * np.array(color)
    for path in (tmp_path / "a.png", tmp_path / "a.webp"):
        found = pixels_of(path, decoding=Decoding(background=name))
        assert np.abs(found - expected).max() <= 1
        np.testing.assert_array_equal(found[1], pixels[1, :, :3], err_msg="what is opaque stays as it is")
        assert (found[0] == color).all()


def test_gray_with_alpha_is_on_the_background_too(tmp_path: Path):
    gray = np.stack([np.full((4, 4), 100), np.repeat([[0, 128, 255, 255]], 4, 0)], -1).astype(np.uint8)
    Image.fromarray(gray, "LA").save(tmp_path / "a.png")
    assert pixels_of(tmp_path / "a.png", channels=1)[0].tolist() == [255, 177, 100, 100]
    red = Decoding(background="red")
    assert pixels_of(tmp_path / "a.png", decoding=red)[0, 0].tolist() == [255, 0, 0]
    # The gray of red, .299 of it, by ITU-R BT.601.
    assert pixels_of(tmp_path / "a.png", channels=1, decoding=red)[0].tolist() == [76, 88, 100, 100]


def test_a_palette_may_have_a_transparent_color(tmp_path: Path):
    image = PICTURE.quantize(8)
    corner = image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=corner)
    image.save(tmp_path / "a.gif", transparency=corner)
    for path in (tmp_path / "a.png", tmp_path / "a.gif"):
        found = pixels_of(path, decoding=Decoding(background="blue"))
        assert found[0, 0].tolist() == [0, 0, 255] and found[0, 20].tolist() == [0, 250, 0]


@pytest.mark.parametrize(
    ("bits", "color", "row", "clear", "expected"),
    [
        (1, 0, b"\x40", b"\0\x01", [0, 9, 0, 0]),
        (2, 0, b"\x1b", b"\0\x02", [0, 85, 9, 255]),
        (4, 0, b"\x03\x8f", b"\0\x08", [0, 51, 9, 255]),
        (8, 0, bytes([0, 70, 71, 255]), b"\0\x46", [0, 9, 71, 255]),
        (16, 0, struct.pack(">4H", 0, 0x4600, 0x4601, 65535), b"\x46\x01", [0, 70, 9, 255]),
        (8, 2, bytes([0] * 3 + [70] * 3 + [71] * 3 + [255] * 3), b"\0\x46" * 3, [0, 9, 71, 255]),
        (
            16,
            2,
            struct.pack(">12H", *[0] * 3, *[0x4600] * 3, *[0x8000] * 3, *[65535] * 3),
            b"\x46\0" * 3,
            [0, 9, 128, 255],
        ),
    ],
    ids=["gray1", "gray2", "gray4", "gray8", "gray16", "rgb8", "rgb16"],
)
def test_one_gray_level_or_color_of_a_png_file_may_be_transparent(bits, color, row, clear, expected, tmp_path: Path):
    path = png(tmp_path / "a.png", bits, color, 4, [row], clear)
    on_nine = Decoding(background="#090909")
    assert pixels_of(path, decoding=on_nine)[0, :, 0].tolist() == expected
    assert pixels_of(path, channels=1, decoding=on_nine)[0].tolist() == expected


def test_transparent_levels_of_twelve_bits_are_those_of_the_file(tmp_path: Path):
    path = png(tmp_path / "a.png", 16, 0, 4, [struct.pack(">4H", 0, 800, 1600, 4095)], struct.pack(">H", 1600))
    found = pixels_of(path, channels=1, decoding=Decoding(bits=12, background="#090909"))
    assert found[0].tolist() == [0, 50, 9, 255]


@pytest.mark.parametrize("background", ["whit", "#12345", "#11223344", "", "rgba(1, 2, 3, 4)"])
def test_a_background_that_is_no_color_is_refused(background: str):
    with pytest.raises(InputError, match=r"^data\.background is .*, must be the name of a color such as black"):
        DataConfig(background=background)


# Caches.


def test_a_cache_is_of_one_background_and_of_one_decoder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")

    def seen(background: str) -> int:
        config = DataConfig(background=background, input="resident")
        return int(
            make_reader(images_of(tmp_path / "a.png"), config, CPU, progress=False).center(torch.tensor([0])).max()
        )

    assert [seen(name) for name in ("white", "black", "#ffffff", "gray")] == [255, 0, 255, 128]
    assert len([*cache.glob("*.npy")]) == 3, "white has two names, and is one color"
    monkeypatch.setattr(reading_config, "DECODER", 4)
    seen("white")
    assert len([*cache.glob("*.npy")]) == 4


def test_a_list_of_unreadable_files_is_of_one_decoder(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.png").write_bytes(b"no image")
    PICTURE.save(tmp_path / "b.png")
    images = images_of(tmp_path / "a.png", tmp_path / "b.png")
    for background, decoder, number in (("white", 3, 1), ("black", 3, 1), ("white", 4, 2)):
        monkeypatch.setattr("debias_ssl.data.reading.cache.DECODER", decoder)
        _, bad = without_unreadable(images, DataConfig(background=background), progress=False)
        assert [*bad] == [str(tmp_path / "a.png")]
        assert len([*cache.glob("*.json")]) == number, "the background makes no file unreadable"


# Formats.


def test_heic_photos_are_read_where_the_package_is_there(tmp_path: Path):
    pytest.importorskip("pillow_heif")
    PICTURE.save(tmp_path / "a.heic", quality=100)
    assert np.abs(pixels_of(tmp_path / "a.heic") - BLOCKS).mean() < 8


@pytest.mark.parametrize(
    "suffix", ["jpe", "jfif", "avif", "jp2", "j2k", "qoi", "tga", "mpo", "dib", "apng", "pnm", "bmp"]
)
def test_formats_that_photos_come_in_are_read(suffix: str, tmp_path: Path):
    formats = {"jpe": "JPEG", "jfif": "JPEG", "apng": "PNG", "pnm": "PPM"}
    PICTURE.save(tmp_path / f"a.{suffix}", format=formats.get(suffix))
    assert np.abs(pixels_of(tmp_path / f"a.{suffix}") - BLOCKS).mean() < 12


def test_of_a_strip_the_center_is_cropped_without_stretching_the_rest(tmp_path: Path):
    line = np.zeros((1, 20_001, 3), dtype=np.uint8)
    line[0, 9_999:10_002] = [10, 20, 30]
    Image.fromarray(line).save(tmp_path / "a.png")
    assert (center_crop(decode(str(tmp_path / "a.png")), 224) == [10, 20, 30]).all()
