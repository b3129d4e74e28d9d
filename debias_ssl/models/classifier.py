"""`build` makes an image classifier from `ModelConfig`: a module that returns (logits, features)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from debias_ssl.models.adapters import Adapter, AdapterKind, add_adapters, calls_told, is_of_adapter, ranks_in
from debias_ssl.models.heads import linear, mlp_512
from debias_ssl.models.wide_resnet import wrn_10_1, wrn_16_2, wrn_28_2, wrn_28_8
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.imports import imported, near
from debias_ssl.system.ranges import AtLeastOne, BelowOne, Fraction, Positive, check_ranges

Norm = Literal["batch", "sync", "group"]
Freeze = Literal["backbone"]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Networks of this package. They do not need timm, which takes longer to import than torch.
OWN = {make.__name__: make for make in (wrn_28_2, wrn_28_8, wrn_16_2, wrn_10_1, linear, mlp_512)}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Args:
        name: a model of timm, or wrn_28_2, wrn_28_8, wrn_16_2, wrn_10_1; linear or mlp_512 for `data.features`;
            or package.module.Class of your own, called with num_classes and in_chans.
        pretrained: whether to download timm's weights of that name.
        weights: a file of weights with timm's names (safetensors, or a PyTorch file without code) instead of a
            download; a classifier of another shape in it is not loaded.
        norm: `batch` keeps the model's normalization, `sync` shares batch statistics over processes, `group` replaces
            batch norm by group norm, which does not mix images.
        batch_norm_momentum: weight of the newest batch in the running statistics; null keeps the model's.
        drop_rate: dropout before the classifier, if the model supports it.
        drop_path_rate: stochastic depth, if the model supports it.
        freeze: `backbone` trains only the classifier and the method's own parameters: the features of an image stay
            those of the loaded network, without dropout. null trains everything.
        adapter: small trainable side paths in a frozen network: `lora` beside linear layers and convolutions (arXiv
            2106.09685), `adaptformer` beside the MLPs of a ViT (arXiv 2205.13535).
        adapter_rank: r of LoRA, or the units of AdaptFormer's bottleneck; null is 8 or 64.
        adapter_scale: factor of the side path: alpha / r of LoRA, s of AdaptFormer; null is 1 or 0.1.
        adapter_norms: whether to train normalization layers too; batch norms then update their statistics.
    """

    name: str = "wrn_28_2"
    pretrained: bool = False
    weights: str | None = None
    norm: Norm = "batch"
    batch_norm_momentum: Fraction | None = None
    drop_rate: BelowOne = 0.0
    drop_path_rate: BelowOne = 0.0
    freeze: Freeze | None = None
    adapter: AdapterKind | None = None
    adapter_rank: AtLeastOne | None = None
    adapter_scale: Positive | None = None
    adapter_norms: bool = False

    def __post_init__(self):
        check_ranges(self, "model.")
        if self.freeze and self.adapter:
            raise InputError(
                f"model.freeze {self.freeze} would not train an adapter, and model.adapter {self.adapter} freezes "
                "the layers beside it: set one of them to null"
            )
        for name in ("drop_rate", "drop_path_rate"):
            if (self.freeze or self.adapter) and getattr(self, name):
                frozen = "model.freeze" if self.freeze else "model.adapter"
                raise InputError(f"model.{name} is {getattr(self, name)}, but {frozen} leaves nothing to drop: set 0")
        for name in ("adapter_rank", "adapter_scale", "adapter_norms"):
            if not self.adapter and getattr(self, name):
                raise InputError(
                    f"model.{name} is {getattr(self, name)}, but there is no adapter: set model.adapter to lora or "
                    "adaptformer"
                )

    @property
    def is_loaded(self) -> bool:
        """Whether initial weights come from a file or a download."""
        return self.pretrained or self.weights is not None

    def exported(self) -> "ModelConfig":
        """The network of the file of a finished run: nothing to load, and LoRA is in the weights."""
        without = replace(self, pretrained=False, weights=None)
        if self.adapter != "lora":
            return without
        return replace(without, adapter=None, adapter_rank=None, adapter_scale=None, adapter_norms=False)


class Classifier(nn.Module):
    """A network that returns its logits together with the features before its classifier.

    Args:
        net: a model of timm, or one of your own with timm's four names: `forward_features(images)`,
            `forward_head(maps, pre_logits=False)`, `get_classifier()` and `num_features`.
        frozen: whether only its classifier and adapters are trained. All other layers then stay in evaluation mode, so
            that batch norms keep their statistics. No activation before the first trained layer is kept for a gradient.
        norms: whether normalization of a frozen network is trained too.
    """

    net: Any  # timm's models share methods, but no class

    def __init__(self, net: nn.Module, *, frozen: bool = False, norms: bool = False):
        super().__init__()
        self.net = net
        self.num_features: int = getattr(self.net, "head_hidden_size", self.net.num_features)
        self.frozen, self.norms = frozen, norms
        if frozen:
            self.net.requires_grad_(False)
            for layer in self.trained_layers():
                layer.requires_grad_(True)
            self.train()

    def classifiers(self) -> list[nn.Module]:
        """The layers that compute logits from features; distilled networks have two."""
        return classifiers_of(self.net)

    def trained_layers(self) -> list[nn.Module]:
        """The layers of a frozen network that are trained."""
        kinds: tuple[type[nn.Module], ...] = (Adapter, *_norms()) if self.norms else (Adapter,)
        return [*self.classifiers(), *(module for module in self.net.modules() if isinstance(module, kinds))]

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen:
            self.net.eval()
            for layer in self.trained_layers():
                layer.train(mode)
        return self

    def forward(self, images: Float[Tensor, "N K H W"]) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]]:
        maps = self.net.forward_features(images)
        features = self.net.forward_head(maps, pre_logits=True).flatten(1)
        classifier = self.net.get_classifier()
        # Other kinds of classifiers, such as a convolution or the mean of two, are computed by the network's own head.
        logits = classifier(features) if isinstance(classifier, nn.Linear) else self.net.forward_head(maps)
        return logits, features


def build(
    name: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool = False,
    weights: str | None = None,
    norm: Norm = "batch",
    batch_norm_momentum: Fraction | None = None,
    drop_rate: BelowOne = 0.0,
    drop_path_rate: BelowOne = 0.0,
    freeze: Freeze | None = None,
    adapter: AdapterKind | None = None,
    adapter_rank: AtLeastOne | None = None,
    adapter_scale: Positive | None = None,
    adapter_norms: bool = False,
) -> Classifier:
    """Builds a classifier; the arguments are those of `ModelConfig`.

    Raises:
        InputError: there is no such model, or the weights or the adapter do not fit it.
    """
    sizes = {"num_classes": num_classes, "in_chans": in_chans}
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    arguments: dict[str, Any] = {**sizes, **{key: rate for key, rate in rates.items() if rate}}
    net = _create(name, arguments, downloads=pretrained and weights is None)
    if norm == "group":
        net = _with_group_norm(net)
    elif norm == "sync":
        from timm.layers.norm_act import convert_sync_batchnorm

        net = convert_sync_batchnorm(net)
    if adapter is not None:
        add_adapters(net, adapter, classifiers_of(net), rank=adapter_rank, scale=adapter_scale)
    if weights is not None:
        load_weights(net, Path(weights))
    if batch_norm_momentum is not None:
        for module in batch_norms(net):
            module.momentum = batch_norm_momentum
    return Classifier(net, frozen=freeze == "backbone" or adapter is not None, norms=adapter_norms)


def classifiers_of(net: Any) -> list[nn.Module]:
    """The layers of a network that compute logits from features."""
    found = net.get_classifier()
    return [found] if isinstance(found, nn.Module) else list(found)


def _create(name: str, arguments: dict[str, Any], downloads: bool) -> Any:
    """The network: timm's, or a class or function of the user's own."""
    if name in OWN:
        if downloads:
            raise InputError(
                f"model.pretrained: cannot get weights of {name!r} (there are none); model.weights takes a file"
            )
        return _made(OWN[name], name, arguments)
    import timm

    if not timm.is_model(name):
        if "." not in name:
            raise InputError(f"model.name: timm has no model {name!r}{near(name, [*OWN, *timm.list_models()])}")
        if downloads:
            raise InputError(f"model.pretrained is for timm's models, not for {name!r}: load weights by model.weights")
        return _checked_interface(imported(name, "model.name")(**arguments), name)
    try:
        return _made(partial(timm.create_model, name, pretrained=downloads), name, arguments)
    except InputError:
        raise
    except Exception as error:  # a download raises nearly anything
        if not downloads:
            raise
        raise InputError(
            f"model.pretrained: cannot get weights of {name!r} ({reason(error)}); model.weights takes a file"
        ) from error


def _made(make: Callable[..., nn.Module], name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return make(**arguments)
    except TypeError as error:
        rates = ", ".join(key for key in arguments if key.startswith("drop"))
        raise InputError(f"model.name {name!r} does not take {rates}: {error}") from error


def _checked_interface(net: Any, name: str) -> nn.Module:
    """The user's network, after a check that it has timm's names; else InputError."""
    wanted = ("forward_features", "forward_head", "get_classifier", "num_features")
    missing = [each for each in wanted if not hasattr(net, each)]
    if not isinstance(net, nn.Module) or missing:
        lacks = f"it has no {missing[0]}" if missing else "it is not a torch.nn.Module"
        raise InputError(f"model.name {name!r} is not a network with timm's {', '.join(wanted)}: {lacks}")
    return net


def check_images(name: str, model: Classifier, shape: tuple[int, int, int]) -> None:
    """Raises InputError if a model does not accept images of a height, width and number of channels."""
    height, width, channels = shape
    images = torch.zeros(1, channels, height, width)
    with calls_told(model.net):
        try:
            with torch.no_grad():
                logits, features = model.eval()(images)
                own = model.net.forward_head(model.net.forward_features(images))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"model.name: {name} does not take images of {height} x {width} pixels ({reason(error).rstrip('.')}); "
                "data.image_size sets their size"
            ) from error
        finally:
            model.train()
    if features.shape[1] != model.num_features or not torch.allclose(logits, own, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"model.name: the logits of {name} are not its classifier applied to its {model.num_features} "
            "features, as training requires: choose another network"
        )


def _norms() -> tuple[type[nn.Module], ...]:
    """The kinds of layers that normalize."""
    from timm.layers import RmsNorm  # pyright: ignore[reportPrivateImportUsage]

    return (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm)


def batch_norms(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics of batches."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


def load_weights(net: Any, path: Path, setting: str = "model.weights") -> None:
    """Loads weights with timm's names, except for a classifier of another shape; nothing in the file is executed.

    Adapters that are not in the file are not changed.
    """
    if not path.is_file():
        raise InputError(f"{setting}: there is no file {str(path)!r}")
    import timm

    try:
        loaded = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # unpickling and parsing raise nearly anything
        raise InputError(f"{setting}: {str(path)!r} holds no weights: {reason(error)}") from error
    own = net.state_dict()
    fitting = {key: value for key, value in loaded.items() if key in own and value.shape == own[key].shape}
    if any(is_of_adapter(key) and key not in fitting for key in loaded):
        raise InputError(
            f"{setting}: {str(path)!r} holds AdaptFormer layers, which are part of its network: set model.adapter "
            f"to adaptformer and model.adapter_rank to {ranks_in(loaded)[0]}"
        )
    inside = {id(module) for layer in classifiers_of(net) for module in layer.modules()}
    classifier = {key for key, module in net.named_modules() if id(module) in inside}
    new = [key for key in own if key not in fitting and not is_of_adapter(key)]
    missing = [key for key in new if key.rpartition(".")[0] not in classifier]
    if missing:
        raise InputError(f"{setting}: {str(path)!r} lacks {missing[0]!r}, {len(missing)} names of the model's in all")
    net.load_state_dict(fitting, strict=False)


def _with_group_norm(module: nn.Module) -> nn.Module:
    """The module with each batch norm replaced by a group norm of eight groups; activations in it stay."""
    if isinstance(module, BATCH_NORMS):
        groups = 8 if module.num_features % 8 == 0 else 1
        norm = nn.GroupNorm(groups, module.num_features)
        act = getattr(module, "act", None)
        return norm if act is None or isinstance(act, nn.Identity) else nn.Sequential(norm, act)
    for name, child in module.named_children():
        setattr(module, name, _with_group_norm(child))
    return module
