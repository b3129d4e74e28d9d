"""Decodes JPEG files with simplejpeg, if it is installed: the same pixels as from Pillow, in less time.

Pillow and simplejpeg both decode with libjpeg-turbo. Pillow decodes all unusual files, so simplejpeg changes neither
results nor errors.
"""

from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import read_member

simplejpeg = import_module("simplejpeg") if find_spec("simplejpeg") is not None else None
START = b"\xff\xd8\xff"
# Marks a segment of EXIF or XMP data, which may say that the picture is rotated.
APP1 = b"\xff\xe1"
# Pillow has special rules for other color spaces (CMYK, YCCK).
COLORS = ("YCbCr", "Gray")


def plain_jpeg(path: str, most: int) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of a JPEG file as RGB; None for all other files, and for JPEG files that need an error or a note.

    Args:
        path: the path of a file, or a member of a shard.
        most: largest number of pixels.

    Raises:
        StoppedError: the shard is gone or has changed.
    """
    data = None if simplejpeg is None else _jpeg_at(path)
    if simplejpeg is None or data is None or (APP1 in data and _is_turned(data)):
        return None
    # simplejpeg raises ValueError at every warning of libjpeg, as for truncated or damaged files.
    with suppress(ValueError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in COLORS and height * width <= most:
            return simplejpeg.decode_jpeg(data, "RGB")
    return None


def _jpeg_at(path: str) -> bytes | None:
    """The bytes of a file, if it begins like a JPEG file."""
    if isinstance(path, Member):
        data = read_member(path)
        return data if data.startswith(START) else None
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        start = file.read(len(START))
        return start + file.readall() if start == START else None
    return None


def _is_turned(data: bytes) -> bool:
    """Whether a picture must be rotated or mirrored, or its data about this cannot be read."""
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow's readers of damaged data raise nearly anything
        return True
