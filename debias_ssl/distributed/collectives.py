"""Collectives: sums, means and rows over all processes."""

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def num_processes() -> int:
    """How many processes share the work; 1 where none were launched."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over all processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def all_mean_(tensors: list[Tensor]) -> None:
    """Averages tensors over all processes in place, all of them in one message."""
    if num_processes() == 1 or not tensors:
        return
    flat = all_sum_(torch.cat([tensor.reshape(-1).float() for tensor in tensors])).div_(num_processes())
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


@torch.no_grad()
def mean_of_rows(rows: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """Mean over the rows of all processes, in fp32: sum and number are reduced in one message of D + 1 floats."""
    total = all_sum_(torch.cat([rows.float().sum(0), rows.new_full((1,), len(rows), dtype=torch.float32)]))
    return total[:-1] / total[-1]


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """The sum over all processes; once DDP has averaged the processes' gradients, its own is that of the sum."""
    ours = num_processes() * tensor
    return ours + (all_sum_(tensor.detach().clone()) - ours).detach()


@torch.no_grad()
def gathered(rows: Shaped[Tensor, "N D"]) -> Shaped[Tensor, "M D"]:
    """The rows of all processes; each process must have the same number of rows."""
    if num_processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
