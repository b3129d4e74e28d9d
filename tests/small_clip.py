"""A CLIP model of random weights that is made in a moment, and images for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

MODEL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
# SigLIP's towers, small: a ViT of timm's with attention pooling, and the last token of a text tower without a mask.
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 16,
        "heads": 2,
        "layers": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
SIGLIP_PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic", "resize_mode": "shortest"}


def save_clip(folder: Path, *, seed: int = 0, scale: float = 10.0, **config: Any) -> str:
    """Saves a model and its config as open_clip's local-dir takes them; gives the value of --model."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network: Any = open_clip.CLIP(**MODEL)
    # Random networks see hardly any difference between images: here the first layer counts for more.
    network.visual.conv1.weight.data *= 10
    network.logit_scale.data.fill_(scale).log_()
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": MODEL, "preprocess_cfg": PREPROCESSING} | config)
    )
    return f"local-dir:{folder}"


def save_siglip(folder: Path, *, scale: float = 10.0, bias: float = -1.0, **text: Any) -> str:
    """Saves a model of open_clip's SigLIP class, as `save_clip` does; further settings are those of its text tower."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | text}
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    network: Any = open_clip.CustomTextCLIP(**settings)
    # Random towers see hardly any difference between words: here these count for more.
    network.text.token_embedding.weight.data *= 30
    network.logit_scale.data.fill_(scale).log_()
    network.logit_bias.data.fill_(bias)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": SIGLIP_PREPROCESSING})
    )
    return f"local-dir:{folder}"


def paint_images(folder: Path, *, num: int = 10, classes: tuple[str, ...] = ("ant", "bee")) -> list[Path]:
    """Images of noise, in the folders of the classes by turns."""
    paths = []
    for i in range(num):
        path = folder / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((20, 16)).save(path)
        paths.append(path)
    return sorted(paths)
