"""CLIP, loaded with open_clip: encodes images and class names as vectors in one space."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from debias_ssl.models.clip_names import (
    CONFIG,
    EXTRA,
    LOCAL,
    OFFLINE,
    checked_config,
    needs_transformers,
    plain,
    silent,
    why,
)
from debias_ssl.models.folding import folded
from debias_ssl.models.pixels import Normalized, Preprocessing, hash_of
from debias_ssl.models.resizing import RESIZED, of_bytes, takes_tensors
from debias_ssl.models.text_cache import keep, kept
from debias_ssl.system.errors import InputError
from debias_ssl.system.hub import hub_or_cache

# Number of classes whose prompts are encoded together, as in open_clip, and of prompts in a forward pass.
CLASSES, PROMPTS = 10, 1024


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A pretrained CLIP model, ready to encode: an `Encoder` of images, and a text tower."""

    network: Any  # open_clip's models share methods, but no class
    preprocess: Preprocessing
    normalized: Normalized
    tokenizer: Callable[[list[str]], Tensor]
    logit_scale: float
    """The model's factor: logits are cosine similarities times this."""
    logit_bias: float | None
    """For a model trained with sigmoids (SigLIP, arXiv 2303.15343): sigmoid(logit + bias) is a class's score."""
    embed_dim: int
    device: torch.device
    description: dict[str, Any]
    """All that features of images depend on, as JSON: vision tower, hash of its weights, preprocessing, flips."""
    flip: bool = False
    """Whether features are means over an image and its mirror image."""
    text: dict[str, Any] = field(default_factory=dict)
    """All that vectors of texts depend on, except for the weights of the text tower, as JSON."""

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "N H W K"]) -> Float[Tensor, "N D"]:
        """Vectors of length 1 of preprocessed images, in fp32 at any precision of the network."""
        taken = self.normalized(images)
        features = F.normalize(self.network.encode_image(taken).float(), dim=-1)
        if not self.flip:
            return features
        mirrored = F.normalize(self.network.encode_image(taken.flip(-1)).float(), dim=-1)
        return F.normalize(features + mirrored, dim=-1)


def load_clip(model: str, pretrained: str | None, device: torch.device, *, flip: bool = False) -> Clip:
    """Loads a model of open_clip with its weights; nothing in a file is executed.

    Args:
        model: the name of a model of open_clip; or `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, which have weights.
        pretrained: for a name, a tag of open_clip (downloaded if it is not in the cache), or a file of weights.
        device: the device of the network.
        flip: whether features of images are means over the image and its mirror image.

    Raises:
        InputError: there is no such model; its weights are missing or do not fit; it was trained with another
            activation or other preprocessing than it would be used with; or its tokenizer or a package is missing.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    model, config = checked_config(model, pretrained)
    tokenizer = _tokenizer(model, config["text_cfg"])
    network = _created(model, pretrained, device)
    weights = hash_of(network.visual.state_dict())
    preprocessing = PreprocessCfg(**network.visual.preprocess_cfg)
    transform: Any = image_transform_v2(preprocessing, is_train=False)
    # Without the last parts, which turn RGB images into tensors and normalize them.
    parts = transform.transforms[:-3]
    crops = (preprocessing.resize_mode or "shortest") == "shortest"
    vision = {key: value for key, value in config["vision_cfg"].items() if key != "timm_model_pretrained"}
    activation = {"quick_gelu": config.get("quick_gelu", False)}
    normalized = Normalized(mean=_of_channels(preprocessing.mean), std=_of_channels(preprocessing.std))
    _make_fast(network, normalized, preprocessing.size, device)
    return Clip(
        network=network,
        preprocess=Preprocessing(
            transform=Compose([of_bytes(part) for part in parts]), is_cropped=crops, takes_tensors=takes_tensors(parts)
        ),
        normalized=normalized,
        tokenizer=tokenizer,
        logit_scale=network.logit_scale.exp().item(),
        # If the config has a bias but the weights do not, open_clip sets 0.
        logit_bias=None if network.logit_bias is None else network.logit_bias.item() or None,
        embed_dim=config["embed_dim"],
        device=device,
        description={
            "vision": vision | activation,
            "weights": weights,
            "preprocessing": plain(asdict(preprocessing)),
            **({RESIZED: "torch"} if takes_tensors(parts) else {}),
            **({"flip": True} if flip else {}),
        },
        flip=flip,
        text=config["text_cfg"] | activation,
    )


def _created(model: str, pretrained: str | None, device: torch.device) -> Any:
    """The network with its weights.

    Raises:
        InputError: it cannot be loaded.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained

    is_file = model.startswith(LOCAL) or Path(pretrained or "").is_file()
    try:
        with silent(), nullcontext() if is_file else hub_or_cache():
            # The weights come first: making the network takes seconds, and is useless without them.
            download_pretrained(open_clip.get_pretrained_cfg(model, pretrained or "") or {})
            network: Any = open_clip.create_model(
                model, pretrained, device=device, pretrained_text=False, require_pretrained=True
            )
    except Exception as error:  # unpickling, parsing and downloading raise nearly anything
        fix = "are the weights those of this model?" if is_file else OFFLINE
        named = f"--model {model}" + (f" --pretrained {pretrained}" if pretrained else "")
        raise InputError(f"{named} cannot be loaded: {why(error)}; {fix}") from error
    return network.eval().requires_grad_(False)


def _make_fast(network: Any, normalized: Normalized, size: int | tuple[int, int], device: torch.device) -> None:
    """Gives the image tower of a model the memory format of its images, and folds its batch norms, if it has any.

    Features change only by rounding; those of a transformer do not change.
    """
    network.visual.to(memory_format=torch.channels_last)
    if any(isinstance(module, nn.BatchNorm2d) for module in network.visual.modules()):
        height, width = (size, size) if isinstance(size, int) else size
        noise = torch.randint(256, (1, height, width, 3), generator=torch.Generator().manual_seed(0))
        image = normalized(noise.to(device, torch.uint8))
        network.visual = folded(network.visual, lambda tower: tower(image))


def _of_channels(values: float | Sequence[float]) -> tuple[float, ...]:
    """A number for each channel; a single number is used for all."""
    return tuple(values) if isinstance(values, Sequence) else (values,) * 3


def _tokenizer(model: str, text_cfg: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    """A model's tokenizer. It is loaded before the large weights are downloaded, because it may be unavailable."""
    import open_clip

    tower = text_cfg.get("hf_model_name")
    asks_hub = needs_transformers({"text_cfg": text_cfg}) and not model.startswith(LOCAL)
    try:
        with silent(), hub_or_cache() if asks_hub else nullcontext():
            if tower:
                # For a model with its own code, the package would ask at the terminal whether to run it.
                import_module("transformers").AutoConfig.from_pretrained(tower, trust_remote_code=False)
            settings: dict[str, Any] = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
            return open_clip.get_tokenizer(model, **settings)
    except Exception as error:  # parsing and downloading raise nearly anything
        lacks = "sentencepiece" in str(error).lower() and find_spec("sentencepiece") is None
        if lacks or isinstance(error, ImportError):
            fix = EXTRA
        elif model.startswith(LOCAL):
            names = "tokenizer.json, tokenizer_config.json" + (f", and those of hf_model_name {tower!r}" * bool(tower))
            fix = f"put its files ({names}) beside {CONFIG}"
        else:
            fix = OFFLINE
        raise InputError(f"--model {model} has a tokenizer that cannot be loaded: {why(error)}; {fix}") from error


@dataclass(frozen=True, kw_only=True)
class ClassVectors:
    """Class vectors, and facts about the tokens of their prompts."""

    weights: Float[Tensor, "D C"]
    same: Sequence[tuple[int, int]]
    """Pairs of classes whose prompts have the same tokens; the earlier class comes first."""
    cut: Sequence[str]
    """Prompts that are longer than the model reads."""
    num_prompts: int
    not_kept: str | None = None
    """Why the vectors are not in the user's cache, if they could not be written there."""


@torch.no_grad()
def class_vectors(
    clip: Clip,
    prompt_names: Sequence[str],
    templates: Sequence[str] | Sequence[Callable[[str], str]],
    *,
    progress: bool = False,
) -> ClassVectors:
    """A vector for each class: the normalized mean of the normalized vectors of its prompts (arXiv 2103.00020).

    Vectors are kept in the user's cache, in groups of classes. Cached vectors equal new ones bit for bit.

    Args:
        clip: the model.
        prompt_names: names of the classes in the form for a sentence.
        templates: sentences with one `{}` each, or functions of the name.
        progress: whether to show a progress bar.
    """
    first_of: dict[bytes, int] = {}
    same, cut, parts, not_kept = [], [], [], None
    tower = _text_tower(clip)
    with tqdm(total=len(prompt_names), desc="prompts", unit="class", disable=not progress, leave=False) as bar:
        for first in range(0, len(prompt_names), CLASSES):
            names = prompt_names[first : first + CLASSES]
            texts = [each.format(name) if isinstance(each, str) else each(name) for name in names for each in templates]
            tokens = clip.tokenizer(texts)
            for number, of_class in enumerate(tokens.split(len(templates)), start=first):
                earlier = first_of.setdefault(of_class.numpy().tobytes(), number)
                if earlier < number:
                    same.append((earlier, number))
            cut.extend(_cut(clip, texts, tokens))
            key, shape = f"{tower} {len(names)} {hash_of({'tokens': tokens})}", (len(names), clip.embed_dim)
            vectors = kept(key, shape)
            if vectors is None:
                vectors = _mean_vectors(clip, tokens, len(names))
                not_kept = not_kept or keep(key, vectors.cpu())
            parts.append(vectors.to(clip.device).T)
            bar.update(len(names))
    return ClassVectors(
        weights=torch.cat(parts, dim=1),
        same=same,
        cut=cut,
        num_prompts=len(prompt_names) * len(templates),
        not_kept=not_kept,
    )


def _mean_vectors(clip: Clip, tokens: Int64[Tensor, "T L"], num_classes: int) -> Float[Tensor, "n D"]:
    """The vectors of classes with equally many prompts each, as open_clip's `build_zero_shot_classifier` makes them."""
    some = [clip.network.encode_text(part.to(clip.device), normalize=True) for part in tokens.split(PROMPTS)]
    means = torch.cat(some).reshape(num_classes, -1, clip.embed_dim).mean(1)
    return (means / means.norm(dim=1, keepdim=True)).float()


def _text_tower(clip: Clip) -> str:
    """A hash of all that the bits of a text's vector depend on, except for its tokens: weights, versions, machine."""
    import open_clip

    others = ("visual.", "text_decoder.", "logit_")
    weights = {name: each for name, each in clip.network.state_dict().items() if not name.startswith(others)}
    config = getattr(getattr(clip.network, "text", None), "config", None)
    is_gpu = clip.device.type == "cuda"
    machine = torch.cuda.get_device_name(clip.device) if is_gpu else torch.backends.cpu.get_cpu_capability()
    facts = [
        clip.text,
        config and config.to_dict(),
        torch.__version__,
        open_clip.__version__,
        clip.device.type,
        machine,
    ]
    facts += [torch.get_num_threads(), torch.get_float32_matmul_precision(), hash_of(weights)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _cut(clip: Clip, texts: Sequence[str], tokens: Int64[Tensor, "T L"]) -> list[str]:
    """The prompts that have more tokens than the model reads."""
    length = tokens.shape[1]
    # A tokenizer makes at most one token for each byte, and a few at both ends.
    long = [k for k, text in enumerate(texts) if len(text.encode()) > length - 4]
    if not long:
        return []
    further: Any = clip.tokenizer
    # The row of an empty text is padding except for its ends. The side and the value of the padding differ by model.
    padding = further([""], context_length=4 * length).mode().values
    whole = further([texts[k] for k in long], context_length=4 * length)
    lost = (whole != padding).sum(1) > (tokens[long] != padding).sum(1)
    return [texts[k] for k, is_cut in zip(long, lost.tolist(), strict=True) if is_cut]


def zero_shot_weights(
    clip: Clip, prompt_names: Sequence[str], templates: Sequence[str] | Sequence[Callable[[str], str]]
) -> Float[Tensor, "D C"]:
    """The weights of `class_vectors` alone."""
    return class_vectors(clip, prompt_names, templates).weights


def blank_features(clip: Clip) -> Float[Tensor, "1 D"]:
    """The vector of a white image. Its logits show the model's class bias without content (CDMAD 2403.10391)."""
    image = clip.preprocess(Image.new("RGB", (256, 256), "white"))
    return clip.encode(image[None].to(clip.device))
