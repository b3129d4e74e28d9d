"""Adapters: small trainable side paths in a frozen network."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.system.errors import InputError

AdapterKind = Literal["lora", "adaptformer"]
# Default ranks and factors: for LoRA as in its code, with alpha = r; for AdaptFormer as in its paper.
RANKS: dict[AdapterKind, int] = {"lora": 8, "adaptformer": 64}
SCALES: dict[AdapterKind, float] = {"lora": 1.0, "adaptformer": 0.1}
# The attribute name of a side path in its layer.
NAME = "adapter"


class Adapter(nn.Module):
    """A side path: `scale` times its output is added to the output of the layer beside it.

    Its last layer is zero at first, so that the network's output is the same as without it, bit for bit.

    Args:
        down: from the input of the layer to a few units.
        up: from these units to the output of the layer.
        scale: factor of the output.
        act: the function between them; without it, the side path is a change of the layer's weight.
    """

    def __init__(self, down: nn.Module, up: nn.Linear | nn.Conv2d, scale: float, act: nn.Module | None = None):
        super().__init__()
        self.down, self.act, self.up = down, act, up
        self.scale = scale
        nn.init.zeros_(up.weight)
        if up.bias is not None:
            nn.init.zeros_(up.bias)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        few = self.down(x)
        return self.up(few if self.act is None else self.act(few))


def _added(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook. A layer of any class keeps its computation with it, and its weights keep their names."""
    return torch.add(output, layer.adapter(*inputs), alpha=layer.adapter.scale)


def add_adapters(
    net: nn.Module, kind: AdapterKind, classifiers: list[nn.Module], *, rank: int | None, scale: float | None
) -> None:
    """Adds adapters to a network.

    Args:
        net: the network.
        kind: `lora` adds (alpha / r) B A x to every linear layer and every convolution of all channels (arXiv
            2106.09685), except for the first layer, whose input is pixels, and the classifiers. For a convolution, A
            has r filters and B is a 1 x 1 convolution. `adaptformer` adds s up(relu(down(x))) to the output of each MLP
            `mlp` of a block with an attention `attn`; x is the input of the MLP (arXiv 2205.13535).
        classifiers: the last layers of the network.
        rank: r, or the units between down and up; None is 8 for `lora` and 64 for `adaptformer`.
        scale: alpha / r, or s; None is 1 for `lora` and 0.1 for `adaptformer`.

    Raises:
        InputError: the network has no layer for the adapter.
    """
    rank, scale = rank or RANKS[kind], SCALES[kind] if scale is None else scale
    if kind == "lora":
        found = {layer: _low_rank(layer, rank, scale) for layer in _linear_layers(net, classifiers)}
        wanted = "linear layer or convolution of all channels besides its first and its classifier"
    else:
        found = {mlp: _bottleneck(width, rank, scale) for mlp, width in _mlps(net)}
        wanted = "block with an attention 'attn' and an MLP 'mlp' of linear layers, as ViTs of timm have: try lora"
    if not found:
        raise InputError(f"model.adapter {kind}: the network has no {wanted}")
    for layer, adapter in found.items():
        layer.add_module(NAME, adapter)
        layer.register_forward_hook(_added)


def _linear_layers(net: nn.Module, classifiers: list[nn.Module]) -> list[Any]:
    """The layers that get LoRA adapters."""
    from timm.layers import Conv2dSame  # pyright: ignore[reportPrivateImportUsage]

    # Other classes may compute with a function of their weight, into which a side path cannot be merged.
    adaptable = (nn.Linear, nn.Conv2d, Conv2dSame)
    inside = {id(module) for layer in classifiers for module in layer.modules()}
    layers = [each for each in net.modules() if isinstance(each, nn.Linear | nn.Conv2d) and id(each) not in inside]
    others = {type(each).__name__ for each in layers if isinstance(each, nn.Conv2d) and type(each) not in adaptable}
    if others:
        raise InputError(
            f"model.adapter lora: the network has convolutions of class {min(others)}, not of torch: choose "
            "another network"
        )
    return [each for each in layers[1:] if type(each) in adaptable and _is_plain(each)]


def _is_plain(layer: Any) -> bool:
    """Whether LoRA's two layers are together a change of this layer's weight."""
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _low_rank(layer: Any, rank: int, scale: float) -> Adapter:
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        return Adapter(down, nn.Linear(rank, layer.out_features, bias=False), scale)
    shape = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    down = type(layer)(layer.in_channels, rank, layer.kernel_size, bias=False, **shape)
    return Adapter(down, nn.Conv2d(rank, layer.out_channels, 1, bias=False), scale)


def _mlps(net: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The MLPs that get AdaptFormer adapters, with their numbers of input and output features."""
    for block in net.modules():
        mlp = getattr(block, "mlp", None)
        if isinstance(mlp, nn.Module) and hasattr(block, "attn"):
            linear = [each for each in mlp.modules() if isinstance(each, nn.Linear)]
            if linear and linear[0].in_features == linear[-1].out_features:
                yield mlp, linear[0].in_features


def _bottleneck(width: int, rank: int, scale: float) -> Adapter:
    down = nn.Linear(width, rank)
    nn.init.zeros_(down.bias)
    return Adapter(down, nn.Linear(rank, width), scale, nn.ReLU())


@contextmanager
def calls_told(net: nn.Module) -> Iterator[None]:
    """Raises InputError unless a pass of the network in the context calls all of its adapters."""
    adapters = {name: module for name, module in net.named_modules() if isinstance(module, Adapter)}
    called: set[str] = set()
    handles = [each.register_forward_hook(lambda *_, name=name: called.add(name)) for name, each in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = [name for name in adapters if name not in called]
    if silent:
        raise InputError(
            f"model.adapter: the network computes with the weight of {silent[0].removesuffix('.' + NAME)} without "
            "calling the layer, so no adapter fits beside it: choose adaptformer, or another network"
        )


def merged(net: Any) -> dict[str, Tensor]:
    """The state of a network with LoRA merged into its weights, under the names of the network without adapters.

    Side paths that are not a change of a weight stay.
    """
    state = net.state_dict()
    for name, layer in net.named_modules():
        adapter: Any = getattr(layer, NAME, None)
        if isinstance(adapter, Adapter) and adapter.act is None:
            up, down = (state.pop(f"{name}.{NAME}.{part}.weight") for part in ("up", "down"))
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = weight + adapter.scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return state


def ranks_in(state: Mapping[str, Tensor]) -> list[int]:
    """The ranks of the adapters in the state of a network."""
    return [len(value) for key, value in state.items() if key.endswith(f".{NAME}.down.weight")]


def is_of_adapter(key: str) -> bool:
    """Whether a name in the state of a network belongs to an adapter."""
    return f".{NAME}." in key
