"""The settings of a source: which data set is read, and from where."""

from dataclasses import dataclass
from typing import Annotated

from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import AtLeastOne, Fraction, Range, check_ranges


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The images of a data set, their labels, and their class probabilities.

    Args:
        name: `digits` is scikit-learn's; `folder` uses `labeled`, `unlabeled` and `test`; `hf` uses `path`; CIFAR10,
            CIFAR100, STL10, SVHN and FashionMNIST are torchvision's; package.module.function is a data set of your own.
        root: folder of torchvision's data sets, or the base of relative paths in label files (null: the file's folder).
        download: whether to download a data set: one of torchvision that is not in `root`, or for `hf` one that `path`
            names on the Hugging Face hub.
        fold: STL10's predefined fold of 1,000 labeled images; null takes all 5,000.
        labeled: a tree with a folder for each class, or a CSV or Parquet file of path,label, such as the labels.csv
            of `debias-ssl label`.
        min_confidence: for a CSV file with a confidence column: rows with at least this confidence are labeled images,
            and all others are unlabeled.
        seeds_per_class: for such a file: this number of the most confident rows of each class are labeled images.
        probs: folder of `debias-ssl label` or `debias` with class probabilities of the unlabeled images, for methods
            that need them.
        unlabeled: a folder of images at any depth, a text file of paths, a CSV file of path and perhaps label, or tar
            files (shards), such as train-{000..099}.tar; null takes the images of `labeled` that get no label.
        test: a tree or a CSV file like `labeled`.
        path: for `hf`: a folder that `save_to_disk` of the package datasets wrote, a folder of Parquet files, one
            Parquet file, or with `download` a name on the hub.
        train_split: for `hf`: the split of the training images; write parts as train[:80%].
        unlabeled_split: for `hf`: a separate split of unlabeled images; null takes the images of `train_split` that get
            no label.
        test_split: for `hf`: the split of the test images.
        image_column: for `hf`: the column of the images; null takes the only one.
        label_column: for `hf`: the column of the classes; null takes the only ClassLabel column, or one called `label`.
        cache: folder of decoded arrays and of indexes of tar files; null takes the user's cache folder.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    fold: Annotated[int, Range(0, 9, below=False)] | None = None
    labeled: str | None = None
    unlabeled: str | None = None
    test: str | None = None
    path: str | None = None
    train_split: str = "train"
    unlabeled_split: str | None = None
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
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
        """Whether the data set is a function of the user."""
        return "." in self.name

    @property
    def chooses_rows(self) -> bool:
        """Whether only confident rows of `labeled` are labeled images."""
        return self.min_confidence is not None or self.seeds_per_class is not None
