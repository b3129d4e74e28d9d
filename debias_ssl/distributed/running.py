"""Running state of a method, equal in all processes: running means, and labels of earlier steps."""

import torch
from jaxtyping import Bool, Float, Int
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
    """The last label of each image; equal in all processes, although each sees different images of a step."""

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


class VoteMemory(nn.Module):
    """How often each image was seen, and how often it got each label; equal in all processes."""

    votes: Tensor
    seen: Tensor

    def __init__(self, num_images: int, num_classes: int):
        super().__init__()
        self.register_buffer("votes", torch.zeros(num_images, num_classes, dtype=torch.int16))
        self.register_buffer("seen", torch.zeros(num_images, dtype=torch.int16))

    @torch.no_grad()
    def add(self, index: Int[Tensor, " N"], label: Int[Tensor, " N"]) -> None:
        """Counts that images were seen, and their labels; a negative label counts as none."""
        index, label = gathered(torch.stack([index, label], 1)).unbind(1)
        is_vote = (label >= 0).to(self.votes.dtype)
        self.seen.index_add_(0, index, torch.ones_like(is_vote))
        self.votes.view(-1).index_add_(0, index * self.votes.shape[1] + label.clamp(min=0), is_vote)

    @torch.no_grad()
    def forget(self, everything: Bool[Tensor, ""]) -> None:
        """Resets all counts where the argument is true."""
        for counts in (self.votes, self.seen):
            counts.masked_fill_(everything, 0)


class Windows(nn.Module):
    """Windows of equal length, after a first part of the run that belongs to no window.

    Args:
        first: progress at which the first window begins.
        length: of a window, as a share of the run.
    """

    number: Tensor
    """Of the window that the last step was in; 0 before the first."""

    def __init__(self, first: float, length: float):
        super().__init__()
        self.first = first
        self.length = length
        self.register_buffer("number", torch.zeros((), dtype=torch.int32))
        self._last: int | None = None

    @torch.no_grad()
    def ended(self, progress: float) -> Bool[Tensor, ""] | None:
        """Whether a window ended before the step at this progress, asked once a step; None where surely none did.

        In the first step of a process the saved number decides, which only the device knows.
        """
        # (0.6 - 0.5) / 0.1 is 0.9999999999999998.
        number = 1 + int((progress - self.first) / self.length + 1e-9) if progress >= self.first else 0
        last, self._last = self._last, number
        if number == last:
            return None
        ended = (self.number > 0) & (self.number < number)
        self.number.fill_(number)
        return ended
