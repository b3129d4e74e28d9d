"""Decodes image files to pixels with Pillow (RGB or gray, 8 or 16 bits, rotation, transparency), and crops them."""

import importlib.util
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Lock
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.reading.config import STANDARD, Decoding
from debias_ssl.data.reading.jpeg import plain_jpeg
from debias_ssl.data.sources.left_out import HEIF
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import OpenMember
from debias_ssl.system.errors import InputError

NUM_CROP_NUMBERS = 4
# Pillow warns of images with more pixels, and refuses images with more than twice as many.
LARGE = Image.MAX_IMAGE_PIXELS or 89_478_485
# Tags of TIFF files.
BITS_PER_SAMPLE, MAX_SAMPLE_VALUE = 258, 281
# Exceptions of Pillow's readers for damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, OverflowError, EOFError, struct.error)
UNREADABLE += (zlib.error, MemoryError)
# Pillow multiplies the gray levels of PNG files with 2 and 4 bits by these factors.
LEVELS = {"L;2": 85, "L;4": 17}
# Such EXIF data is ignored, and the picture is read.
warnings.filterwarnings("ignore", "Corrupt EXIF data")
if importlib.util.find_spec(HEIF) is not None:
    importlib.import_module(HEIF).register_heif_opener()


def decode(path: str, channels: int = 3, side: int | None = None, decoding: Decoding = STANDARD) -> Image.Image:
    """An RGB image, or with one channel a gray one, from a file or from a member of a shard.

    It is rotated by its EXIF orientation, and transparent pixels show the background.

    Raises:
        InputError: the file cannot be read as an image, or is not a square of `side` pixels, if `side` is given.
        StoppedError: the shard is gone or has changed.
    """
    pixels = plain_jpeg(path, decoding.max_pixels or LARGE)
    mode = "RGB" if channels == 3 else "L"
    image = _by_pillow(path, mode, decoding) if pixels is None else Image.fromarray(pixels).convert(mode)
    if side is not None and image.size != (side, side):
        raise InputError(
            f"{path!r} has {image.width} x {image.height} pixels, but the first image has {side} x {side}: set "
            "data.image_size to the side to crop to"
        )
    return image


def decoded(path: str, decoding: Decoding = STANDARD) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of `decode` in RGB; faster for JPEG files, which need no Pillow image."""
    pixels = plain_jpeg(path, decoding.max_pixels or LARGE)
    return np.asarray(_by_pillow(path, "RGB", decoding)) if pixels is None else pixels


def _by_pillow(path: str, mode: str, decoding: Decoding) -> Image.Image:
    try:
        with _opened(path, decoding) as file:
            _check_bits(file, decoding.bits)
            _scale_transparent(file)
            _turn(file)
            image = _flat(_eight_bits(file, decoding.bits), decoding.color)
            return image.convert(mode)
    except UNREADABLE as error:
        raise InputError(
            f"cannot read image {path!r}: {error}; remove it or skip it (--on_error skip, train: --data.on_error skip)"
        ) from error


@contextmanager
def _opened(path: str, decoding: Decoding) -> Iterator[Image.Image]:
    """An image after its header was read and its size was checked."""
    with _LIMITS.lifted(), Image.open(OpenMember(path) if isinstance(path, Member) else path) as image:
        number = image.width * image.height
        if number > (decoding.max_pixels or 2 * LARGE):
            raise ValueError(
                f"it has {number:,} pixels, more than max_pixels, {decoding.max_pixels or 2 * LARGE:,}: if it may "
                f"have them, allow as many (--max_pixels {number}, train: --data.max_pixels {number})"
            )
        if number > LARGE and decoding.max_pixels is None:
            _tell_large(path, number)
        yield image


class _PillowsLimits:
    """Lifts Pillow's limit of pixels, which is one for the whole process, during calls that check their own limit."""

    def __init__(self):
        self.lock, self.users, self.before = Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def lifted(self) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    Image.MAX_IMAGE_PIXELS = self.before


_LIMITS, _LARGE_TOLD = _PillowsLimits(), Event()


def _tell_large(path: str, number: int) -> None:
    """Prints, for the first large file in a process, a note with the setting that allows it."""
    if not _LARGE_TOLD.is_set():
        _LARGE_TOLD.set()
        print(
            f"note: {path!r} has {number:,} pixels, and decoding it takes {3 * number / 2**30:.1f} GiB; to allow "
            f"that without this note, pass --max_pixels {number} (train: --data.max_pixels {number})",
            file=sys.stderr,
        )


def _has_sixteen_bits(image: Image.Image) -> bool:
    """Whether it is a gray image with unsigned 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _first_number(tag: Any) -> int:
    """The first number of a tag; 0 for other values, as in damaged files."""
    value = tag[0] if isinstance(tag, tuple) and tag else tag
    return value if isinstance(value, int) else 0


def _own_bits(image: Image.Image) -> int:
    """How many of the 16 bits the picture uses, according to its file.

    Only TIFF files can use fewer: a PNG file with fewer significant bits (sBIT) has them at the upper end of the 16,
    and Pillow scales PGM files by their largest value. The largest value in a TIFF file may be a mere statistic, so it
    is used only if it is the largest value of a whole number of bits.
    """
    tags: Any = getattr(image, "tag_v2", {})
    bits, largest = (_first_number(tags.get(tag)) for tag in (BITS_PER_SAMPLE, MAX_SAMPLE_VALUE))
    if largest in [2**number - 1 for number in range(8, 16)]:
        return largest.bit_length()
    return bits if bits in range(8, 16) else 16


def _eight_bits(image: Image.Image, bits: int | None) -> Image.Image:
    """Scales values to 0..255 that Pillow would clip: 16 bits by their bits, others by smallest and largest value."""
    if _has_sixteen_bits(image):
        shift = (bits or _own_bits(image)) - 8
        values = np.asarray(image, dtype=np.int32)
        gray = Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8))
        if isinstance(clear := image.info.get("transparency"), int):
            gray.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return gray
    if image.mode in ("I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        if not np.isfinite(pixels).all():
            raise ValueError("its pixels are not all numbers")
        low, high = pixels.min(), pixels.max()
        return Image.fromarray(((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    return image


def _check_bits(image: Image.Image, bits: int | None) -> None:
    """Raises ValueError if `bits` cannot apply. The image must not be loaded yet, because it then forgets its file."""
    if bits not in (None, 16) and not _has_sixteen_bits(image) and any(";16" in mode for mode in _raw_modes(image)):
        raise ValueError(
            f"its colors have 16 bits, and Pillow reads only the upper 8: write it with 8 bits, bits {bits} is for gray"
        )


def _raw_modes(image: Image.Image) -> list[str]:
    """The raw modes of the parts of a file that is not loaded yet."""
    return [str(tile[-1]) for tile in getattr(image, "tile", ())]


def _scale_transparent(image: Image.Image) -> None:
    """Scales the transparent color of a PNG file like its pixels; Pillow does not scale it."""
    clear = image.info.get("transparency")
    for mode in _raw_modes(image) if image.format == "PNG" else ():
        if isinstance(clear, int):
            # For images of one bit, newer versions of Pillow scale it.
            image.info["transparency"] = bool(clear) * 255 if mode == "1" else clear * LEVELS.get(mode, 1)
        elif isinstance(clear, tuple) and ";16" in mode:
            # Pillow also reads only the upper eight bits of the pixels.
            image.info["transparency"] = tuple(value >> 8 for value in clear)


def _turn(image: Image.Image) -> None:
    """Rotates and mirrors an image according to its EXIF or XMP data; damaged data is ignored."""
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        # With a file name, Pillow 13.0 would map the file with the sides of the rotated picture, and scramble its rows.
        image.filename = ""
    image.load()
    with suppress(*UNREADABLE):
        ImageOps.exif_transpose(image, in_place=True)


def _flat(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """The image without transparency, on a background of this color."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image.convert("RGBA"))


def center_crop(image: Image.Image, size: int, share: float = 1.0) -> UInt8[np.ndarray, "H W K"]:
    """The square in the center of an image, `share` of the shorter side, resized to `size` pixels."""
    bleed = (1 - share) / 2
    return _array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed))


def random_crop(
    image: Image.Image, size: int, numbers: Float[Tensor, " 4"], scale: tuple[float, float]
) -> UInt8[np.ndarray, "H W K"]:
    """A random part of an image resized to a square: area uniform in `scale`, aspect ratio log-uniform in 3/4..4/3.

    A side longer than that of the image is shortened to it, so that four random numbers are enough for every crop.
    """
    area, aspect, top, left = numbers.tolist()
    area = (scale[0] + area * (scale[1] - scale[0])) * image.width * image.height
    aspect = (3 / 4) ** (1 - 2 * aspect)
    height = min(image.height, max(1, round((area / aspect) ** 0.5)))
    width = min(image.width, max(1, round((area * aspect) ** 0.5)))
    top, left = int(top * (image.height - height + 1)), int(left * (image.width - width + 1))
    box = (left, top, left + width, top + height)
    return _array(image.resize((size, size), Image.Resampling.BILINEAR, box))


def _array(image: Image.Image) -> UInt8[np.ndarray, "H W K"]:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def in_threads(function: Callable, items: Sequence) -> Iterator:
    """Results in order. Threads are enough, because decoding releases Python's lock."""
    with ThreadPoolExecutor() as pool:
        # In blocks, so that results do not accumulate if they are consumed more slowly.
        for start in range(0, len(items), 1024):
            yield from pool.map(function, items[start : start + 1024])


def largest_of_sixteen(path: str, decoding: Decoding = STANDARD) -> tuple[int, int] | None:
    """The largest value in a gray image with 16 bits, and the number of bits that is assumed; None for other images."""
    try:
        with _opened(path, decoding) as image:
            if not _has_sixteen_bits(image):
                return None
            return int(np.asarray(image, dtype=np.int32).max()), decoding.bits or _own_bits(image)
    except UNREADABLE:
        return None


def unreadable(files: Sequence[str], progress: bool = True, decoding: Decoding = STANDARD) -> dict[str, str]:
    """The files that cannot be decoded, with the reasons."""

    def reason(file: str) -> str | None:
        try:
            decode(file, decoding=decoding)
        except InputError as error:
            return str(error.__cause__)
        return None

    reasons: Iterable = tqdm(
        in_threads(reason, files), "checking", len(files), disable=not progress, unit="img", leave=False
    )
    return {file: why for file, why in zip(files, reasons, strict=True) if why is not None}
