"""The optimizer, with FixMatch's settings as defaults."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from debias_ssl.formulas.schedules import Schedule
from debias_ssl.system.errors import InputError, check_settings, not_negative, positive


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
        layer_decay: for pretrained networks, the learning rate of each layer as a fraction of that of the layer behind
            it; the classifier, and the method's own parameters, have the full rate (ULMFiT, arXiv 1801.06146; for
            vision BEiT, arXiv 2106.08254). 1 is one rate for all. Below 1 what the network names so, such as position
            embeddings, has no weight decay either.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine_7_16"
    warmup: float = 0.0
    clip: float | None = None
    layer_decay: float = 1.0

    def __post_init__(self):
        check_settings(
            self,
            "optim.",
            lr=positive,
            momentum=(0 <= self.momentum < 1, "in [0, 1)"),
            weight_decay=not_negative,
            warmup=(0 <= self.warmup < 1, "in [0, 1)"),
            clip=(self.clip is None or self.clip > 0, "above 0"),
            layer_decay=(0 < self.layer_decay <= 1, "in (0, 1]"),
        )


def make_optimizer(module: nn.Module, config: OptimConfig, net: Any = None) -> torch.optim.Optimizer:
    """An optimizer of the parameters that take gradients.

    Args:
        module: whose parameters.
        config: the settings.
        net: the network of timm in the module, whose layers `layer_decay` is for.

    Raises:
        InputError: `layer_decay` is set, and the network does not say which layers it has.
    """
    layers = _layers(net, config) if config.layer_decay < 1 else []
    in_layers = {id(parameter) for layer in layers for parameter in layer["params"]}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in in_layers]
    groups = [
        *layers,
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One kernel for all tensors; devices other than these may not have it.
    fused = all(p.device.type in ("cpu", "cuda") for p in module.parameters()) or None
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)


def _layers(net: Any, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of a network's trained parameters, each with the factor `lr_scale` of its layer."""
    if not hasattr(net, "group_matcher"):
        raise InputError("optim.layer_decay: the network does not say which layers it has; leave it at 1")
    exempt = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    return param_groups_layer_decay(net, config.weight_decay, exempt, layer_decay=config.layer_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter the learning rate, times the factor of its layer where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
