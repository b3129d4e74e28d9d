"""Image classifiers: `build` gives a module that returns (logits, features)."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from debias_ssl.models import heads as heads
from debias_ssl.models import wide_resnet as wide_resnet
from debias_ssl.system.errors import InputError, reason

Norm = Literal["batch", "sync", "group"]
Freeze = Literal["backbone"]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Args:
        name: a model of timm, or wrn_28_2, wrn_28_8, wrn_16_2, wrn_10_1; linear or mlp_512 for `data.features`.
        pretrained: whether to download timm's weights of that name.
        weights: a file of weights with timm's names, safetensors or a PyTorch file without code, instead of a download;
            a classifier of another shape in it is left out.
        norm: `batch` keeps the model's normalization, `sync` shares batch statistics over processes, `group` replaces
            batch norm by group norm, which mixes no images.
        batch_norm_momentum: share of the newest batch in the running statistics; null keeps the model's.
        drop_rate: dropout before the classifier, where the model has it.
        drop_path_rate: stochastic depth, where the model has it.
        freeze: `backbone` trains the classifier, and the method's own parameters, and nothing else: the features of an
            image are always those of the network as it was loaded, without dropout. null trains everything.
    """

    name: str = "wrn_28_2"
    pretrained: bool = False
    weights: str | None = None
    norm: Norm = "batch"
    batch_norm_momentum: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    freeze: Freeze | None = None

    def __post_init__(self):
        for name in ("drop_rate", "drop_path_rate"):
            if self.freeze and getattr(self, name):
                raise InputError(
                    f"model.{name} is {getattr(self, name)}, but model.freeze leaves nothing to drop: set 0"
                )


class Classifier(nn.Module):
    """A timm model that gives its logits together with the features that they are a linear function of.

    Args:
        net: the model.
        frozen: whether only its classifier is trained. All else then stays in evaluation mode, so that batch norms keep
            their statistics, and no activation of it is kept for a gradient.
    """

    net: Any  # timm's models share methods, but no class

    def __init__(self, net: nn.Module, *, frozen: bool = False):
        super().__init__()
        self.net = net
        self.num_features: int = self.net.head_hidden_size
        self.frozen = frozen
        if frozen:
            self.net.requires_grad_(False)
            self.net.get_classifier().requires_grad_(True)
            self.train()

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if self.frozen:
            self.net.eval()
            self.net.get_classifier().train(mode)
        return self

    def forward(self, images: Float[Tensor, "N K H W"]) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N D"]]:
        features = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return self.net.get_classifier()(features), features


def build(
    name: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    pretrained: bool = False,
    weights: str | None = None,
    norm: Norm = "batch",
    batch_norm_momentum: float | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    freeze: Freeze | None = None,
) -> Classifier:
    """Builds a classifier; the arguments are those of `ModelConfig`.

    Raises:
        InputError: there is no such model, or the weights do not fit it.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise InputError(f"model.name: timm has no model {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    given: dict[str, Any] = {key: rate for key, rate in rates.items() if rate}
    downloads = pretrained and weights is None
    try:
        net = timm.create_model(name, pretrained=downloads, num_classes=num_classes, in_chans=in_chans, **given)
    except TypeError as error:
        raise InputError(f"model.name {name!r} does not take {', '.join(given)}: {error}") from error
    except Exception as error:  # a download raises nearly anything
        if not downloads:
            raise
        raise InputError(
            f"model.pretrained: cannot get weights of {name!r} ({reason(error)}); model.weights takes a file"
        ) from error
    if norm == "group":
        net = _with_group_norm(net)
    elif norm == "sync":
        net = convert_sync_batchnorm(net)
    if weights is not None:
        load_weights(net, Path(weights))
    if batch_norm_momentum is not None:
        for module in batch_norms(net):
            module.momentum = batch_norm_momentum
    return Classifier(net, frozen=freeze == "backbone")


def check_images(name: str, model: Classifier, shape: tuple[int, int, int]) -> None:
    """Raises InputError where a model does not take images of a height, width and number of channels."""
    height, width, channels = shape
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, channels, height, width))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"model.name: {name} does not take images of {height} x {width} pixels ({reason(error).rstrip('.')}); "
            "data.image_size sets their size"
        ) from error
    finally:
        model.train()


def batch_norms(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics of batches."""
    return [module for module in model.modules() if isinstance(module, BATCH_NORMS)]


def load_weights(net: Any, path: Path) -> None:
    """Loads weights with timm's names, except for a classifier of another shape; nothing in the file is executed."""
    if not path.is_file():
        raise InputError(f"model.weights: there is no file {str(path)!r}")
    try:
        loaded = timm.models.load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # unpickling and parsing raise nearly anything
        raise InputError(f"model.weights: {str(path)!r} holds no weights: {reason(error)}") from error
    own = net.state_dict()
    fitting = {key: value for key, value in loaded.items() if key in own and value.shape == own[key].shape}
    classifier = {key for key, module in net.named_modules() if module is net.get_classifier()}
    missing = [key for key in own if key not in fitting and key.rpartition(".")[0] not in classifier]
    if missing:
        raise InputError(
            f"model.weights: {str(path)!r} lacks {missing[0]!r}, {len(missing)} names of the model's in all"
        )
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
