"""The parts of `bench_step.py --strong_views`: a small ViT, and a method in which a given share of images counts."""

from typing import Any

import timm
from torch import Tensor, nn

from debias_ssl.contract import Problem, PseudoLabels, Views
from debias_ssl.methods import FixMatch

# Shares of pseudo-labels that count.
RATES = (0.2, 0.5, 0.9)


def vit_tiny(num_classes: int, in_chans: int = 3) -> nn.Module:
    """64 patches of 4 x 4 pixels."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, in_chans=in_chans, **sizes)


class AtRate(FixMatch):
    """FixMatch with a fixed share of pseudo-labels that count: the most confident ones."""

    def __init__(self, problem: Problem, rate: float):
        super().__init__(problem)
        self.rate = rate

    def pseudo_labels(self, logits: Tensor, views: Views) -> PseudoLabels:
        confidence, target = logits.softmax(-1).max(-1)
        place = confidence.argsort(descending=True).argsort()
        return PseudoLabels(target=target, weight=(place < round(self.rate * len(place))).float())
