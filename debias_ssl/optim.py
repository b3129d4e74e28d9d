"""The optimizer, with FixMatch's settings as defaults."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from debias_ssl.errors import InputError
from debias_ssl.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: SGD with Nesterov momentum, or AdamW.
        lr: peak learning rate for the global batch; it is not scaled by anything.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: on kernels only (weights of two and more dimensions), not on biases and normalization.
        schedule: FixMatch's cosine, the cosine to zero, or constant.
        warmup: fraction of the run in which the learning rate rises from zero.
        clip: largest norm of the gradient; null clips nothing.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine_7_16"
    warmup: float = 0.0
    clip: float | None = None

    def __post_init__(self):
        for name, valid in (
            ("lr", self.lr > 0),
            ("momentum", 0 <= self.momentum < 1),
            ("weight_decay", self.weight_decay >= 0),
            ("warmup", 0 <= self.warmup < 1),
            ("clip", self.clip is None or self.clip > 0),
        ):
            if not valid:
                raise InputError(f"optim.{name} is {getattr(self, name)}, which is out of range")


def make_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """An optimizer of the parameters that take gradients."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov)
