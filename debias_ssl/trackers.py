"""Running state that all processes agree on."""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


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


class RunningMean(nn.Module):
    """Exponential running mean of rows over the global batch, m q + (1 - m) mean(rows), in fp32.

    Every process holds the same value: the sum and the number of rows are reduced in one message of D + 1 floats.
    """

    value: Tensor

    def __init__(self, initial: Float[Tensor, " D"], momentum: float):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", initial.float())

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "N D"]) -> None:
        total = torch.cat([rows.float().sum(0), rows.new_tensor([len(rows)], dtype=torch.float32)])
        all_sum_(total)
        self.value.lerp_(total[:-1] / total[-1], 1 - self.momentum)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def uniform_marginal(num_classes: int, momentum: float) -> RunningMean:
    """A running mean of class probabilities that starts uniform, so that the first step is not debiased."""
    return RunningMean(torch.full((num_classes,), 1 / num_classes), momentum)
