"""The settings of reading: how image files become pixels."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import ImageColor

from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.ranges import AtLeastOne, Finite, Natural, Positive, Range, Share, check_ranges

Bits = Annotated[int, Range(8, 16, below=False)]
# Increased when files give other pixels than before: caches are then made again, and old features are refused.
DECODER = 3
WHITE = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How an image file becomes bytes, and how many pixels it may have.

    Args:
        bits: bits that gray images with 16 bits really use; null is the number in the file, else 16.
        max_pixels: largest number of pixels of an image; null is Pillow's limit, with a note for images above its half.
        background: color behind transparent pixels: the name of a color, or `#rrggbb`.
    """

    bits: Bits | None = None
    max_pixels: AtLeastOne | None = None
    background: str = "white"

    def check(self, prefix: str) -> None:
        """Raises InputError for a wrong value; the name of a setting begins with `prefix`."""
        check_ranges(self, prefix)
        try:
            is_color = len(ImageColor.getrgb(self.background)) == 3
        except ValueError:
            is_color = False
        if not is_color:
            raise InputError(
                f"{prefix}background is {self.background!r}, must be the name of a color such as black, or '#rrggbb' "
                "in quotes"
            )

    @property
    def color(self) -> tuple[int, ...]:
        """Red, green and blue of the background."""
        return ImageColor.getrgb(self.background)

    @property
    def of_pixels(self) -> dict[str, Any]:
        """The values other than the file that pixels depend on: the decoder, and settings that are not the default."""
        bits = {} if self.bits is None else {"bits": self.bits}
        background = {} if self.color == WHITE else {"background": "#{:02x}{:02x}{:02x}".format(*self.color)}
        return {"decoder": DECODER, **bits, **background}


STANDARD = Decoding()


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How images become the input of a network.

    Args:
        features: folders of features of these images, from `debias-ssl features` or `label`; the run then trains on
            features instead of pixels.
        feature_views: `auto` trains on stored weak and strong views (weak_0, strong_0 and so on) if the folders of
            features have them, with a random one in each step, else on plain features; `none` always trains on plain
            features. `augment.feature_noise` and `augment.feature_dropout` apply in addition.
        image_size: side in pixels to which images are resized and cropped; null keeps them as they are.
        crop: `shift` crops the center once, and shifts views by `augment.shift`; `resized` crops each view at random
            (as for ImageNet), and needs image files.
        crop_scale: smallest and largest area of a random crop, as a fraction of the image.
        mean: mean of each channel, in [0, 1]; null takes the data set's, or ImageNet's.
        std: standard deviation of each channel, in [0, 1]; null takes the data set's, or ImageNet's.
        bits: bits that gray images with 16 bits really use, such as 12; null takes the number in the file, else 16.
            `debias-ssl data check` prints the largest value.
        max_pixels: largest number of pixels of an image; null is Pillow's limit, about 179 million.
        background: color behind transparent pixels: the name of a color, or '#rrggbb' in quotes.
        on_error: `stop` at an unreadable image, or `skip` it and list it in the run folder.
        input: `resident` decodes all images once into a cached array, `streaming` decodes them in `workers` during
            training; `auto` streams images that need more than 4 GiB.
        workers: decoding processes, for streaming.
        cache: folder of decoded arrays and of indexes of tar files; null takes the user's cache folder.
    """

    features: tuple[str, ...] = ()
    feature_views: Literal["auto", "none"] = "auto"
    image_size: AtLeastOne | None = None
    crop: Literal["shift", "resized"] = "shift"
    crop_scale: tuple[Share, Share] = (0.2, 1.0)
    mean: tuple[Finite, ...] | None = None
    std: tuple[Positive, ...] | None = None
    bits: Bits | None = None
    max_pixels: AtLeastOne | None = None
    background: str = "white"
    on_error: Literal["stop", "skip"] = "stop"
    input: Literal["auto", "resident", "streaming"] = "auto"
    workers: Natural = 4
    cache: str | None = None

    def __post_init__(self):
        check_ranges(self, "data.", ReadingConfig)
        self.decoding.check("data.")
        is_ascending = self.crop_scale[0] <= self.crop_scale[1]
        check_settings(self, "data.", crop_scale=(is_ascending, "two shares of the area, the smaller first"))

    @property
    def decoding(self) -> Decoding:
        """How files become pixels, before they are cropped."""
        return Decoding(bits=self.bits, max_pixels=self.max_pixels, background=self.background)
