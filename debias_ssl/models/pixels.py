"""Input of pretrained networks: bytes at the network's image size, normalized on its device."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

# Pictures with a larger ratio of the sides are cut before they are resized.
LONGEST = 16
# Number of images that are normalized at a time.
IN_CACHE = 8


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """The mean and the standard deviation of each channel that a network was trained with, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "N H W K"]) -> Float[Tensor, "N K H W"]:
        """(x - mean) / std, in the channels-last memory format, with the same bits as torchvision on every device."""
        number, height, width, channels = images.shape
        # Repeated for a row of pixels: with three numbers at a time, this took 2 % of the time of a small network.
        mean, std = (torch.tensor(values, device=images.device).repeat(width) for values in (self.mean, self.std))
        # A tensor, because a GPU divides by a plain number as a product with its inverse, which gives other bits.
        most = torch.tensor(255.0, device=images.device)
        rows = images.contiguous().view(number, height, width * channels)
        scaled = torch.empty(rows.shape, device=images.device)
        # A few images fit into a processor's cache; a GPU gets all at once.
        few = IN_CACHE if images.device.type == "cpu" else max(number, 1)
        for part, to in zip(rows.split(few), scaled.split(few), strict=True):
            torch.div(part, most, out=to).sub_(mean).div_(std)
        return scaled.view(images.shape).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How RGB images become bytes at a network's size. It can be sent to decoding processes."""

    transform: Callable[[Any], Any]
    """Resizes and crops a Pillow image; or uint8 tensors N x K x H x W, if `takes_tensors`."""
    is_cropped: bool
    """Whether only the central square of the shorter side is used."""
    takes_tensors: bool = False
    """Whether torch resizes, several images of one size at once."""

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "_ _ 3"]) -> UInt8[Tensor, "H W K"]:
        """An image at the network's size."""
        return self.alike([np.asarray(image)])[0]

    def alike(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[Tensor, "N H W K"]:
        """Several images of one size at the network's size."""
        seen = [middle(image) for image in images] if self.is_cropped else images
        if self.takes_tensors:
            tensors = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2)
            return self.transform(tensors).permute(0, 2, 3, 1).contiguous()
        return torch.stack([torch.from_numpy(np.array(self.transform(Image.fromarray(image)))) for image in seen])


def middle(image: UInt8[np.ndarray, "h w K"]) -> UInt8[np.ndarray, "H W K"]:
    """The middle part of a picture that is more than `LONGEST` times as long as wide; other pictures are unchanged.

    Preprocessing resizes the shorter side and crops the central square, so it does not use the rest. But it resizes the
    whole picture first: a line of 20,000 x 1 pixels would become 4.5 million x 224 pixels, which takes 5 GB. Both ends
    are cut equally, so that the center stays the center.
    """
    height, width, _ = image.shape
    most = LONGEST * min(height, width)
    top, left = (max(0, side - most) // 2 for side in (height, width))
    return image[top : height - top, left : width - left]


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
