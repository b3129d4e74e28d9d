"""RandAugment (arXiv 1909.13719) on whole batches."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from debias_ssl.data.augment.color import COLOR
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.geometry import GEOMETRIC, affine_matrices, resample
from debias_ssl.data.sampling.keyed import whole


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
    matrix = affine_matrices(index[num_color:] - IDENTITY - 1, signed, images.shape[1], images.shape[2])
    rows, magnitude, matrix = (t.to(images.device, non_blocking=True) for t in (rows, magnitude[:num_color], matrix))
    before = images.index_select(0, rows)
    slices = zip(COLOR.values(), before[:num_color].split(sizes), magnitude.split(sizes), strict=True)
    after = [adjust(part, v) for adjust, part, v in slices if len(part)]
    if len(matrix):
        after.append(resample(before[num_color:], matrix))
    images.index_copy_(0, rows, torch.cat(after))


OPERATIONS = (*COLOR, "identity", *GEOMETRIC)
IDENTITY = OPERATIONS.index("identity")
