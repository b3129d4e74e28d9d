"""Writes the `config.json` that makes a folder with `model.safetensors` a model folder of timm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from debias_ssl import __version__
from debias_ssl.models.classifier import OWN, ModelConfig

FILE = "config.json"
# The module to import before timm can create a network of this package.
REGISTERING = "debias_ssl.models.timm_models"
# Layers of the package's networks whose weights depend on the number of channels, and of classes.
FIRST, LAST = "stem", "fc"
# Entries that timm has for an architecture, other than preprocessing and source.
OF_ARCHITECTURE = ("first_conv", "classifier")


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """How an image becomes the input of a network."""

    size: int
    """Side in pixels; 1 for a network of features."""
    mean: Sequence[float]
    std: Sequence[float]
    """Mean and standard deviation of each channel, with pixels in [0, 1]."""
    crop: float
    """The share of the shorter side that is used."""


def timm_config(net: Any, model: ModelConfig, classes: Sequence[str], images: ImageFormat) -> dict[str, Any] | None:
    """The fields of timm's `config.json` for a trained network; None if timm cannot create the network.

    timm's own function (`timm.models.save_config_for_hf`) would import timm for networks that do not need it, and has
    other arguments in older versions.

    Args:
        net: the network, whose weights are in `model.safetensors`.
        model: its settings.
        classes: names of the classes, in the order of the logits.
        images: the format of its images.
    """
    architecture = _architecture(net, model)
    if architecture is None:
        return None
    is_own = architecture in OWN
    own = {"first_conv": FIRST if hasattr(net, FIRST) else None, "classifier": LAST}
    known = own if is_own else {name: net.pretrained_cfg.get(name) for name in OF_ARCHITECTURE}
    # A fixed size becomes that of the network's positions, which one that takes all sizes keeps.
    is_fixed = not is_own and net.pretrained_cfg.get("fixed_input_size", False)
    is_fixed = is_fixed and not getattr(net, "dynamic_img_size", False)
    pool = getattr(net, "global_pool", None)
    pool = getattr(pool, "pool_type", pool)
    channels = len(images.mean)
    # Without it, timm would resample the positions of patches, which are those of this size already.
    patched = getattr(getattr(net, "patch_embed", None), "img_size", None)
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": net.num_features,
        **({"global_pool": pool} if isinstance(pool, str) and pool else {}),
        "label_names": [*classes],
        "model_args": {
            "num_classes": len(classes),
            "in_chans": channels,
            **({"img_size": [*patched]} if patched and not is_own else {}),
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [channels, images.size, images.size],
            "fixed_input_size": is_fixed,
            "interpolation": "bilinear",
            "crop_pct": images.crop,
            "crop_mode": "center",
            "mean": [*images.mean],
            "std": [*images.std],
            "num_classes": len(classes),
            "pool_size": None,
            **known,
        },
        "debias_ssl": {"version": __version__, **({"import": REGISTERING} if is_own else {})},
    }


def _architecture(net: Any, model: ModelConfig) -> str | None:
    """The name with which timm creates the network; None without a name, or with layers that timm does not know."""
    if model.norm == "group" or model.adapter == "adaptformer":
        return None
    if model.name in OWN:
        return model.name
    # A user's network has no name in timm, even if it is made from a timm network.
    architecture = getattr(net, "pretrained_cfg", {}).get("architecture")
    return architecture if model.name.partition(".")[0] == architecture else None
