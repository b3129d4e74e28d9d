"""`Reader` returns the pixels of images by position: decoded once and kept (resident), or when needed (streaming)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, Num, UInt8
from PIL import Image
from torch import Tensor

from debias_ssl.data.reading.cache import decoded_array
from debias_ssl.data.reading.config import Decoding, ReadingConfig
from debias_ssl.data.reading.decode import center_crop, decode, random_crop
from debias_ssl.data.reading.feature_views import find_views
from debias_ssl.data.reading.features import ViewKind, find_features
from debias_ssl.data.sampling.keyed import whole
from debias_ssl.data.sources.images import Images
from debias_ssl.data.sources.shards import ShardedNames
from debias_ssl.system.errors import InputError

# Images up to this size fit into the memory of a GPU together with a model.
RESIDENT_BYTES = 4 * 2**30
# As usual for ImageNet: evaluation crops 224 of 256 pixels.
EVALUATION_CROP = 0.875


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Returns batches N H W K of images by position: uint8 pixels, or features with one row and one column."""

    pixels: Num[Tensor, "N H W K"] | None
    """All images; None if `files` are decoded at each call."""
    files: Sequence[str]
    """Paths of the images; empty if `pixels` were read from arrays or from the cache."""
    config: ReadingConfig
    channels: int = 3
    """Channels of decoded files: 3 (RGB) or 1 (gray)."""
    side: int | None = None
    """Width and height that each file must have, in pixels; None if files are resized."""

    @property
    def is_resident(self) -> bool:
        return self.pixels is not None

    @property
    def crops_at_random(self) -> bool:
        """Whether each view is a separate crop, made by `crops`."""
        return self.config.crop == "resized" and not self.config.features

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.center(torch.tensor([0])).shape
        return height, width, channels

    def center(self, index: Int[Tensor, " N"]) -> Num[Tensor, "N H W K"]:
        """The images without any augmentation."""
        if self.pixels is not None:
            # For small images, such as features, this is three times as fast as indexing with brackets.
            return self.pixels.index_select(0, index.to(self.pixels.device, non_blocking=True))
        share = evaluation_share(self.config)
        assert self.config.image_size is not None
        return _stack([center_crop(image, self.config.image_size, share) for image in self._decoded(index)])

    def crops(self, index: Int[Tensor, " N"], numbers: Sequence[Float[Tensor, "N 4"]]) -> list[Num[Tensor, "N H W K"]]:
        """The images, cropped and resized once for each view, according to the `numbers` of the view."""
        assert self.config.image_size is not None
        images = self._decoded(index)
        size, scale = self.config.image_size, self.config.crop_scale
        return [
            _stack([random_crop(image, size, row, scale) for image, row in zip(images, view, strict=True)])
            for view in numbers
        ]

    @cached_property
    def views(self) -> dict[ViewKind, Float16[Tensor, "V N D"]]:
        """Features of the views of all images, if `config` asks for them and folders have them; found on first use."""
        if self.pixels is None or not self.config.features or self.config.feature_views == "none":
            return {}
        found = find_views(self.config.features, self.files)
        return {kind: torch.from_numpy(views).to(self.pixels.device) for kind, views in found.items()}

    def view(
        self, kind: ViewKind, index: Int[Tensor, " N"], numbers: Float[Tensor, " N"]
    ) -> Float16[Tensor, "N 1 1 D"]:
        """One view of a kind for each image, chosen by the image's number in [0, 1)."""
        views = self.views[kind]
        rows = whole(numbers, len(views)) * views.shape[1] + index
        return views.flatten(0, 1).index_select(0, rows.to(views.device, non_blocking=True))[:, None, None]

    def _decoded(self, index: Int[Tensor, " N"]) -> list[Image.Image]:
        return [decode(self.files[i], self.channels, self.side, self.config.decoding) for i in _integers(index)]


def evaluation_share(config: ReadingConfig) -> float:
    """The share of the shorter side of an image that is evaluated."""
    return EVALUATION_CROP if config.crop == "resized" else 1.0


def make_reader(images: Images, config: ReadingConfig, device: torch.device, progress: bool = True) -> Reader:
    """A reader of images; resident on `device` if they are small enough and the settings do not forbid it."""
    if config.features:
        return feature_reader(images, config, device)
    if images.pixels is not None:
        if config.image_size not in (None, images.pixels.shape[1]) or config.crop == "resized":
            raise InputError("data.image_size and data.crop 'resized' are for image files, not for arrays: remove them")
        return Reader(pixels=torch.from_numpy(images.pixels).to(device), files=(), config=config)
    if config.crop == "resized" and config.image_size is None:
        raise InputError("data.crop 'resized' needs data.image_size")
    side = _common_size(images.names, config.decoding) if config.image_size is None else None
    size = config.image_size or side
    assert size is not None
    config = replace(config, image_size=size)
    # Images in shards may not fit into the memory of one machine.
    small = len(images) * size * size * 3 <= RESIDENT_BYTES and not isinstance(images.names, ShardedNames)
    if config.crop == "resized" or config.input == "streaming" or (config.input == "auto" and not small):
        if config.crop == "resized" and config.input == "resident":
            raise InputError("data.crop 'resized' reads files for each view: set data.input to streaming or auto")
        return Reader(pixels=None, files=images.names, config=config, side=side)
    pixels = decoded_array(images.names, size, side, config.decoding, config.cache, progress)
    return Reader(pixels=torch.from_numpy(pixels).to(device), files=(), config=config)


def feature_reader(images: Images, config: ReadingConfig, device: torch.device) -> Reader:
    """A reader of the images' features, as images of one pixel: the features are its channels."""
    features = torch.from_numpy(find_features(config.features, images.names))
    return Reader(pixels=features[:, None, None].to(device), files=images.names, config=config)


def _integers(index: Int[Tensor, " N"]) -> list[int]:
    return index.tolist()


def _stack(images: list[UInt8[np.ndarray, "H W K"]]) -> UInt8[Tensor, "N H W K"]:
    return torch.from_numpy(np.stack(images))


def _common_size(files: Sequence[str], decoding: Decoding) -> int:
    """Side of the first image, which must be square. The sizes of the others are checked when they are decoded."""
    width, height = decode(files[0], decoding=decoding).size
    if width != height:
        raise InputError(f"{files[0]!r} has {width} x {height} pixels: set data.image_size to the side to crop to")
    return width
