"""Image classifiers: `build` gives a module that returns (logits, features)."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
from jaxtyping import Float
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from debias_ssl.errors import InputError, reason
from debias_ssl.models import heads as heads  # both register their models
from debias_ssl.models import wide_resnet as wide_resnet

Norm = Literal["batch", "sync", "group"]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network.

    Args:
        name: a model of timm, or wrn_28_2, wrn_28_8, wrn_16_2, wrn_10_1; linear or mlp_512 for `data.features`.
        pretrained: whether to download timm's weights of that name.
        weights: a file of weights with timm's names, safetensors or a PyTorch file without code; a classifier of
            another shape in it is left out.
        norm: `batch` keeps the model's normalization, `sync` shares batch statistics over processes, `group` replaces
            batch norm by group norm, which mixes no images.
        batch_norm_momentum: share of the newest batch in the running statistics; null keeps the model's.
        drop_rate: dropout before the classifier, where the model has it.
        drop_path_rate: stochastic depth, where the model has it.
    """

    name: str = "wrn_28_2"
    pretrained: bool = False
    weights: str | None = None
    norm: Norm = "batch"
    batch_norm_momentum: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0


class Classifier(nn.Module):
    """A timm model that gives its logits together with the features that they are a linear function of."""

    net: Any  # timm's models share methods, but no class

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.num_features: int = self.net.head_hidden_size

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
    try:
        net = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **given)
    except TypeError as error:
        raise InputError(f"model.name {name!r} does not take {', '.join(given)}: {error}") from error
    if norm == "group":
        net = _with_group_norm(net)
    elif norm == "sync":
        net = convert_sync_batchnorm(net)
    if weights is not None:
        load_weights(net, Path(weights))
    if batch_norm_momentum is not None:
        for module in batch_norms(net):
            module.momentum = batch_norm_momentum
    return Classifier(net)


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
