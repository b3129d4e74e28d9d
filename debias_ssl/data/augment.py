"""Weak, strong and eval views of a batch of uint8 images, or of features of images, on the device that they are on."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Num, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from debias_ssl.errors import check_settings, not_negative, share

GRAY = 127
# uint8 images, or floating-point features of images, which have one row and one column.
Pixels = Num[Tensor, "N H W K"]
# How many uniform numbers each part of a view consumes.
WEAK_NUMBERS = 3
ROUND_NUMBERS = 4
CUTOUT_NUMBERS = 2


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Weak and strong views as in FixMatch (arXiv 2001.07685).

    Args:
        flip: Mirror left and right with probability one half.
        shift: Largest shift as a fraction of the side; the border is filled by reflection.
        num_ops: RandAugment operations per strong view (arXiv 1909.13719).
        op_probability: Probability with which each drawn operation is applied.
        magnitude: The magnitude of an operation is uniform on 1..magnitude-1, out of 10.
        cutout: Side of the gray square as a fraction of the image's side (arXiv 1708.04552); 0 turns it off.
        feature_noise: Where images are given as features: deviation of the noise that a strong view adds to each
            feature, in units of the feature's own deviation over images. A weak view is the features as they are.
        feature_dropout: Probability with which a strong view replaces a feature by its mean.
    """

    flip: bool = True
    shift: float = 0.125
    num_ops: int = 2
    op_probability: float = 0.5
    magnitude: int = 10
    cutout: float = 0.5
    feature_noise: float = 0.5
    feature_dropout: float = 0.2

    def __post_init__(self):
        check_settings(
            self,
            "data.augment.",
            shift=(0 <= self.shift < 1, "in [0, 1)"),
            num_ops=not_negative,
            op_probability=share,
            magnitude=(2 <= self.magnitude <= 11, "from 2 to 11"),
            cutout=(0 <= self.cutout <= 2, "in [0, 2]"),
            feature_noise=not_negative,
            feature_dropout=(0 <= self.feature_dropout < 1, "in [0, 1)"),
        )


def num_numbers(config: AugmentConfig, images: Pixels) -> int:
    """How many uniform numbers a strong view consumes per image; a weak view of pixels consumes the first three."""
    if images.is_floating_point():
        return 3 * images.shape[-1]
    return WEAK_NUMBERS + ROUND_NUMBERS * config.num_ops + CUTOUT_NUMBERS


def weak_input(
    images: Pixels,
    numbers: Float[Tensor, "N 3"],
    config: AugmentConfig,
    mean: Float[Tensor, " K"],
    std: Float[Tensor, " K"],
) -> Float32[Tensor, "N K H W"]:
    """A weak view as the network takes it."""
    return normalize(images if images.is_floating_point() else weak(images, numbers, config), mean, std)


def strong_input(
    images: Pixels,
    numbers: Float[Tensor, "N M"],
    config: AugmentConfig,
    mean: Float[Tensor, " K"],
    std: Float[Tensor, " K"],
) -> Float32[Tensor, "N K H W"]:
    """A strong view as the network takes it."""
    if images.is_floating_point():
        return perturb(normalize(images, mean, std), numbers, config)
    return normalize(strong(images, numbers, config), mean, std)


def weak(
    images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 3"], config: AugmentConfig
) -> UInt8[Tensor, "N H W K"]:
    """Random horizontal flip, then a random shift with reflected borders.

    Args:
        images: on any device.
        numbers: uniform on [0, 1), on the CPU: for the flip, the vertical and the horizontal shift.
    """
    num, height, width, _ = images.shape
    flip, down, right = numbers.unbind(1)
    y = reflected(moved(down, height, config.shift), height)
    x = reflected(moved(right, width, config.shift), width)
    if config.flip:
        x = torch.where(flip[:, None] < 0.5, width - 1 - x, x)
    y, x = (index.to(images.device, non_blocking=True) for index in (y, x))
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


def perturb(
    features: Float32[Tensor, "N D 1 1"], numbers: Float[Tensor, "N M"], config: AugmentConfig
) -> Float32[Tensor, "N D 1 1"]:
    """Adds normal noise to features of mean 0 and deviation 1, then drops some; 3 D uniform numbers for each image."""
    kept, radius, angle = numbers.to(features.device, non_blocking=True).unflatten(1, (3, -1)).unbind(1)
    # Box and Muller's normal numbers: torch's own would not be a function of the key.
    noise = (-2 * (1 - radius).log()).sqrt() * torch.cos(2 * torch.pi * angle)
    noisy = features + config.feature_noise * noise[..., None, None]
    return noisy * (kept >= config.feature_dropout)[..., None, None]


def normalize(images: Pixels, mean: Float[Tensor, " K"], std: Float[Tensor, " K"]) -> Float32[Tensor, "N K H W"]:
    """(x - mean) / std with pixels in [0, 1], in the channels-last memory format that the images already have."""
    scaled = images.float() if images.is_floating_point() else images.div(255)
    return scaled.sub(mean).div_(std).permute(0, 3, 1, 2)


def whole(numbers: Float[Tensor, " N"], length: int) -> Int[Tensor, " N"]:
    """Whole numbers, uniform on 0..length-1."""
    return (numbers * length).long()


def moved(numbers: Float[Tensor, " N"], side: int, fraction: float) -> Int[Tensor, "N side"]:
    """The positions 0..side-1 plus a shift that is uniform on -s..s, where s = int(fraction * side)."""
    largest = int(fraction * side)
    return torch.arange(side) + whole(numbers, 2 * largest + 1)[:, None] - largest


def reflected(index: Int[Tensor, "N L"], side: int) -> Int[Tensor, "N L"]:
    """Positions less than a side outside, reflected at the outermost pixels, which are not repeated."""
    last = side - 1
    return last - (last - index.abs()).abs()


def cut_out_(
    images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 2"], fraction: float
) -> UInt8[Tensor, "N H W K"]:
    """Paints a gray square around a uniformly drawn pixel, in place; what lies outside the image is cut off."""
    height, width = images.shape[1:3]
    size = int(fraction * min(height, width))
    inside_y, inside_x = (
        covered(whole(number, side) - size // 2, size, side).to(images.device, non_blocking=True)
        for number, side in zip(numbers.unbind(1), (height, width), strict=True)
    )
    return images.masked_fill_((inside_y[:, :, None] & inside_x[:, None, :])[..., None], GRAY)


def covered(start: Int[Tensor, " N"], size: int, side: int) -> Bool[Tensor, "N side"]:
    """Which of the positions 0..side-1 lie in start..start+size-1."""
    offset = torch.arange(side) - start[:, None]
    return (offset >= 0) & (offset < size)


def rand_augment_(images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 4"], config: AugmentConfig) -> None:
    """One round of RandAugment in place: at most one operation on each image."""
    operation, level, applied, sign = numbers.unbind(1)
    index = whole(operation, len(OPERATIONS)).where(applied < config.op_probability, IDENTITY)
    magnitude = 1 + whole(level, config.magnitude - 1)
    # The choice is made on the CPU, so a GPU never has to report how many images an operation concerns.
    rows = (index != IDENTITY).nonzero().flatten()
    if len(rows) == 0:
        return
    # With images of an operation side by side, each operation takes one slice.
    rows = rows[index[rows].argsort(stable=True)]
    index, magnitude, sign = index[rows], magnitude[rows], sign[rows]
    num_color = int((index < IDENTITY).sum())
    sizes = index[:num_color].bincount(minlength=len(COLOR)).tolist()
    signed = magnitude.where(sign < 0.5, -magnitude)[num_color:]
    matrix = affine_matrices(index[num_color:], signed, images.shape[1], images.shape[2])
    rows, magnitude, matrix = (t.to(images.device, non_blocking=True) for t in (rows, magnitude[:num_color], matrix))
    before = images.index_select(0, rows)
    slices = zip(COLOR.values(), before[:num_color].split(sizes), magnitude.split(sizes), strict=True)
    after = [adjust(part, v) for adjust, part, v in slices if len(part)]
    if len(matrix):
        after.append(resample(before[num_color:], matrix))
    images.index_copy_(0, rows, torch.cat(after))


# ---- color: functions of images and their magnitudes v, with the results of torchvision's functions of one factor ----


@cache
def factor_table(device: torch.device) -> Float32[Tensor, "2 12"]:
    """The factors of magnitudes 0..11, and their rests; made once, since a GPU's queue stands still while they come."""
    factor = 0.05 + 0.9 * torch.arange(12, dtype=torch.float64) / 10
    return torch.stack([factor, 1 - factor]).float().to(device)


def factors(v: Int[Tensor, " N"]) -> tuple[Float32[Tensor, "N 1 1 1"], Float32[Tensor, "N 1 1 1"]]:
    """The factor of brightness, color, contrast and sharpness, which never exceeds 1: 0.05 + 0.9 v / 10; and its rest.

    Both are rounded once, from fp64, which Apple's GPUs do not have: they are looked up.
    """
    factor, rest = factor_table(v.device)[:, v].view(2, -1, 1, 1, 1)
    return factor, rest


def blend(
    images: UInt8[Tensor, "N H W K"], other: Float[Tensor, "#N #H #W #K"], v: Int[Tensor, " N"]
) -> UInt8[Tensor, "N H W K"]:
    """factor * images + (1 - factor) * other, with the fraction cut off."""
    factor, rest = factors(v)
    # Many exact results are whole numbers, where one rounding error decides: addcmul rounds as torchvision's add does.
    return torch.addcmul(images * factor, other, rest).to(torch.uint8)


def gray(images: UInt8[Tensor, "N H W K"]) -> Float32[Tensor, "N H W 1"]:
    return vision.rgb_to_grayscale(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).float()


def autocontrast(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    return vision.autocontrast(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def brightness(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    return (images * factors(v)[0]).to(torch.uint8)


def color(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends with the gray image; the identity on images of one channel."""
    return images if images.shape[-1] == 1 else blend(images, gray(images), v)


def contrast(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends with the mean of the gray image."""
    return blend(images, gray(images).mean((1, 2, 3), keepdim=True), v)


def equalize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    return vision.equalize(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def posterize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Keeps the 4 + int(0.4 v) leading bits."""
    mask = 256 - 2 ** (4 - 2 * v // 5)
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def sharpness(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends the inner pixels with their blur, the mean over 3 x 3 pixels of which the middle one counts five times."""
    result = images.float()
    inner = result[:, 1:-1, 1:-1]
    rows = result[:, :-2] + result[:, 1:-1] + result[:, 2:]
    blur = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner).div_(13).round_()
    # The same as `blend` but for the rounding, which is torchvision's here too.
    inner.addcmul_(blur - inner, factors(v)[1])
    return result.to(torch.uint8)


def solarize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Inverts the values from 256 - 25.6 v on."""
    threshold = 256 - 256 * v // 10
    return torch.where(images >= threshold.to(torch.uint8).view(-1, 1, 1, 1), ~images, images)


# ---- geometry: one resampling with an affine matrix for each image ----


def affine_matrices(
    operation: Int[Tensor, " N"], v: Int[Tensor, " N"], height: int, width: int
) -> Float32[Tensor, "N 2 3"]:
    """Takes an output pixel (x, y, 1), counted from the center, to where its value comes from, in grid_sample's units.

    Args:
        operation: index into OPERATIONS; those that are not geometric get the identity.
        v: magnitude with a sign. Positive ones rotate clockwise by 30 v / 10 degrees, shear by 0.3 v / 10 and
            translate to the right or down by int(0.3 v / 10 * side) pixels, as torchvision's `affine` does.
    """
    rotate, shear_x, shear_y, right, down = (v.double() * (operation == OPERATIONS.index(name)) for name in GEOMETRIC)
    cos, sin = torch.cos(torch.deg2rad(3 * rotate)), torch.sin(torch.deg2rad(3 * rotate))
    x = torch.stack([cos, sin + 0.03 * shear_x, -(3 * right * width / 100).trunc()], -1)
    y = torch.stack([0.03 * shear_y - sin, cos, -(3 * down * height / 100).trunc()], -1)
    return torch.stack([x.float() / (width / 2), y.float() / (height / 2)], 1)


def resample(images: UInt8[Tensor, "N H W K"], matrix: Float32[Tensor, "N 2 3"]) -> UInt8[Tensor, "N H W K"]:
    """The nearest source pixel of each output pixel, black where there is none."""
    height, width = images.shape[1:3]
    y = torch.arange(height, device=images.device).sub((height - 1) / 2)[:, None, None]
    x = torch.arange(width, device=images.device).sub((width - 1) / 2)[:, None]
    by_x, by_y, constant = matrix[:, None, None].unbind(-1)
    # Not a matrix product: its rounding may depend on how many images there are.
    grid = by_x * x + by_y * y + constant
    source = images.permute(0, 3, 1, 2).float()
    result = F.grid_sample(source, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return result.to(torch.uint8).permute(0, 2, 3, 1)


COLOR = {
    "autocontrast": autocontrast,
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "equalize": equalize,
    "posterize": posterize,
    "sharpness": sharpness,
    "solarize": solarize,
}
GEOMETRIC = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")
OPERATIONS = (*COLOR, "identity", *GEOMETRIC)
IDENTITY = OPERATIONS.index("identity")
