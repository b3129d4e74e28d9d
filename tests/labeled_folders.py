"""What the tests of `debias-ssl label` share."""

from pathlib import Path

import open_clip
import torch

from debias_ssl.data.reading.decode import decode
from debias_ssl.models.clip import load_clip, zero_shot_weights


def expected_logits(model: str, images: list[Path], names: list[str]) -> torch.Tensor:
    clip = load_clip(model, None, torch.device("cpu"))
    weights = zero_shot_weights(clip, names, open_clip.SIMPLE_IMAGENET_TEMPLATES)
    found = clip.encode(torch.stack([clip.preprocess(decode(str(path))) for path in images]))
    return clip.logit_scale * found.half().float() @ weights
