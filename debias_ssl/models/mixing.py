"""Tests whether a network's output for an image depends on the other images of the batch."""

from typing import Literal

import torch
from torch import Tensor

from debias_ssl.models.classifier import Classifier, batch_norms

Mixing = Literal["batch norm", "random", "other"]
# Even numbers, because some networks take pairs. Outputs for a part differ from those for the whole by rounding.
NUM_IMAGES, NUM_KEPT, TOLERANCE = 4, 2, 1e-3


@torch.no_grad()
def mixing_of(model: Classifier, shape: tuple[int, int, int]) -> Mixing | None:
    """The reason why a network's output in training depends on the other images of a batch; None if it does not.

    A batch norm in training mode is such a reason. Other networks are tried on random images, in a part of a batch and
    in the whole batch. The outputs differ if the network draws random numbers, as dropout does, or mixes images.

    Args:
        model: the model, on the CPU; weights, statistics and random numbers are not changed.
        shape: height, width and number of channels of the images.
    """
    was_training = model.training
    model.train()
    if any(norm.training for norm in batch_norms(model)):
        model.train(was_training)
        return "batch norm"
    buffers = [buffer.clone() for buffer in model.buffers()]
    height, width, channels = shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = torch.randn(NUM_IMAGES, channels, height, width)
        whole, part = (torch.cat(model(each), 1) for each in (images, images[:NUM_KEPT]))
        is_same = _close(whole[:NUM_KEPT], part)
        is_random = not is_same and not _close(whole, torch.cat(model(images), 1))
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    model.train(was_training)
    if is_same:
        return None
    return "random" if is_random else "other"


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE * ours.abs().max().item())
