"""Images as pretrained networks take them: bytes at the network's size, which are normalized on its device."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

# How many times as long as wide a picture may be before it is resized whole.
LONGEST = 16


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """The mean and the standard deviation of each channel that a network was trained with, with pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: UInt8[Tensor, "N H W K"]) -> Float[Tensor, "N K H W"]:
        """(x - mean) / std, in the channels-last memory format, with the bits of torchvision's on every device."""
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        # By a tensor: by a plain number, a GPU multiplies with its inverse, which gives other bits.
        scaled = images.permute(0, 3, 1, 2).float().div_(torch.tensor(255.0, device=images.device))
        return scaled.sub_(mean).div_(std)


def pixels(image: Image.Image) -> UInt8[Tensor, "H W K"]:
    """The bytes of an image."""
    return torch.from_numpy(np.array(image))


def middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than `LONGEST` times as long as wide, and of others the whole.

    Preprocessing that resizes the shorter side and crops the central square sees no more of it; but it resizes the
    whole picture first, and a line of 20,000 x 1 pixels would become one of 4.5 million x 224, which takes 5 GB. Both
    ends lose as much, so that the center stays where it is.
    """
    most = LONGEST * min(image.size)
    left, top = (max(0, side - most) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
