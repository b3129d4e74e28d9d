"""The settings of a source: which images there are."""

from dataclasses import dataclass
from typing import Annotated

from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import AtLeastOne, Fraction, Range, check_ranges


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which images there are, and what is known of them.

    Args:
        name: `digits` is embedded; `folder` takes `labeled`, `unlabeled` and `test`; CIFAR10, CIFAR100, STL10, SVHN and
            FashionMNIST are torchvision's; package.module.function is a data set of your own.
        root: folder of torchvision's data sets, or what relative paths in label files are relative to (null: the file).
        download: whether torchvision may download a data set that is not in `root`.
        fold: STL10's predefined fold of 1,000 labeled images; null takes all 5,000.
        labeled: a tree with a folder for each class, or a CSV or Parquet file of path,label, such as the labels.csv
            of `debias-ssl label`.
        min_confidence: of a CSV file with a confidence column, the rows from this confidence on are the labeled images,
            and the others are unlabeled.
        seeds_per_class: likewise, so many of the most confident rows of each class.
        probs: folder of `debias-ssl label` or `debias`, whose class probabilities of the unlabeled images are given to
            methods that ask for them.
        unlabeled: a folder of images at any depth, a text file of paths, a CSV file of path and perhaps label, or tar
            files (shards), such as train-{000..099}.tar; null takes the images of `labeled` that are not labeled.
        test: a tree or a CSV file like `labeled`.
        cache: folder of decoded arrays and of indexes of tar files; null takes the user's cache folder.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    fold: Annotated[int, Range(0, 9, below=False)] | None = None
    labeled: str | None = None
    unlabeled: str | None = None
    test: str | None = None
    min_confidence: Fraction | None = None
    seeds_per_class: AtLeastOne | None = None
    probs: str | None = None
    cache: str | None = None

    def __post_init__(self):
        check_ranges(self, "data.", SourceConfig)
        if self.min_confidence is not None and self.seeds_per_class is not None:
            raise InputError("data.min_confidence and data.seeds_per_class exclude each other: set one to null")

    @property
    def is_own(self) -> bool:
        """Whether a function of the user's own gives the data."""
        return "." in self.name

    @property
    def chooses_rows(self) -> bool:
        """Whether only confident rows of `labeled` are labeled images."""
        return self.min_confidence is not None or self.seeds_per_class is not None
