"""Data sets: embedded digits, torchvision's, image folders and label files, all as images with labels and names."""

import hashlib
import os.path
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from debias_ssl.data.augment import AugmentConfig
from debias_ssl.data.label_files import confident, inside, read_classes, read_confidence, read_label_file, read_text
from debias_ssl.data.shard_index import EXTENSIONS
from debias_ssl.data.shards import ShardedNames, is_shards, member_named, on_disk, open_shards
from debias_ssl.data.splits import SplitConfig
from debias_ssl.errors import InputError, check_settings, shortened

Name = Literal["digits", "CIFAR10", "CIFAR100", "STL10", "SVHN", "FashionMNIST", "folder"]
UNKNOWN = -1


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


@dataclass(frozen=True, kw_only=True)
class Images:
    """A list of images with their classes (negative where unknown) and names."""

    pixels: UInt8[np.ndarray, "N H W K"] | None
    """Decoded images, or None where `names` are files to read."""
    labels: Int64[np.ndarray, " N"]
    names: Sequence[str]
    """A name for people; the path of a file."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, positions: slice | Sequence[int] | Int64[np.ndarray, " P"]) -> "Images":
        index = np.arange(len(self))[positions]
        order: list[int] = index.tolist()
        pixels = None if self.pixels is None else self.pixels[order]
        if isinstance(self.names, ShardedNames) and (np.diff(index) > 0).all():
            names: Sequence[str] = self.names.part(index)
        else:
            names = [self.names[i] for i in order]
        return Images(pixels=pixels, labels=self.labels[order], names=names)

    def __add__(self, other: "Images") -> "Images":
        pixels = None if self.pixels is None or other.pixels is None else np.concatenate([self.pixels, other.pixels])
        if isinstance(other.names, ShardedNames):
            names: Sequence[str] = replace(other.names, before=[*self.names, *other.names.before])
        else:
            names = [*self.names, *other.names]
        return Images(pixels=pixels, labels=np.concatenate([self.labels, other.labels]), names=names)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Test images, and training images, the last `num_separate` of which are an unlabeled set of its own."""

    classes: tuple[str, ...]
    train: Images
    num_separate: int
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, or of each feature."""


# Mean and standard deviation of the training images' channels.
STATISTICS = {
    "digits": ((0.3053,), (0.3763,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "STL10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "FashionMNIST": ((0.2860,), (0.3530,)),
    "folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load_data(config: DataConfig) -> Data:
    """Reads what a data setting names; files are listed, not yet decoded.

    Raises:
        InputError: something is missing or does not fit together.
    """
    if config.name == "digits":
        classes, train, num_separate, test = _digits()
    elif config.name == "folder":
        classes, train, num_separate, test = _folder(config)
    else:
        classes, train, num_separate, test = _torchvision(config)
    mean, std = STATISTICS[config.name]
    return Data(
        classes=classes,
        train=train,
        num_separate=num_separate,
        test=test,
        mean=config.mean or mean,
        std=config.std or std,
    )


def load_test(config: DataConfig, classes: tuple[str, ...]) -> Images:
    """The test images alone, for a model that knows these classes."""
    if config.name != "folder":
        return load_data(config).test
    if config.test is None:
        raise InputError("there are no test images: set data.test to a class tree or a CSV of path,label")
    root = None if config.root is None else Path(config.root)
    return _files(*_labeled_files(config.test, root, "data.test"), classes, config.test)


def find_files(where: str, setting: str, root: str | None = None) -> Images:
    """Files of a folder of any depth, an image, a text file of paths, a CSV file with a path column, or tar files.

    Labels are left out.
    """
    if is_shards(where):
        return images_in_shards(where, (), setting)
    paths, _ = _unlabeled_files(where, None if root is None else Path(root), setting)
    return _files(paths, [""] * len(paths), (), where)


def folder_of(where: str, images: Images) -> Path:
    """The folder that the paths of `find_files(where)` are written relative to: the one named, or that of the list."""
    if is_shards(where):
        return common_parent([file.path for file in on_disk(images.names)])
    return Path(where) if Path(where).is_dir() else Path(where).parent


def fingerprint(images: Images) -> str:
    """Hash of the pixels, or of the files' names and sizes, and of the labels: what a run must find again on resume."""
    digest = hashlib.sha256(images.labels.tobytes())
    if images.pixels is not None:
        digest.update(np.ascontiguousarray(images.pixels).data)
    else:
        files = on_disk(images.names)
        parent = common_parent([file.path for file in files])
        for file in files:
            fields = (os.path.relpath(file.path, parent), file.size, *file.part)
            digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


Parts = tuple[tuple[str, ...], Images, int, Images]


def _digits() -> Parts:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every third image is a test image."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    everything = np.arange(len(labels))
    parts = [everything[everything % 3 != 2], everything[everything % 3 == 2]]
    train, test = (
        Images(pixels=pixels[part], labels=labels[part], names=[f"digits/{i}" for i in part]) for part in parts
    )
    return tuple("0123456789"), train, 0, test


def _torchvision(config: DataConfig) -> Parts:
    import torchvision.datasets as sets

    name = config.name
    where = {"root": config.root or "data", "download": config.download}

    def read(part: str) -> tuple[Images, tuple[str, ...]]:
        source: Any
        try:
            if name == "STL10":
                source = sets.STL10(split=part, folds=config.fold if part == "train" else None, **where)
            elif name == "SVHN":
                source = sets.SVHN(split=part, **where)
            else:
                source = getattr(sets, name)(train=part == "train", **where)
        except (RuntimeError, OSError) as error:
            fix = "check the network" if config.download else "pass --data.download true, or another --data.root"
            raise InputError(f"{name} cannot be read from {where['root']!r}: {fix}") from error
        pixels = np.asarray(source.data)
        if name in ("STL10", "SVHN"):
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        elif pixels.ndim == 3:
            pixels = pixels[..., None]
        labels = np.asarray(source.targets if hasattr(source, "targets") else source.labels, dtype=np.int64)
        classes = getattr(source, "classes", None) or [str(k) for k in range(10)]
        names = [f"{name}/{part}/{i}" for i in range(len(labels))]
        return Images(pixels=pixels, labels=labels, names=names), tuple(classes)

    (train, classes), (test, _) = read("train"), read("test")
    num_separate = 0
    if name == "STL10":
        unlabeled, _ = read("unlabeled")
        train, num_separate = train + unlabeled, len(unlabeled)
    return classes, train, num_separate, test


def _folder(config: DataConfig) -> Parts:
    if config.labeled is None or config.test is None:
        raise InputError(
            "data.name 'folder' needs data.labeled and data.test: a class tree or a CSV of path,label each"
        )
    root = None if config.root is None else Path(config.root)
    paths, names = _labeled_files(config.labeled, root, "data.labeled")
    known = read_classes(Path(config.labeled)) if config.chooses_rows else ()
    classes = _class_names([*names, *known])
    train = _files(paths, names, classes, config.labeled)
    num_separate = 0
    if config.chooses_rows:
        train, others = _chosen(train, config, len(classes))
        if config.unlabeled is None:
            train, num_separate = train + others, len(others)
    if config.unlabeled is not None:
        if is_shards(config.unlabeled):
            separate = images_in_shards(config.unlabeled, classes, "data.unlabeled", config.cache)
        else:
            paths, names = _unlabeled_files(config.unlabeled, root, "data.unlabeled")
            separate = _files(paths, names, classes, config.unlabeled)
        num_separate = len(separate)
        train = train + separate
    return classes, train, num_separate, load_test(config, classes)


def _chosen(images: Images, config: DataConfig, num_classes: int) -> tuple[Images, Images]:
    """The rows of a label file that are confident enough to be labeled images, and the others, without labels."""
    assert config.labeled is not None
    confidence = read_confidence(Path(config.labeled))
    chosen = confident(images.labels, confidence, num_classes, config.min_confidence, config.seeds_per_class)
    if not chosen.any():
        raise InputError(
            f"no row of {config.labeled!r} has a confidence of {config.min_confidence}, the highest is "
            f"{confidence.max():.3f}: lower data.min_confidence, or set data.seeds_per_class instead"
        )
    others = images.part(np.flatnonzero(~chosen))
    return images.part(np.flatnonzero(chosen)), replace(others, labels=np.full_like(others.labels, UNKNOWN))


def _files(paths: list[Path], names: list[str], classes: tuple[str, ...], where: str) -> Images:
    """Images of files; an empty name is an unknown class."""
    number = {name: k for k, name in enumerate(classes)} | {"": UNKNOWN}
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise InputError(
            f"{where} has a class {unknown[0]!r} that the labeled images do not have: {shortened(classes)}"
        )
    labels = np.array([number[name] for name in names], dtype=np.int64)
    files = [str(path) for path in paths]
    return Images(pixels=None, labels=labels, names=[member_named(file) or file for file in files])


def images_in_shards(where: str, classes: tuple[str, ...], setting: str, cache: str | None = None) -> Images:
    """Images in tar files; what .cls members say are names of classes or, if not all are, their numbers.

    Without any `classes`, labels are left out.
    """
    names, codes, texts = open_shards(where, setting, cache)
    number = {name: k for k, name in enumerate(classes)}
    if not set(texts) <= set(number):
        number = {str(k): k for k in range(len(classes))}
    wrong = [text for text in texts if text not in number]
    if classes and wrong:
        raise InputError(
            f"{where}: a .cls member says {wrong[0]!r}, which is neither one of the classes, {shortened(classes)}, "
            f"nor one of their numbers, 0 to {len(classes) - 1}"
        )
    found = np.array([*(number.get(text, UNKNOWN) for text in texts), UNKNOWN], dtype=np.int64)
    return Images(pixels=None, labels=found[codes], names=names)


def _class_names(names: list[str]) -> tuple[str, ...]:
    """Names in order: of numbers by value, else of the alphabet."""
    found = set(names) - {""}
    numbers = all(name.isdecimal() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))


def _labeled_files(where: str, root: Path | None, setting: str) -> tuple[list[Path], list[str]]:
    """Paths and class names from a class tree or a CSV file."""
    path = Path(where)
    if path.is_file():
        paths, names = read_label_file(path, root)
        if "" in names:
            raise InputError(f"{path}: {paths[names.index('')]} has no label")
        return paths, names
    if not path.is_dir():
        raise InputError(f"{setting} is {where!r}: there is no such folder or file")
    folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise InputError(f"{setting} is {where!r}: it has no folders, one for each class is expected")
    paths, names = [], []
    for folder in folders:
        found = find_images(folder)
        if not found:
            raise InputError(f"{setting}: class folder {str(folder)!r} has no images; remove it or fill it")
        paths += found
        names += [folder.name] * len(found)
    return paths, names


def _unlabeled_files(where: str, root: Path | None, setting: str) -> tuple[list[Path], list[str]]:
    """Paths, and class names where they are known, of a folder of any depth, an image, a list or a CSV file."""
    path = Path(where)
    if path.is_dir():
        paths = find_images(path)
        if not paths:
            shards = f"; for its tar files, write {str(path / '*.tar')!r}" if any(path.glob("*.tar")) else ""
            raise InputError(f"{setting} is {where!r}: it has no images{shards}")
        return paths, [""] * len(paths)
    if not path.is_file():
        raise InputError(f"{setting} is {where!r}: there is no such folder or file")
    if path.suffix.lower() in EXTENSIONS:
        return [path], [""]
    if path.suffix.lower() == ".csv":
        return read_label_file(path, root)
    lines = [line.strip() for line in read_text(path).split("\n")]
    paths = [inside(line, root or path.parent, path) for line in lines if line]
    return paths, [""] * len(paths)


def find_images(folder: Path) -> list[Path]:
    """Image files at any depth below a folder, by suffix, in the order of their names.

    Hidden files and folders, such as the `._x.jpg` that macOS puts beside `x.jpg`, are not looked at; links to folders
    are not followed.
    """
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS}
    shown = [inner for inner in found if not any(part.startswith(".") for part in inner.parts)]
    return [found[inner] for inner in sorted(shown, key=lambda inner: inner.as_posix()) if found[inner].is_file()]


def common_parent(names: Sequence[str]) -> Path:
    """The folder below which all files lie."""
    return Path(os.path.commonpath([os.path.abspath(Path(name).parent) for name in names]))
