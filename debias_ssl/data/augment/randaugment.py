"""RandAugment (arXiv 1909.13719) on whole batches."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from debias_ssl.data.augment.color import COLOR
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.geometry import GEOMETRIC, affine_matrices, resample
from debias_ssl.data.sampling.keyed import whole
from debias_ssl.system.errors import InputError
from debias_ssl.system.imports import imported, told

Operation = Callable[[Tensor, Tensor], Tensor]
"""A function of uint8 images N H W K and their int64 magnitudes N, on one device; it returns images of the same shape.

The result for an image must depend only on the image and its magnitude, not on random numbers or other images.
"""
NOTHING = -1


@dataclass(frozen=True, kw_only=True)
class Operations:
    """The operations by their names."""

    functions: tuple[Operation, ...]
    """The color operations and the user's operations, each once."""
    places: Int[Tensor, " ops"]
    """For each name its position in `functions` followed by GEOMETRIC; NOTHING for the identity."""


@lru_cache(maxsize=8)
def operations(names: tuple[str, ...]) -> Operations:
    """The operations that `data.augment.ops` names."""
    by_name = {
        name: COLOR[name] if name in COLOR else imported(name, "data.augment.ops")
        for name in names
        if name != "identity" and name not in GEOMETRIC
    }
    place = {name: number for number, name in enumerate([*by_name, *GEOMETRIC])} | {"identity": NOTHING}
    return Operations(functions=(*by_name.values(),), places=torch.tensor([place[name] for name in names]))


def rand_augment_(images: UInt8[Tensor, "N H W K"], numbers: Float[Tensor, "N 4"], config: AugmentConfig) -> None:
    """One round of RandAugment in place: at most one operation on each image."""
    ops = operations(config.ops)
    first_geometric = len(ops.functions)
    number, level, applied, sign = numbers.unbind(1)
    index = ops.places[whole(number, len(config.ops))].where(applied < config.op_probability, NOTHING)
    magnitude = 1 + whole(level, config.magnitude - 1)
    # Operations are chosen on the CPU, so that the CPU does not wait for a GPU to count the images of an operation.
    rows = (index != NOTHING).nonzero().flatten()
    if len(rows) == 0:
        return
    # With images of an operation side by side, each operation takes one slice.
    rows = rows[index[rows].argsort(stable=True)]
    index, magnitude, sign = index[rows], magnitude[rows], sign[rows]
    border = int((index < first_geometric).sum())
    sizes = index[:border].bincount(minlength=first_geometric).tolist()
    signed = magnitude.where(sign < 0.5, -magnitude)[border:]
    matrix = affine_matrices(index[border:] - first_geometric, signed, images.shape[1], images.shape[2])
    rows, magnitude, matrix = (t.to(images.device, non_blocking=True) for t in (rows, magnitude[:border], matrix))
    before = images.index_select(0, rows)
    slices = zip(ops.functions, before[:border].split(sizes), magnitude.split(sizes), strict=True)
    after = [change(part, v) for change, part, v in slices if len(part)]
    if len(matrix):
        after.append(resample(before[border:], matrix))
    images.index_copy_(0, rows, torch.cat(after))


def check_own_operations(config: AugmentConfig, shape: tuple[int, int, int], device: torch.device) -> None:
    """Tries the user's operations on two images of noise with the shape H W K.

    Raises:
        InputError: an operation cannot be imported, raises an exception, does not return images of the same shape and
            type, or returns different images at a second call.
    """
    for name in config.own_ops:
        (operation,) = operations((name,)).functions
        noise = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        magnitudes = torch.tensor([1, config.magnitude - 1], device=device)
        try:
            first, second = (operation(noise.to(device, copy=True), magnitudes.clone()) for _ in range(2))
        except Exception as error:  # a function of the user can raise any exception
            raise InputError(f"data.augment.ops: {name!r} raised {told(error)}") from error
        if not isinstance(first, Tensor) or first.shape != noise.shape or first.dtype != noise.dtype:
            found = f"{first.dtype} {[*first.shape]}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
            raise InputError(f"data.augment.ops: {name!r} returned {found} of torch.uint8 {[*noise.shape]}")
        if not first.equal(second):
            raise InputError(
                f"data.augment.ops: {name!r} returns different images at a second call: it must not use random numbers"
            )
