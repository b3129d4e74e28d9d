"""Pixels of images by position: from memory, from files decoded once (resident), or decoded as needed (streaming)."""

import hashlib
import json
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Num, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from debias_ssl.data.datasets import DataConfig, Images
from debias_ssl.data.features import find_features
from debias_ssl.data.shard_index import Member
from debias_ssl.data.shards import OpenMember, ShardedNames, on_disk
from debias_ssl.errors import InputError
from debias_ssl.files import cache_folder, read_array, replacing, write_aside

# What fits well into the memory of a GPU beside a model.
RESIDENT_BYTES = 4 * 2**30
# ImageNet's custom: evaluation crops 224 of 256 pixels.
EVALUATION_CROP = 0.875
NUM_CROP_NUMBERS = 4
# What Pillow's readers of damaged files have been seen to raise.
UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, OverflowError, EOFError, struct.error)
UNREADABLE += (zlib.error, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)
# Of the checksum after an array in the cache.
CHECK_BYTES = 4


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


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Gives batches N H W K of some images by position: uint8 pixels, or features with one row and one column."""

    pixels: Num[Tensor, "N H W K"] | None
    """All of them, or None where `files` are decoded at each call."""
    files: Sequence[str]
    config: DataConfig
    channels: int = 3
    """Of decoded files."""
    side: int | None = None
    """Pixels that the sides of files must have; None where they are resized."""

    @property
    def is_resident(self) -> bool:
        return self.pixels is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.center(torch.tensor([0])).shape
        return height, width, channels

    def center(self, index: Int[Tensor, " N"]) -> Num[Tensor, "N H W K"]:
        """The images without any augmentation."""
        if self.pixels is not None:
            return self.pixels[index.to(self.pixels.device, non_blocking=True)]
        share = EVALUATION_CROP if self.config.crop == "resized" else 1.0
        assert self.config.image_size is not None
        return _stack([center_crop(image, self.config.image_size, share) for image in self._decoded(index)])

    def crops(self, index: Int[Tensor, " N"], numbers: Sequence[Float[Tensor, "N 4"]]) -> list[Num[Tensor, "N H W K"]]:
        """The images once for each view, cropped and resized as the view's `numbers` say."""
        assert self.config.image_size is not None
        images = self._decoded(index)
        size, scale = self.config.image_size, self.config.crop_scale
        return [
            _stack([random_crop(image, size, row, scale) for image, row in zip(images, view, strict=True)])
            for view in numbers
        ]

    def _decoded(self, index: Int[Tensor, " N"]) -> list[Image.Image]:
        return [decode(self.files[i], self.channels, self.side) for i in _integers(index)]


def make_reader(images: Images, config: DataConfig, device: torch.device, progress: bool = True) -> Reader:
    """A reader of images, resident on `device` if they are small enough and nothing else is asked for."""
    if config.features:
        return feature_reader(images, config, device)
    if images.pixels is not None:
        if config.image_size not in (None, images.pixels.shape[1]) or config.crop == "resized":
            raise InputError("data.image_size and data.crop 'resized' are for image files, not for arrays: remove them")
        return Reader(pixels=torch.from_numpy(images.pixels).to(device), files=(), config=config)
    if config.crop == "resized" and config.image_size is None:
        raise InputError("data.crop 'resized' needs data.image_size")
    side = _common_size(images.names) if config.image_size is None else None
    size = config.image_size or side
    assert size is not None
    config = replace(config, image_size=size)
    # Shards are for what one machine does not hold.
    small = len(images) * size * size * 3 <= RESIDENT_BYTES and not isinstance(images.names, ShardedNames)
    if config.crop == "resized" or config.input == "streaming" or (config.input == "auto" and not small):
        if config.crop == "resized" and config.input == "resident":
            raise InputError("data.crop 'resized' reads files anew for each view: set data.input to streaming or auto")
        return Reader(pixels=None, files=images.names, config=config, side=side)
    pixels = _decoded(images.names, size, side, config, progress)
    return Reader(pixels=torch.from_numpy(pixels).to(device), files=(), config=config)


def feature_reader(images: Images, config: DataConfig, device: torch.device) -> Reader:
    """A reader of the images' features, as images of one pixel whose channels they are."""
    features = torch.from_numpy(find_features(config.features, images.names))
    return Reader(pixels=features[:, None, None].to(device), files=images.names, config=config)


def _integers(index: Int[Tensor, " N"]) -> list[int]:
    return index.tolist()


def _stack(images: list[UInt8[np.ndarray, "H W K"]]) -> UInt8[Tensor, "N H W K"]:
    return torch.from_numpy(np.stack(images))


def _common_size(files: Sequence[str]) -> int:
    """Side of the first image, which must be square; that the others are like it is found when they are decoded."""
    width, height = decode(files[0]).size
    if width != height:
        raise InputError(f"{files[0]!r} has {width} x {height} pixels: set data.image_size to the side to crop to")
    return width


def _cache_key(files: Sequence[str], *settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for file in on_disk(files):
        path = os.path.abspath(file.path)
        fields = (path, file.size, file.mtime_ns, *file.part)
        digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _decoded(
    files: Sequence[str], size: int, side: int | None, config: DataConfig, progress: bool
) -> UInt8[np.ndarray, "N H W K"]:
    """All images, decoded, from a file of the cache; it is made if it is not there or not whole."""
    path = cache_folder(config.cache) / f"{_cache_key(files, size, side)}.npy"
    shape = (len(files), size, size, 3)
    found = _whole_array(path, shape)
    if found is not None:
        return found
    decoded = in_threads(lambda file: center_crop(decode(file, side=side), size), files)
    try:
        # Written, not mapped: where a disk is full, a write is an error, and a mapped page the end of the process.
        with replacing(path) as aside, aside.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            check = 0
            for pixels in tqdm(decoded, "decoding", len(files), disable=not progress, unit="img", leave=False):
                image = np.ascontiguousarray(pixels).tobytes()
                check = zlib.crc32(image, check)
                file.write(image)
            file.write(check.to_bytes(CHECK_BYTES))
    except OSError as error:
        raise InputError(f"cannot write to {str(path.parent)!r}: {error.strerror}; set data.cache") from error
    found = _whole_array(path, shape)
    if found is None:
        raise InputError(f"{str(path)!r} is not what was written to it: set data.cache to a folder on another disk")
    return found


def _whole_array(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N H W K"] | None:
    """A mapped array of the cache, if it is there, of this shape, and as it was written."""
    try:
        array = read_array(path, "c")
        with path.open("rb") as file:
            file.seek(-CHECK_BYTES, os.SEEK_END)
            check = int.from_bytes(file.read())
    except (OSError, ValueError):
        return None
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
        return None
    found = 0
    for image in array:
        found = zlib.crc32(np.ascontiguousarray(image).data, found)
    return np.asarray(array) if found == check else None


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


def _listed(path: Path) -> dict[str, str] | None:
    """Files and reasons as they were written; None where there is no such list, or it is damaged."""
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return listed if isinstance(listed, dict) and all(isinstance(why, str) for why in listed.values()) else None


def without_unreadable(images: Images, config: DataConfig, progress: bool = True) -> tuple[Images, dict[str, str]]:
    """The images that can be decoded, and why the others cannot; the finding is cached."""
    if images.pixels is not None:
        return images, {}
    bad: dict[str, str] = {}
    groups = [*images.names.groups()] if isinstance(images.names, ShardedNames) else [images.names]
    # Several processes that begin together go different ways, and find what the others have done.
    for names in random.SystemRandom().sample(groups, len(groups)):
        known = cache_folder(config.cache) / f"{_cache_key(names, 'unreadable')}.json"
        found = _listed(known)
        if found is None:
            found = unreadable(names, progress)
            write_aside(known, json.dumps(found))
        bad |= found
    if 0 < len(images) == len(bad):
        raise InputError(f"none of {len(images)} images can be read, such as {images.names[0]!r}")
    return images.part([i for i, name in enumerate(images.names) if name not in bad]) if bad else images, bad
