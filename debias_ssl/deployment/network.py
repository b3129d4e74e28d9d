"""A run as one network that maps image bytes, or features, to logits and probabilities."""

import json
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from debias_ssl import __version__
from debias_ssl.contract import View
from debias_ssl.data.augment.views import Normalization, normalize
from debias_ssl.data.reading.reader import evaluation_share
from debias_ssl.deployment.adjustment import Adjustment
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.made_by import made_by
from debias_ssl.runs.trained import TrainedRun


class Deployed(nn.Module):
    """All computations of `debias-ssl predict` from pixels on: without reading, cropping and resizing.

    Args:
        run: the run, on the CPU.
        adjustment: the adjustment of its logits.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    blank_logits: Tensor
    blank_features: Tensor

    def __init__(self, run: TrainedRun, adjustment: Adjustment):
        super().__init__()
        self.model, self.method = run.predictor.model, run.predictor.method
        self.takes_features = bool(run.data.features)
        self.size, self.channels = run.size, len(run.mean)
        self.temperature = adjustment.temperature
        self.register_buffer("mean", torch.tensor(run.mean))
        self.register_buffer("std", torch.tensor(run.std))
        self.register_buffer("shift", torch.tensor(adjustment.shift or (0.0,) * len(run.classes)))
        self.has_blank = self.method.needs.blank is not None
        if self.has_blank:
            # The size is fixed, so the blank image always has the same logits.
            blank = run.predictor.blank(torch.zeros(1, self.channels, self.size, self.size))
            self.register_buffer("blank_logits", blank.logits)
            self.register_buffer("blank_features", blank.features)
        self.eval().requires_grad_(False)

    def forward(self, images: Num[Tensor, "N ..."]) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
        """Logits and probabilities of images N x H x W x K of bytes, or of features N x D."""
        pixels = images if self.takes_features else images.to(torch.float32) / 255
        scaled = ((pixels - self.mean) / self.std).view(-1, self.size, self.size, self.channels)
        logits, features = self.model(scaled.permute(0, 3, 1, 2))
        blank = View(logits=self.blank_logits, features=self.blank_features) if self.has_blank else None
        logits = self.method.predict(View(logits=logits, features=features), blank)
        logits = logits / self.temperature - self.shift
        return logits, logits.softmax(-1)

    def example(self, number: int, seed: int = 0) -> Num[Tensor, "N ..."]:
        """`number` random inputs."""
        generator = torch.Generator().manual_seed(seed)
        if self.takes_features:
            return torch.randn(number, self.channels, generator=generator) * self.std + self.mean
        shape = (number, self.size, self.size, self.channels)
        return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def expected(run: TrainedRun, adjustment: Adjustment, images: Num[Tensor, "N ..."]) -> Float[Tensor, "N C"]:
    """The logits of the run itself, computed as in `debias-ssl predict`, with the adjustment."""
    pixels = images if images.ndim == 4 else images[:, None, None]
    normalization = Normalization.of(run.mean, run.std, torch.device("cpu"))
    logits = run.predictor(normalize(pixels, normalization)) / adjustment.temperature
    return logits - torch.tensor(adjustment.shift) if adjustment.shift else logits


def facts_of(run: TrainedRun, folder: RunFolder, adjustment: Adjustment) -> dict[str, str]:
    """The metadata in the file: how to use the network, and its origin."""
    summary = folder.read_summary()
    made = summary.get("made_by") or made_by()
    network: Any = run.predictor.model.net
    return {
        "classes": json.dumps([*run.classes], ensure_ascii=False),
        "size": str(run.size),
        "mode": "features" if run.data.features else "RGB" if len(run.mean) == 3 else "L",
        "bleed": str((1 - evaluation_share(run.data)) / 2),
        "temperature": repr(adjustment.temperature),
        "shift": json.dumps([*adjustment.shift]),
        "network": f"{run.config.model.name} ({type(network).__name__})",
        "method": type(run.predictor.method).__name__,
        "accuracy": repr(summary["ema"]["last"]["accuracy"]),
        "model_hash": folder.hash_of_model(),
        "debias_ssl": __version__,
        "trained_by": "; ".join(part for part in (made["versions"], made["commit"]) if part),
    }
