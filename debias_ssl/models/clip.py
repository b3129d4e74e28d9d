"""CLIP through open_clip: images and class names as vectors of one space."""

import difflib
import hashlib
import json
import logging
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose

from debias_ssl.system.errors import InputError, reason

LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# How many times as long as wide a picture may be before it is resized whole.
LONGEST = 16


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A pretrained CLIP model, ready to encode."""

    network: Any  # open_clip's models share methods, but no class
    preprocess: Callable[[Image.Image], Float[Tensor, "K H W"]]
    tokenizer: Callable[[list[str]], Tensor]
    logit_scale: float
    """The model's own: logits are it times cosine similarities."""
    embed_dim: int
    device: torch.device
    description: dict[str, Any]
    """What features of images depend on, as JSON: vision tower, hash of its weights, preprocessing."""


def load_clip(model: str, pretrained: str | None, device: torch.device) -> Clip:
    """Loads a model of open_clip with its weights; nothing in a file is executed.

    Args:
        model: a name of open_clip's; or `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, which bring their own weights.
        pretrained: for a name, a tag of open_clip's (downloaded if it is not in the cache), or a file of weights.
        device: where the network goes.

    Raises:
        InputError: there is no such model, its weights are missing or do not fit it, or it was trained with another
            activation or with images prepared otherwise than it would be used with here.
    """
    if model.startswith((LOCAL, HUB)):
        if pretrained is not None:
            raise InputError(f"--model {model} brings its own weights: leave out --pretrained")
        if model.startswith(LOCAL):
            _check_folder(Path(model.removeprefix(LOCAL)))
    else:
        model = model.replace("/", "-")
        _check_name(model, pretrained)
    try:
        with _silent():
            config = open_clip.get_model_config(model)
            network: Any = open_clip.create_model(model, pretrained, device=device, require_pretrained=True)
            tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # unpickling, parsing and downloading raise nearly anything
        is_file = model.startswith(LOCAL) or Path(pretrained or "").is_file()
        fix = "are the weights those of this model?" if is_file else f"without a network, pass --model {LOCAL}FOLDER"
        named = f"--model {model}" + (f" --pretrained {pretrained}" if pretrained else "")
        why = textwrap.shorten(str(error) or type(error).__name__, 240, placeholder=" ...")
        raise InputError(f"{named} cannot be loaded: {why}; {fix}") from error
    network.eval().requires_grad_(False)
    assert config is not None
    preprocessing = PreprocessCfg(**network.visual.preprocess_cfg)
    transform: Any = image_transform_v2(preprocessing, is_train=False)
    crops = (preprocessing.resize_mode or "shortest") == "shortest"
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
    return Clip(
        network=network,
        preprocess=Compose([middle, transform]) if crops else transform,
        tokenizer=tokenizer,
        logit_scale=network.logit_scale.exp().item(),
        embed_dim=config["embed_dim"],
        device=device,
        description={
            "vision": vision | {"quick_gelu": config.get("quick_gelu", False)},
            "weights": _hash(network.visual),
            "preprocessing": _plain(asdict(preprocessing)),
        },
    )


def middle(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than `LONGEST` times as long as wide, and of others the whole.

    Preprocessing that resizes the shorter side and crops the central square sees no more of it; but it resizes the
    whole picture first, and a line of 20,000 x 1 pixels would become one of 4.5 million x 224, which takes 5 GB. Both
    ends lose as much, so that the center stays where it is.
    """
    most = LONGEST * min(image.size)
    left, top = (max(0, side - most) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


@dataclass(frozen=True, kw_only=True)
class ClassVectors:
    """Vectors of classes, and what the tokenizer made of their prompts."""

    weights: Float[Tensor, "D C"]
    same: Sequence[tuple[int, int]]
    """Classes whose prompts are the same tokens as those of an earlier one, which comes first."""
    cut: Sequence[str]
    """Prompts of which the model reads the beginning alone."""
    num_prompts: int


def class_vectors(
    clip: Clip, prompt_names: Sequence[str], templates: Sequence[str] | Sequence[Callable[[str], str]]
) -> ClassVectors:
    """A vector for each class: the normalized mean over templates of its prompts' normalized vectors (2103.00020).

    Args:
        clip: the model.
        prompt_names: of the classes, as they stand in a sentence.
        templates: sentences with one `{}` each, or functions of the name.
    """
    first_of: dict[bytes, int] = {}
    same, cut = [], []
    number = 0

    def tokenizer(texts: list[str]) -> Tensor:
        nonlocal number
        tokens = clip.tokenizer(texts)
        for of_class in tokens.split(len(templates)):
            first = first_of.setdefault(of_class.numpy().tobytes(), number)
            if first < number:
                same.append((first, number))
            number += 1
        cut.extend(_cut(clip, texts, tokens.shape[1]))
        return tokens

    weights = zero_shot_weights(replace(clip, tokenizer=tokenizer), prompt_names, templates)
    return ClassVectors(weights=weights, same=same, cut=cut, num_prompts=len(prompt_names) * len(templates))


def _cut(clip: Clip, texts: Sequence[str], length: int) -> list[str]:
    """Those of some prompts that have more tokens than the model reads."""
    # No tokenizer makes more tokens than there are bytes, and a few at both ends.
    long = [text for text in texts if len(text.encode()) > length - 4]
    if not long:
        return []
    further: Any = clip.tokenizer
    # Behind the end of a text there is padding alone; some tokenizers close the row with one other token.
    rest = further(long, context_length=4 * length)[:, length:-1]
    return [text for text, row in zip(long, rest, strict=True) if (row != row[-1]).any()]


@torch.no_grad()
def zero_shot_weights(
    clip: Clip, prompt_names: Sequence[str], templates: Sequence[str] | Sequence[Callable[[str], str]]
) -> Float[Tensor, "D C"]:
    """The weights of `class_vectors` alone."""
    weights = open_clip.build_zero_shot_classifier(
        clip.network, clip.tokenizer, prompt_names, templates, device=clip.device
    )
    return weights.float()


@torch.no_grad()
def encode(clip: Clip, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N D"]:
    """Vectors of length 1 of preprocessed images, in fp32 whatever precision the network runs in."""
    return F.normalize(clip.network.encode_image(images).float(), dim=-1)


def blank_features(clip: Clip) -> Float[Tensor, "1 D"]:
    """The vector of a white image, whose logits show what the model prefers when it sees nothing (CDMAD 2403.10391)."""
    image = clip.preprocess(Image.new("RGB", (256, 256), "white"))
    return encode(clip, image[None].to(clip.device))


def _check_folder(folder: Path) -> None:
    config = _read_config(folder / CONFIG)
    if not {"mean", "std"} <= set(config["preprocess_cfg"]):
        raise InputError(
            f"{str(folder / CONFIG)!r} does not say how images are prepared: add a preprocess_cfg with "
            f"{', '.join(PREPROCESSING)}, as the model was trained"
        )
    if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise InputError(f"{str(folder)!r} has no weights: put the model's open_clip_model.safetensors there")


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The model_cfg and preprocess_cfg of an open_clip_config.json, the latter empty where there is none."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"model_cfg": dict(config["model_cfg"]), "preprocess_cfg": dict(config.get("preprocess_cfg") or {})}
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; open_clip's models have one") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not a model's config: {reason(error)}") from error


def _check_name(model: str, pretrained: str | None) -> None:
    """Whether a name and a tag or file fit together, as far as can be told before anything is loaded."""
    known = {name.lower(): name for name in open_clip.list_models()}
    if model not in known.values():
        near = [known[name] for name in difflib.get_close_matches(model.lower(), known, n=5)]
        raise InputError(
            f"--model: open_clip has no model {model!r}" + (f"; near it: {', '.join(near)}" if near else "")
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    beside = Path(pretrained or "").parent / CONFIG
    if pretrained and (published := open_clip.get_pretrained_cfg(model, pretrained)):
        told = {"quick_gelu": published.get("quick_gelu", False)}
        fix = f"pass --model {HUB}{published.get('hf_hub', '').rpartition('/')[0]} alone"
    elif not pretrained or not Path(pretrained).is_file():
        wrong = f"is {pretrained!r}, which is neither a tag of {model} nor a file" if pretrained else "is missing"
        raise InputError(f"--pretrained {wrong}: pass a file of weights, or one of {', '.join(tags) or 'no tags'}")
    elif beside.is_file():
        told, fix = _told_beside(beside), f"pass --model {LOCAL}{beside.parent} without --pretrained"
    else:
        told = _told_by_tags(model, tags)
        fix = f"put the file and its {CONFIG} into a folder, and pass that as {LOCAL}FOLDER"
    config = open_clip.get_model_config(model)
    assert config is not None
    size = config["vision_cfg"].get("image_size")
    built = _plain(asdict(PreprocessCfg())) | {"quick_gelu": config.get("quick_gelu", False), "image_size": size}
    differing = [key for key, value in told.items() if value != built[key]]
    if differing == ["quick_gelu"]:
        other = f"{model}-quickgelu" if told["quick_gelu"] else model.removesuffix("-quickgelu")
        if other != model and other in known.values() and not beside.is_file():
            fix = f"pass --model {other}"
        raise InputError(
            f"QuickGELU mismatch: {pretrained!r} was trained with quick_gelu {told['quick_gelu']}, {model} has "
            f"{built['quick_gelu']}: {fix}"
        )
    if differing:
        key = differing[0]
        raise InputError(
            f"preprocessing mismatch: {pretrained!r} was trained with {key} {told[key]}, "
            f"{model} from a file gets {built[key]}: {fix}"
        )


def _told_beside(config: Path) -> dict[str, Any]:
    """What the config beside a file of weights says of their training."""
    read = _read_config(config)
    told = {key: value for key, value in read["preprocess_cfg"].items() if key in PREPROCESSING and value is not None}
    size = (read["model_cfg"].get("vision_cfg") or {}).get("image_size")
    return told | {"quick_gelu": read["model_cfg"].get("quick_gelu", False)} | ({"image_size": size} if size else {})


def _told_by_tags(model: str, tags: Sequence[str]) -> dict[str, Any]:
    """What all published weights of a model have in common."""
    published = [_plain({"quick_gelu": False} | open_clip.get_pretrained_cfg(model, tag)) for tag in tags]
    keys = (*PREPROCESSING, "quick_gelu") if published else ()
    return {key: published[0][key] for key in keys if all(each[key] == published[0][key] for each in published)}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: lists instead of tuples."""
    return json.loads(json.dumps(settings))


def _hash(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps open_clip's messages from the user: what matters in them is checked before and after."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
