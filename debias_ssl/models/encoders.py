"""Encoders: pretrained networks of timm and open_clip that compute features of images."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from debias_ssl.models.classifier import load_weights
from debias_ssl.models.clip import load_clip
from debias_ssl.models.clip_names import CONFIG, HUB, LOCAL, OFFLINE, WEIGHTS, from_hub, plain, silent, why
from debias_ssl.models.folding import folded
from debias_ssl.models.pixels import Normalized, Preprocessing, hash_of
from debias_ssl.models.resizing import of_bytes
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.hub import hub_or_cache
from debias_ssl.system.imports import near

TIMM, OPEN_CLIP = "timm:", "open_clip:"
# The file beside the weights of a timm network, like open_clip's CONFIG beside its weights.
TIMM_CONFIG = "config.json"


@runtime_checkable
class Encoder(Protocol):
    """A network that computes features of images."""

    @property
    def preprocess(self) -> Preprocessing: ...

    @property
    def embed_dim(self) -> int:
        """The number of features of an image."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def description(self) -> dict[str, Any]:
        """All that features depend on, as JSON: the network, a hash of its weights, its preprocessing."""
        ...

    def encode(self, images: UInt8[Tensor, "N H W K"]) -> Float[Tensor, "N D"]:
        """Features of preprocessed images on the device, in fp32 at any precision of the network."""
        ...


@dataclass(frozen=True, kw_only=True)
class TimmEncoder:
    """A network of timm: its features are the input of its classifier, at their own length."""

    network: Any  # timm's models share methods, but no class
    preprocess: Preprocessing
    normalized: Normalized
    embed_dim: int
    device: torch.device
    description: dict[str, Any]
    flip: bool = False
    """Whether features are means over an image and its mirror image."""

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "N H W K"]) -> Float[Tensor, "N D"]:
        taken = self.normalized(images)
        features = pooled(self.network, taken)
        return (features + pooled(self.network, taken.flip(-1))) / 2 if self.flip else features


def pooled(network: Any, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D"]:
    """The input of the classifier of a timm network, as in `classifier.Classifier`."""
    return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1).float()


def load_encoder(
    model: str,
    device: torch.device,
    *,
    pretrained: str | None = None,
    weights: str | None = None,
    image_size: int | None = None,
    flip: bool = False,
) -> Encoder:
    """Loads a pretrained network; nothing in a file is executed.

    Args:
        model: `timm:NAME`; `open_clip:NAME`, or the name alone; or `local-dir:FOLDER` or `hf-hub:OWNER/NAME` of either,
            which have weights.
        device: the device of the network.
        pretrained: for a name of open_clip, one of its tags or a file of weights.
        weights: for a name of timm, a file of weights; None downloads timm's weights, if they are not in its cache.
        image_size: for timm, the side of images in pixels; None is the size of the network's training.
        flip: whether features are means over the image and its mirror image.

    Raises:
        InputError: there is no such network; its weights are missing or do not fit; it does not accept this image size;
            or a setting is for another kind of network.
    """
    if is_timm(model):
        if pretrained is not None:
            raise InputError(f"--pretrained is for open_clip's models, not for {model}: --weights takes a file")
        return _timm_encoder(model, device, weights, image_size, flip)
    name = model.removeprefix(OPEN_CLIP)
    for flag, value, instead in (
        ("--weights", weights, "--pretrained takes a file"),
        ("--image_size", image_size, "those of open_clip have their own size"),
    ):
        if value is not None:
            raise InputError(f"{flag} is for networks of timm, not for {model}: {instead}")
    if ":" not in model and pretrained is None and import_module("timm").is_model(model):
        raise InputError(f"--model {model}: is it one of timm's? pass --model {TIMM}{model}")
    return load_clip(name, pretrained, device, flip=flip)


def is_timm(model: str) -> bool:
    """Whether a network is one of timm; for a folder or a repository of the hub, its config decides.

    Raises:
        InputError: there is no config.
    """
    if model.startswith(LOCAL):
        folder = Path(model.removeprefix(LOCAL))
        found = [name for name in (CONFIG, TIMM_CONFIG) if (folder / name).is_file()]
        if not found:
            raise InputError(f"--model {model}: there is neither open_clip's {CONFIG} nor timm's {TIMM_CONFIG}")
        return found[0] == TIMM_CONFIG
    if model.startswith(HUB):
        try:
            from_hub(model)
            return False
        except InputError as error:
            try:
                from_hub(model, TIMM_CONFIG)
            except InputError:
                raise error from None
            return True
    return model.startswith(TIMM)


def _timm_encoder(
    model: str, device: torch.device, weights: str | None, image_size: int | None, flip: bool
) -> TimmEncoder:
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose

    network = _created(model, weights)
    made_of = hash_of(network.state_dict())
    config = resolve_model_data_config(network)
    size = (image_size, image_size) if image_size else tuple(config["input_size"][1:])
    config["input_size"] = (3, *size)
    normalized = Normalized(mean=tuple(config["mean"]), std=tuple(config["std"]))
    transform: Any = create_transform(**config, is_training=False, use_prefetcher=True)
    # Without the last part, which turns an image into a tensor.
    resized = Compose([of_bytes(part) for part in transform.transforms[:-1]])
    try:
        if image_size and hasattr(network, "set_input_size"):
            # A transformer's position embeddings fit its own image size, and are interpolated for another size.
            network.set_input_size(size)
        network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        noise = torch.randint(256, (1, *size, 3), generator=torch.Generator().manual_seed(0)).to(device, torch.uint8)
        image = normalized(noise)
        with torch.no_grad():
            tried = pooled(network, image)
        network = folded(network, lambda of: pooled(of, image))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--model {model} does not take images of {size[0]} x {size[1]} pixels ({reason(error).rstrip('.')}); "
            "--image_size sets their size"
        ) from error
    arguments = plain(getattr(network, "pretrained_model_args", {}))
    return TimmEncoder(
        network=network,
        preprocess=Preprocessing(
            transform=resized,
            is_cropped=config["crop_mode"] == "center",
            # torch cannot resize with Lanczos.
            takes_tensors=config["interpolation"] != "lanczos",
        ),
        normalized=normalized,
        embed_dim=tried.shape[1],
        device=device,
        description={
            "network": {"architecture": network.pretrained_cfg["architecture"]} | arguments,
            "weights": made_of,
            "preprocessing": plain(config),
            **({"flip": True} if flip else {}),
        },
        flip=flip,
    )


def _created(model: str, weights: str | None) -> Any:
    """A timm network with its weights, without a classifier."""
    import timm

    name = model.removeprefix(TIMM)
    brings = name.startswith((LOCAL, HUB))
    if brings and weights is not None:
        raise InputError(f"--model {model} brings its own weights: leave out --weights")
    if not brings and not timm.is_model(name):
        raise InputError(f"--model: timm has no model {name!r}{near(name, timm.list_models())}")
    file = _weights_in(Path(name.removeprefix(LOCAL))) if name.startswith(LOCAL) else weights
    try:
        with silent(), hub_or_cache() if file is None else nullcontext():
            network = timm.create_model(name, pretrained=file is None, num_classes=0)
    except Exception as error:  # downloads and configs of others can raise almost any exception
        fix = "" if name.startswith(LOCAL) else f"; {OFFLINE}" if brings else "; without a network, pass --weights FILE"
        raise InputError(f"--model {model} cannot be loaded: {why(error)}{fix}") from error
    if file is not None:
        load_weights(network, Path(file), "--weights" if weights else f"--model {model}")
    return network


def _weights_in(folder: Path) -> str:
    """The file of weights in a folder with timm's config."""
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    if not files:
        raise InputError(f"{str(folder)!r} has no weights: put the network's model.safetensors there")
    return str(next((file for file in files if file.name == "model.safetensors"), files[0]))
