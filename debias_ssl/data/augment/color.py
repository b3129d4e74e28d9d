"""RandAugment's color operations, as functions of images and magnitudes."""

from functools import cache

import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

# Each operation is a function of images and their magnitudes v. Results equal those of torchvision's functions.


@cache
def factor_table(device: torch.device) -> Float32[Tensor, "2 12"]:
    """The factors of magnitudes 0..11, and 1 minus them. Cached, because a copy to a GPU would make its queue wait."""
    factor = 0.05 + 0.9 * torch.arange(12, dtype=torch.float64) / 10
    return torch.stack([factor, 1 - factor]).float().to(device)


def factors(v: Int[Tensor, " N"]) -> tuple[Float32[Tensor, "N 1 1 1"], Float32[Tensor, "N 1 1 1"]]:
    """The factor of brightness, color, contrast and sharpness, 0.05 + 0.9 v / 10 (at most 1), and 1 minus the factor.

    Both are rounded once, from fp64. They come from a table, because Apple's GPUs have no fp64.
    """
    factor, rest = factor_table(v.device)[:, v].view(2, -1, 1, 1, 1)
    return factor, rest


def blend(
    images: UInt8[Tensor, "N H W K"], other: Float[Tensor, "#N #H #W #K"], v: Int[Tensor, " N"]
) -> UInt8[Tensor, "N H W K"]:
    """factor * images + (1 - factor) * other, truncated to whole numbers."""
    factor, rest = factors(v)
    # Many exact results are whole numbers, so one rounding error changes them. addcmul rounds like torchvision's add.
    return torch.addcmul(images * factor, other, rest).to(torch.uint8)


def gray(images: UInt8[Tensor, "N H W K"]) -> Float32[Tensor, "N H W 1"]:
    """The brightness of each pixel, truncated to whole numbers."""
    if images.shape[-1] == 1:
        return images.float()
    red, green, blue = images.unbind(-1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).to(torch.uint8).unsqueeze(-1).float()


def autocontrast(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Stretches each channel to 0..255, with torchvision's arithmetic, in rows of pixels: three times as fast."""
    num, height, width, channels = images.shape
    low, high = images.amin(1).amin(1).float(), images.amax(1).amax(1).float()
    is_flat = low == high
    # `low` and `scale` are repeated for a row of pixels.
    low, scale = (
        values.repeat(1, width)[:, None]
        for values in (low.masked_fill(is_flat, 0), ((high - low) * (1 / 255)).masked_fill_(is_flat, 1))
    )
    rows = images.reshape(num, height, width * channels)
    return rows.float().sub_(low).div_(scale).clamp_(0, 255).to(torch.uint8).view(images.shape)


def brightness(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    return (images * factors(v)[0]).to(torch.uint8)


def color(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends with the gray image; the identity on images of one channel."""
    return images if images.shape[-1] == 1 else blend(images, gray(images), v)


def contrast(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends with the mean of the gray image."""
    return blend(images, gray(images).mean((1, 2, 3), keepdim=True), v)


def equalize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Equalizes the histogram of each channel like PIL: each value gets about equally many pixels.

    `step` is the number of pixels without the brightest value, divided by 255. The new value of a pixel is the number
    of darker pixels divided by `step`. A channel with few different values stays as it is.
    """
    # A channel of an image is a row.
    values = images.permute(0, 3, 1, 2).flatten(2).long()
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand_as(values)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int32, device=images.device).scatter_add_(2, values, ones)
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    darker = counts.cumsum(2, dtype=torch.int32) - counts
    new = ((darker + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    changed = torch.where(step > 0, new.gather(2, values), values).to(torch.uint8)
    return changed.view(images.permute(0, 3, 1, 2).shape).permute(0, 2, 3, 1)


def posterize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Keeps the 4 + int(0.4 v) leading bits."""
    mask = 256 - 2 ** (4 - 2 * v // 5)
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def sharpness(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Blends the inner pixels with their blur, the mean over 3 x 3 pixels with weight 5 for the middle one."""
    result = images.float()
    inner = result[:, 1:-1, 1:-1]
    rows = result[:, :-2] + result[:, 1:-1] + result[:, 2:]
    blur = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner).div_(13).round_()
    # The same as `blend`, but with torchvision's rounding.
    inner.addcmul_(blur - inner, factors(v)[1])
    return result.to(torch.uint8)


def solarize(images: UInt8[Tensor, "N H W K"], v: Int[Tensor, " N"]) -> UInt8[Tensor, "N H W K"]:
    """Inverts the values from 256 - 25.6 v on."""
    threshold = 256 - 256 * v // 10
    # The mask is 255 for values to invert, else 0. XOR takes 0.2 times as long as `where`.
    return images ^ (images >= threshold.to(torch.uint8).view(-1, 1, 1, 1)).view(torch.uint8).neg_()


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
