"""Running state that all processes agree on: means and labels that a method remembers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.distributed.collectives import gathered, mean_of_rows
from debias_ssl.system.errors import InputError


class RunningMean(nn.Module):
    """Exponential running mean of rows over the global batch, m q + (1 - m) mean(rows), in fp32.

    Every process holds the same value.
    """

    value: Tensor

    def __init__(self, initial: Float[Tensor, " D"], momentum: float):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise InputError(f"the momentum of a running mean is {momentum}, must be in [0, 1]")
        self.momentum = momentum
        self.register_buffer("value", initial.float())

    @torch.no_grad()
    def update(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
        """Takes a step's rows in; returns their own mean."""
        mean = mean_of_rows(rows)
        self.value.lerp_(mean, 1 - self.momentum)
        return mean

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def uniform_marginal(num_classes: int, momentum: float) -> RunningMean:
    """A running mean of class probabilities that starts uniform, so that the first step is not debiased."""
    return RunningMean(torch.full((num_classes,), 1 / num_classes), momentum)


class LabelMemory(nn.Module):
    """The label that each image was last given; the same on every process, which see different images of a step."""

    value: Tensor
    """Of each image, -1 where it has none yet."""

    def __init__(self, num_images: int, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("value", torch.full((num_images,), -1, dtype=torch.int32))

    @torch.no_grad()
    def update(self, index: Int[Tensor, " N"], label: Int[Tensor, " N"]) -> None:
        """Remembers the labels of images; a negative one leaves an image its label."""
        index, label = gathered(torch.stack([index, label], 1)).unbind(1)
        # An image that comes twice in a step gets the larger label: no order of processes or threads matters.
        new = torch.full_like(self.value, -1).scatter_reduce_(0, index, label.to(self.value.dtype), "amax")
        self.value.copy_(torch.where(new >= 0, new, self.value))

    def counts(self) -> Float[Tensor, " C"]:
        """How many images have each label."""
        # A bincount would make a GPU wait for the largest label.
        counts = torch.zeros(self.num_classes + 1, device=self.value.device)
        return counts.index_add_(0, self.value + 1, torch.ones_like(counts[:1]).expand(len(self.value)))[1:]
