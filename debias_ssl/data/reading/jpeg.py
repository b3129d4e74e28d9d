"""Decodes JPEG files with simplejpeg where it is installed: the same pixels as from Pillow, in less time.

Pillow and simplejpeg both decode with libjpeg-turbo. Pillow decodes every unusual file, so it alone decides what can be
read, and how.
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
# Before a segment of EXIF or XMP data, which may say that the picture is turned.
APP1 = b"\xff\xe1"
# Others (CMYK, YCCK) have rules of their own in Pillow.
COLORS = ("YCbCr", "Gray")


def plain_jpeg(path: str, most: int) -> UInt8[np.ndarray, "H W 3"] | None:
    """The pixels of a JPEG file as RGB; None for all other files, and where there is anything to say about it.

    Args:
        path: of a file, or a member of a shard.
        most: pixels that may be decoded.

    Raises:
        StoppedError: the shard is gone or has changed.
    """
    data = None if simplejpeg is None else _jpeg_at(path)
    if simplejpeg is None or data is None or (APP1 in data and _is_turned(data)):
        return None
    # A ValueError at every warning of libjpeg's: a file that is cut off or damaged.
    with suppress(ValueError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors in COLORS and height * width <= most:
            return simplejpeg.decode_jpeg(data, "RGB")
    return None


def _jpeg_at(path: str) -> bytes | None:
    """A whole file, if it begins as JPEG files do."""
    if isinstance(path, Member):
        data = read_member(path)
        return data if data.startswith(START) else None
    with suppress(OSError), open(path, "rb", buffering=0) as file:
        start = file.read(len(START))
        return start + file.readall() if start == START else None
    return None


def _is_turned(data: bytes) -> bool:
    """Whether a picture does not stand as it is in its file, or what it says of that cannot be read."""
    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # Pillow's readers of damaged data raise nearly anything
        return True
