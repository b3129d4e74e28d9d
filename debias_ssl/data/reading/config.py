"""The settings of reading: how files become pixels."""

from dataclasses import dataclass
from typing import Literal

from debias_ssl.system.errors import check_settings


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How images become the numbers that a network takes.

    Args:
        features: folders of features that `debias-ssl label` has made of these images, to train on instead of pixels.
        image_size: side in pixels to which images are resized and cropped; null keeps them as they are.
        crop: `shift` crops the center once, and views are shifted by `augment.shift`; `resized` crops each view at
            random (ImageNet), which needs files.
        crop_scale: smallest and largest area of a random crop, as a fraction of the image.
        mean: of each channel, in [0, 1]; null takes the data set's, or ImageNet's.
        std: of each channel, likewise.
        on_error: `stop` at an image that cannot be read, or `skip` it and list it in the run folder.
        input: `resident` decodes all images once into a cached array, `streaming` decodes as it goes in `workers`;
            `auto` streams what needs more than 4 GiB.
        workers: processes that decode, for streaming.
        cache: folder of decoded arrays and of indexes of tar files; null takes the user's cache folder.
    """

    features: tuple[str, ...] = ()
    image_size: int | None = None
    crop: Literal["shift", "resized"] = "shift"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    on_error: Literal["stop", "skip"] = "stop"
    input: Literal["auto", "resident", "streaming"] = "auto"
    workers: int = 4
    cache: str | None = None

    def __post_init__(self):
        check_settings(
            self,
            "data.",
            image_size=(self.image_size is None or self.image_size > 0, "above 0"),
            crop_scale=(0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "two shares of the area, the smaller first"),
            std=(all(value > 0 for value in self.std or ()), "above 0"),
            workers=(self.workers >= 0, "at least 0"),
        )
