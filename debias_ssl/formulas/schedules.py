"""Schedules: the learning rate as a function of progress, and the decay of averaged weights."""

import math
from typing import Literal

Schedule = Literal["cosine_7_16", "cosine", "constant"]


def learning_rate_factor(progress: float, schedule: Schedule, warmup: float = 0.0) -> float:
    """The learning rate at `progress`, as a fraction of its peak.

    Args:
        progress: finished fraction of the run, in [0, 1].
        schedule: `cosine_7_16` is FixMatch's cos(7 pi k / 16 K), which ends at 0.195 (arXiv 2001.07685); `cosine` is
            (1 + cos(pi k / K)) / 2, which ends at 0; `constant` is 1.
        warmup: fraction of the run in which the rate rises linearly from 0; the schedule runs over the rest.
    """
    if progress < warmup:
        return progress / warmup
    progress = (progress - warmup) / (1 - warmup)
    if schedule == "cosine_7_16":
        return math.cos(7 / 16 * math.pi * progress)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def ema_decay(step: int, decay: float) -> float:
    """Decay of averaged weights at step k, min(decay, (1 + k) / (10 + k)): smaller in the first steps."""
    return min(decay, (1 + step) / (10 + step))
