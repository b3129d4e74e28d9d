"""Makes weak and strong views of a batch of uint8 images, on its device; normalizes images and features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int, Num, UInt8
from torch import Tensor

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.randaugment import rand_augment_
from debias_ssl.data.sampling.keyed import whole

GRAY = 127
# uint8 images, or floating-point features of images, which have one row and one column.
Pixels = Num[Tensor, "N H W K"]
# Number of uniform numbers that each part of a view uses.
WEAK_NUMBERS = 3
ROUND_NUMBERS = 4
CUTOUT_NUMBERS = 2


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Mean and standard deviation of each channel, with pixels in [0, 1], or of each feature."""

    mean: Float[Tensor, " K"]
    std: Float[Tensor, " K"]

    @staticmethod
    def of(mean: Sequence[float], std: Sequence[float], device: torch.device) -> "Normalization":
        return Normalization(mean=torch.tensor(mean, device=device), std=torch.tensor(std, device=device))


def num_numbers(config: AugmentConfig) -> int:
    """Number of uniform numbers that a strong view uses for each image; a weak view uses the first three."""
    return WEAK_NUMBERS + ROUND_NUMBERS * config.num_ops + CUTOUT_NUMBERS


def weak_input(
    images: UInt8[Tensor, "N H W K"],
    numbers: Float[Tensor, "N 3"],
    config: AugmentConfig,
    normalization: Normalization,
) -> Float32[Tensor, "N K H W"]:
    """A normalized weak view of pixels."""
    return normalize(weak(images, numbers, config), normalization)


def strong_input(
    images: UInt8[Tensor, "N H W K"],
    numbers: Float[Tensor, "N M"],
    config: AugmentConfig,
    normalization: Normalization,
) -> Float32[Tensor, "N K H W"]:
    """A normalized strong view of pixels."""
    return normalize(strong(images, numbers, config), normalization)


def weak(
    images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 3"], config: AugmentConfig
) -> UInt8[Tensor, "N H W K"]:
    """Random horizontal flip, then a random shift with reflected borders.

    Args:
        images: on any device.
        numbers: uniform on [0, 1), on the CPU: for the flip, the vertical and the horizontal shift.
    """
    num, height, width, _ = images.shape
    # On a GPU, positions are computed there: the processor would start threads for operations on so few numbers.
    flip, down, right = numbers.to(images.device, non_blocking=True).unbind(1)
    y = reflected(moved(down, height, config.shift), height)
    x = reflected(moved(right, width, config.shift), width)
    if config.flip:
        x = torch.where(flip[:, None] < 0.5, width - 1 - x, x)
    rows = height * torch.arange(num, device=images.device)[:, None] + y
    pixels = width * rows[:, :, None] + x[:, None, :]
    return images.reshape(-1, images.shape[-1]).index_select(0, pixels.flatten()).view_as(images)


def strong(
    images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N M"], config: AugmentConfig
) -> UInt8[Tensor, "N H W K"]:
    """A weak view, then rounds of RandAugment, then Cutout.

    Args:
        images: on any device.
        numbers: uniform on [0, 1), on the CPU, `num_numbers` of them for each image.
    """
    first, *rounds, last = numbers.split([WEAK_NUMBERS, *[ROUND_NUMBERS] * config.num_ops, CUTOUT_NUMBERS], dim=1)
    views = weak(images, first, config)
    for each_round in rounds:
        rand_augment_(views, each_round, config)
    return cut_out_(views, last, config.cutout)


def normalize(images: Pixels, normalization: Normalization) -> Float32[Tensor, "N K H W"]:
    """(x - mean) / std with pixels in [0, 1], in the channels-last memory format that the images already have."""
    # In rows of pixels: arithmetic on the few numbers of single pixels takes twice as long.
    number, height, width, channels = images.shape
    mean, std = normalization.mean.repeat(width), normalization.std.repeat(width)
    rows = images.reshape(number, height, width * channels)
    scaled = rows.to(torch.float32, copy=True) if rows.is_floating_point() else rows.div(255)
    return scaled.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


def moved(numbers: Float[Tensor, " N"], side: int, fraction: float) -> Int[Tensor, "N side"]:
    """The positions 0..side-1 plus a shift that is uniform on -s..s, with s = int(fraction * side)."""
    largest = int(fraction * side)
    return torch.arange(side, device=numbers.device) + whole(numbers, 2 * largest + 1)[:, None] - largest


def reflected(index: Int[Tensor, "N L"], side: int) -> Int[Tensor, "N L"]:
    """Positions up to one side outside the image, reflected at the outermost pixels, which are not repeated."""
    last = side - 1
    return last - (last - index.abs()).abs()


def cut_out_(
    images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 2"], fraction: float
) -> UInt8[Tensor, "N H W K"]:
    """Paints a gray square around a uniformly drawn pixel, in place. The square may extend beyond the image."""
    number, height, width, channels = images.shape
    size = int(fraction * min(height, width))
    # The mask is 255 inside, 0 outside. Bit operations take 0.33 times as long as `masked_fill_`.
    inside_y, inside_x = (
        covered(whole(position, side) - size // 2, size, side).view(torch.uint8).neg_().repeat_interleave(times, 1)
        for position, side, times in zip(
            numbers.to(images.device, non_blocking=True).unbind(1), (height, width), (1, channels), strict=True
        )
    )
    inside = inside_y[:, :, None] & inside_x[:, None, :]
    rows = images.view(number, height, width * channels)
    rows.bitwise_and_(~inside).bitwise_or_(inside & GRAY)
    return images


def covered(start: Int[Tensor, " N"], size: int, side: int) -> Bool[Tensor, "N side"]:
    """Whether each of the positions 0..side-1 lies in start..start+size-1."""
    offset = torch.arange(side, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < size)
