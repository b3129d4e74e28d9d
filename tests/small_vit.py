"""A vision transformer of two blocks for images of 8 x 8 pixels, which runs name `small_vit.small_vit`."""

from typing import Any

import timm
from torch import nn


def small_vit(num_classes: int, in_chans: int = 3) -> nn.Module:
    """Five tokens of 32 features, two heads, MLPs of 128 units."""
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, in_chans=in_chans, **sizes)
