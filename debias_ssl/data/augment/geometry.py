"""RandAugment's geometric operations: one affine matrix and one resampling for each image."""

import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int, UInt8
from torch import Tensor


def affine_matrices(
    operation: Int[Tensor, " N"], v: Int[Tensor, " N"], height: int, width: int
) -> Float32[Tensor, "N 2 3"]:
    """Matrices that map an output pixel (x, y, 1), relative to the center, to its source, in units of grid_sample.

    Args:
        operation: index into GEOMETRIC; other numbers get the identity.
        v: magnitude with a sign. A positive one rotates clockwise by 30 v / 10 degrees about the center. It shears by
            0.3 v / 10 about the upper left corner, as FixMatch's code does (`Image.transform` of PIL). It translates
            to the right or down by int(0.3 v / 10 * side) pixels.
    """
    rotate, shear_x, shear_y, right, down = (v.double() * (operation == GEOMETRIC.index(name)) for name in GEOMETRIC)
    cos, sin = torch.cos(torch.deg2rad(3 * rotate)), torch.sin(torch.deg2rad(3 * rotate))
    # A shear about the corner is a shear about the center plus a constant.
    x = torch.stack([cos, sin + 0.03 * shear_x, 0.03 * shear_x * height / 2 - (3 * right * width / 100).trunc()], -1)
    y = torch.stack([0.03 * shear_y - sin, cos, 0.03 * shear_y * width / 2 - (3 * down * height / 100).trunc()], -1)
    return torch.stack([x.float() / (width / 2), y.float() / (height / 2)], 1)


def resample(images: UInt8[Tensor, "N H W K"], matrix: Float32[Tensor, "N 2 3"]) -> UInt8[Tensor, "N H W K"]:
    """The nearest source pixel of each output pixel; black outside the image."""
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device).sub((height - 1) / 2)[:, None, None]
    x = torch.arange(width, device=images.device).sub((width - 1) / 2)[:, None]
    by_x, by_y, constant = matrix[:, None, None].unbind(-1)
    # Not a matrix product: its rounding may depend on the number of images.
    grid = by_x * x + by_y * y + constant
    source = images.permute(0, 3, 1, 2).float()
    result = F.grid_sample(source, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return result.to(torch.uint8).permute(0, 2, 3, 1)


GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
