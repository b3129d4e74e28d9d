"""Image files as pixels: decoding, and crops."""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import OpenMember
from debias_ssl.system.errors import InputError

NUM_CROP_NUMBERS = 4
# What Pillow's readers of damaged files have been seen to raise.
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, OverflowError, EOFError, struct.error)
UNREADABLE += (zlib.error, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def decode(path: str, channels: int = 3, side: int | None = None) -> Image.Image:
    """An RGB image, or with one channel a gray one, from a file or from a member of a shard.

    Raises:
        InputError: the file cannot be read as an image, or is not a square of `side` pixels where that is given.
        StoppedError: the shard is gone or has changed.
    """
    source = OpenMember(path) if isinstance(path, Member) else path
    try:
        with Image.open(source) as file:
            image = _eight_bits(file).convert("RGB" if channels == 3 else "L")
    except UNREADABLE as error:
        raise InputError(
            f"cannot read image {path!r}: {error}; remove it or skip it (--on_error skip, train: --data.on_error skip)"
        ) from error
    if side is not None and image.size != (side, side):
        raise InputError(
            f"{path!r} has {image.width} x {image.height} pixels, the first image {side} x {side}: "
            "set data.image_size to the side to crop to"
        )
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """What Pillow would cut off at 255 is scaled to it instead: 16 bits by their range, other numbers by their own."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image, dtype=np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        pixels = np.asarray(image, dtype=np.float64)
        if not np.isfinite(pixels).all():
            raise ValueError("its pixels are not all numbers")
        low, high = pixels.min(), pixels.max()
        return Image.fromarray(((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    # Straight to RGB, Pillow warns; the colors are the same.
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def center_crop(image: Image.Image, size: int, share: float = 1.0) -> UInt8[np.ndarray, "H W K"]:
    """The square in the center of an image, `share` of the shorter side, resized to `size` pixels."""
    bleed = (1 - share) / 2
    return _array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed))


def random_crop(
    image: Image.Image, size: int, numbers: Float[Tensor, " 4"], scale: tuple[float, float]
) -> UInt8[np.ndarray, "H W K"]:
    """A random part of an image resized to a square: area uniform in `scale`, aspect ratio log-uniform in 3/4..4/3.

    A side longer than the image's is cut to it, so that four numbers are enough for every crop.
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
    """Results in order; decoding releases Python's lock, so threads are enough."""
    with ThreadPoolExecutor() as pool:
        # In blocks, so that results do not pile up where they are consumed more slowly.
        for start in range(0, len(items), 1024):
            yield from pool.map(function, items[start : start + 1024])


def unreadable(files: Sequence[str], progress: bool = True) -> dict[str, str]:
    """The files that cannot be decoded, with the reason."""

    def reason(file: str) -> str | None:
        try:
            decode(file)
        except InputError as error:
            return str(error.__cause__)
        return None

    reasons: Iterable = tqdm(
        in_threads(reason, files), "checking", len(files), disable=not progress, unit="img", leave=False
    )
    return {file: why for file, why in zip(files, reasons, strict=True) if why is not None}
