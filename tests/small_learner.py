"""A learner that takes a step in a moment."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from debias_ssl.methods import Method, Problem
from debias_ssl.models import build
from debias_ssl.training.learner import Learner


def make_learner(
    method: Callable[[Problem], Method],
    *,
    norm: Any = "batch",
    network: Mapping[str, Any] | None = None,
    num_unlabeled: int = 8,
    seed: int = 0,
    **settings: Any,
) -> Learner:
    """A learner of four classes of gray images, in training mode; `network` are further settings of `ModelConfig`."""
    torch.manual_seed(seed)
    model = build("wrn_10_1", 4, in_chans=1, norm=norm, batch_norm_momentum=0.1, **(network or {}))
    problem = Problem(num_classes=4, num_features=64, labeled_counts=(1, 1, 1, 1), num_unlabeled=num_unlabeled)
    return Learner(model, method(problem), **settings).train()
