"""Weak and strong views of images for stored features. The views of an image do not depend on the rest of the list."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.views import WEAK_NUMBERS, num_numbers, strong, weak
from debias_ssl.data.reading.features import ViewKind
from debias_ssl.data.sampling.keyed import WORD, Purpose, philox

# The settings that the two kinds depend on.
WEAK_SETTINGS = ("flip", "shift")
STRONG_SETTINGS = (*WEAK_SETTINGS, "num_ops", "ops", "op_probability", "magnitude", "cutout")


@dataclass(frozen=True, kw_only=True)
class KeptView:
    """One view of each image. Its random numbers are a function of (seed, kind, number, contents of the file)."""

    kind: ViewKind
    number: int
    seed: int
    config: AugmentConfig

    @property
    def description(self) -> dict[str, Any]:
        """All values other than the image that the view depends on, as JSON."""
        names = WEAK_SETTINGS if self.kind == "weak" else STRONG_SETTINGS
        settings = asdict(self.config)
        return {
            "kind": self.kind,
            "number": self.number,
            "seed": self.seed,
            **{name: list(settings[name]) if name == "ops" else settings[name] for name in names},
        }

    def __call__(self, images: UInt8[Tensor, "N H W K"], contents: Int64[Tensor, "N 2"]) -> UInt8[Tensor, "N H W K"]:
        """The views of images at the network's size.

        Args:
            images: on any device.
            contents: hashes of their files from `content_of`, on the CPU.
        """
        is_weak = self.kind == "weak"
        purpose = (Purpose.WEAK_VIEW if is_weak else Purpose.STRONG_VIEW) + self.number
        number = WEAK_NUMBERS if is_weak else num_numbers(self.config)
        numbers = of_contents(self.seed, purpose, contents, number)
        return (weak if is_weak else strong)(images, numbers, self.config)


def kept_views(number: int, seed: int, config: AugmentConfig) -> list[KeptView]:
    """`number` weak views, and as many strong ones."""
    kinds: tuple[ViewKind, ...] = ("weak", "strong")
    return [KeptView(kind=kind, number=k, seed=seed, config=config) for kind in kinds for k in range(number)]


def of_contents(seed: int, purpose: int, contents: Int64[Tensor, "N 2"], num: int) -> Float[Tensor, "N num"]:
    """`num` numbers in [0, 1) for each file: `keyed.uniform` with half of the hash in place of position and step."""
    half = contents[:, :1]
    blocks = torch.arange(-(-num // 4))
    counter = torch.broadcast_tensors(half & WORD, blocks, half >> 32 & WORD, torch.tensor(purpose))
    words = torch.stack(philox(counter, (seed & WORD, seed >> 32 & WORD)), -1).flatten(-2)[..., :num]
    return (words >> 8).to(torch.float32) / 2**24
