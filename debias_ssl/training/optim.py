"""The optimizer, with FixMatch's settings as defaults."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from debias_ssl.formulas.schedules import Schedule
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.imports import imported
from debias_ssl.system.ranges import BelowOne, NotNegative, Positive, Share, check_ranges

# Arguments of an optimizer that have their own settings, outside `args`.
OWN = {"params", "lr", "weight_decay"}
# Methods of torch's optimizers, except for `step`, that are wrapped for torch's compiler.
BOOKKEEPING = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer.

    Args:
        name: an optimizer of torch.optim or of timm.optim, upper or lower case, or package.module.Class.
        lr: peak learning rate for the global batch; it is used as given.
        weight_decay: weight decay of kernels (weights with two or more dimensions); biases and normalization have none.
        args: further arguments of the optimizer, such as betas; SGD has a momentum of 0.9 and Nesterov's step unless
            they are set here.
        schedule: FixMatch's cosine, the cosine to zero, or constant.
        warmup: fraction of the run in which the learning rate rises from zero.
        clip: largest norm of the gradient; null does not clip.
        layer_decay: for pretrained networks: the learning rate of each layer as a fraction of the rate of the next
            layer; the classifier and the method's own parameters have the full rate (ULMFiT, arXiv 1801.06146; for
            vision BEiT, arXiv 2106.08254). 1 is one rate for all. Below 1, parameters that the network exempts, such as
            position embeddings, have no weight decay.
    """

    name: str = "sgd"
    lr: Positive = 0.03
    weight_decay: NotNegative = 5e-4
    args: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = "cosine_7_16"
    warmup: BelowOne = 0.0
    clip: Positive | None = None
    layer_decay: Share = 1.0

    def __post_init__(self):
        check_ranges(self, "optim.")
        momentum = self.args.get("momentum", 0.0)
        if isinstance(momentum, int | float) and not 0 <= momentum < 1:
            raise InputError(f"optim.args.momentum is {momentum}, must be in [0, 1)")


def make_optimizer(
    module: nn.Module, config: OptimConfig, net: Any = None, *, is_scaled: bool = False
) -> torch.optim.Optimizer:
    """An optimizer of the parameters that take gradients.

    Args:
        module: the module whose parameters are trained.
        config: the settings.
        net: the network of timm in the module; `layer_decay` uses its layers.
        is_scaled: whether losses are scaled, so that steps that overflow are left out.

    Raises:
        InputError: there is no such optimizer, it does not accept these arguments, it does not work with scaled losses,
            or `layer_decay` is set and the network does not list its layers.
    """
    layers = _layers(net, config) if config.layer_decay < 1 else []
    in_layers = {id(parameter) for layer in layers for parameter in layer["params"]}
    parameters = [p for p in module.parameters() if p.requires_grad and id(p) not in in_layers]
    groups = [
        *layers,
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    make = find_optimizer(config.name)
    taken = inspect.signature(make).parameters
    arguments = _arguments(make, config)
    if is_scaled and make is torch.optim.SGD:
        # If the first step overflows, torch's fused kernel leaves the momentum uninitialized.
        if arguments.get("fused"):
            raise InputError("optim.args.fused is not right with precision fp16: leave it out")
    elif "fused" in taken and "fused" not in arguments:
        # One kernel for all tensors; other devices may not have it.
        arguments["fused"] = all(p.device.type in ("cpu", "cuda") for p in module.parameters()) or None
    try:
        kind = make if arguments.get("differentiable") else without_compiler(make)
        return kind([group for group in groups if group["params"]], lr=config.lr, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"optim.args: {make.__name__} does not take {config.args}: {reason(error)}") from error


def without_compiler(make: Any) -> Any:
    """A subclass of an optimizer of torch that computes the same bits, and does not import torch's compiler.

    The wrappers of torch's own methods import the compiler, which takes longer than the import of torch. They exclude
    the methods from a compiled training step. Here `--compile` compiles only networks.
    """
    if not make.__module__.startswith("torch.optim."):
        return make
    plain = {name: inspect.unwrap(getattr(make, name)) for name in BOOKKEEPING}
    return type(make.__name__, (make,), {**plain, "step": torch.no_grad()(inspect.unwrap(make.step))})


def find_optimizer(name: str) -> Any:
    """The class of an optimizer.

    Raises:
        InputError: there is none of this name, or its step needs a closure.
    """
    of_torch = {key.lower(): value for key, value in vars(torch.optim).items() if _is_optimizer(value)}
    if name.lower() in of_torch:
        found: Any = of_torch[name.lower()]
    elif "." in name:
        found = imported(name, "optim.name")
    else:
        from timm.optim import get_optimizer_class, list_optimizers  # pyright: ignore[reportPrivateImportUsage]

        if name.lower() not in list_optimizers():
            raise InputError(
                f"optim.name: there is no optimizer {name!r} in torch.optim or timm.optim; "
                f"torch's are {', '.join(sorted(of_torch))}; package.module.Class is one of your own"
            )
        found = get_optimizer_class(name.lower(), bind_defaults=False)
    if not _is_optimizer(found):
        raise InputError(f"optim.name {name!r} is not a torch.optim.Optimizer")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"optim.name: {found.__name__} needs the loss several times in a step, but a run computes it once"
        )
    return found


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer


def _arguments(make: Any, config: OptimConfig) -> dict[str, Any]:
    """The further arguments of an optimizer.

    Raises:
        InputError: the optimizer does not have one of the arguments, or has no weight decay.
    """
    taken = inspect.signature(make).parameters
    if "weight_decay" not in taken and config.weight_decay:
        raise InputError(f"optim.name: {make.__name__} has no weight decay: set optim.weight_decay to 0")
    unknown = [name for name in config.args if name not in taken or name in OWN]
    if unknown:
        known = ", ".join(name for name in taken if name not in OWN)
        raise InputError(f"optim.args: {make.__name__} does not take {unknown[0]!r}; it takes {known}")
    if make is not torch.optim.SGD:
        return dict(config.args)
    momentum = config.args.get("momentum", 0.9)
    return {"momentum": momentum, "nesterov": momentum > 0, **config.args}


def _layers(net: Any, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of a network's trained parameters, each with the factor `lr_scale` of its layer."""
    if not hasattr(net, "group_matcher"):
        raise InputError("optim.layer_decay: the network does not list its layers; leave it at 1")
    from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]

    exempt = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    return param_groups_layer_decay(net, config.weight_decay, exempt, layer_decay=config.layer_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter, times the factor of its layer if there is one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
