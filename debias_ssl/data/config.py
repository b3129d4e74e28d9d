"""The settings of data."""

from dataclasses import dataclass, field
from typing import Literal

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.splits import SplitConfig
from debias_ssl.system.errors import InputError, check_settings

Name = Literal["digits", "CIFAR10", "CIFAR100", "STL10", "SVHN", "FashionMNIST", "folder"]


@dataclass(frozen=True, kw_only=True)
class DataConfig(SplitConfig):
    """Which images, how they are split, read and augmented.

    Args:
        name: `digits` is embedded; `folder` takes `labeled`, `unlabeled` and `test`; the others are torchvision's.
        root: folder of torchvision's data sets, or what relative paths in label files are relative to (null: the file).
        download: whether torchvision may download a data set that is not in `root`.
        fold: STL10's predefined fold of 1,000 labeled images; null takes all 5,000.
        labeled: a tree with a folder for each class, or a CSV file of path,label, such as the labels.csv of `debias-ssl
            label`.
        min_confidence: of a CSV file with a confidence column, the rows from this confidence on are the labeled images,
            and the others are unlabeled.
        seeds_per_class: likewise, so many of the most confident rows of each class.
        probs: folder of `debias-ssl label` or `debias`, whose class probabilities of the unlabeled images are given to
            methods that ask for them.
        features: folders of features that `debias-ssl label` has made of these images, to train on instead of pixels.
        unlabeled: a folder of images at any depth, a text file of paths, a CSV file of path and perhaps label, or tar
            files (shards), such as train-{000..099}.tar; null takes the images of `labeled` that are not labeled.
        lanes: of unlabeled images in shards: how many places of them a batch is read from. Processes share the lanes,
            and each reads the shards of its own; null is the largest divisor of the batch that is at most 64.
        test: a tree or a CSV file like `labeled`.
        split: a split.json to use instead of drawing one; with `labels` in it, these are the labeled images' classes.
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
        cache: folder of decoded arrays; null takes the user's cache folder.
        augment: weak and strong views.
    """

    name: Name = "digits"
    root: str | None = None
    download: bool = False
    fold: int | None = None
    labeled: str | None = None
    unlabeled: str | None = None
    lanes: int | None = None
    test: str | None = None
    min_confidence: float | None = None
    seeds_per_class: int | None = None
    probs: str | None = None
    features: tuple[str, ...] = ()
    split: str | None = None
    image_size: int | None = None
    crop: Literal["shift", "resized"] = "shift"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    on_error: Literal["stop", "skip"] = "stop"
    input: Literal["auto", "resident", "streaming"] = "auto"
    workers: int = 4
    cache: str | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        super().__post_init__()
        check_settings(
            self,
            "data.",
            fold=(self.fold in (None, *range(10)), "from 0 to 9"),
            image_size=(self.image_size is None or self.image_size > 0, "above 0"),
            crop_scale=(0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "two shares of the area, the smaller first"),
            std=(all(value > 0 for value in self.std or ()), "above 0"),
            workers=(self.workers >= 0, "at least 0"),
            lanes=(self.lanes is None or self.lanes > 0, "above 0"),
            min_confidence=(self.min_confidence is None or 0 <= self.min_confidence <= 1, "in [0, 1]"),
            seeds_per_class=(self.seeds_per_class is None or self.seeds_per_class > 0, "above 0"),
        )
        if self.min_confidence is not None and self.seeds_per_class is not None:
            raise InputError("data.min_confidence and data.seeds_per_class exclude each other: set one to null")
        of_files = {"min_confidence", "seeds_per_class", "probs"} | ({"features"} if self.features else set())
        given = [name for name in sorted(of_files) if getattr(self, name) is not None]
        if given and self.name != "folder":
            raise InputError(
                f"data.{given[0]} is for image files: set data.name to folder, and data.labeled and data.test"
            )

    @property
    def chooses_rows(self) -> bool:
        """Whether only confident rows of `labeled` are labeled images."""
        return self.min_confidence is not None or self.seeds_per_class is not None
