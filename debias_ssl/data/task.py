"""`Task`: the data of a run. Loads the source, leaves out unreadable images, splits, and makes readers and streams."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float16, Int, Int64
from torch import Tensor

from debias_ssl.contract import Place, Problem
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.config import DataConfig
from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.data.reading.cache import readable
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.feature_views import hash_of_views
from debias_ssl.data.reading.features import feature_notes, hash_of_model
from debias_ssl.data.reading.reader import Reader, make_reader
from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.images import UNKNOWN, Data, fingerprint, left_out_notes
from debias_ssl.data.sources.label_files import read_probs
from debias_ssl.data.sources.load import check_classes, load_data
from debias_ssl.data.sources.shards import ShardedNames
from debias_ssl.data.splits import PARTS, Split, SplitConfig, class_counts, draw_split, load_split
from debias_ssl.data.streams import Sampling, TrainingImages, TrainingStream
from debias_ssl.methods.base import Method
from debias_ssl.system.errors import InputError

Part = Literal["test", "validation"]
STATISTICS_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set with its split, ready for training and evaluation."""

    config: DataConfig
    data: Data
    split: Split
    fingerprint: str
    """Hash of the training images, which a run must find again when it is resumed."""
    inputs: dict[str, str]
    """Hashes of other inputs that a resumed run must find again, by the settings that name them."""
    unreadable: dict[str, str]
    """Files that were left out because they cannot be read, with the reasons."""
    readers: dict[str, Reader]
    """Readers of the training images, `train`, and of the test images, `test`."""
    teacher_probs: Float16[np.ndarray, "N C"] | None
    """Class probabilities of the training images from another model or a file; a row of zeros is unknown."""
    place: Place

    @property
    def labeled_counts(self) -> tuple[int, ...]:
        """Labeled images of each class."""
        return class_counts(self.training_labels[self.split.labeled], len(self.data.classes))

    @property
    def training_labels(self) -> Int64[np.ndarray, " N"]:
        """Class of each training image, negative if unknown; for labeled images it is the class in the split."""
        labels = self.data.train.labels.copy()
        if self.split.labels is not None:
            labels[self.split.labeled] = self.split.labels
        return labels

    @property
    def unlabeled_counts(self) -> tuple[int, ...]:
        """Unlabeled images of each true class; images of unknown class are not counted."""
        return class_counts(self.unlabeled_truth, len(self.data.classes))

    @property
    def unlabeled_truth(self) -> Int64[np.ndarray, " U"]:
        """True class of each unlabeled image, negative where unknown; unknown for all if known for labeled ones alone.

        Labeled images that are unlabeled images too were trained on: they say nothing about the others.
        """
        truth = self.data.train.labels[self.split.unlabeled]
        others = ~np.isin(self.split.unlabeled, self.split.labeled)
        return truth if (truth[others] >= 0).any() or not others.any() else np.full_like(truth, UNKNOWN)

    @property
    def notes(self) -> list[str]:
        """Notes for users about the images and their split."""
        notes = [*left_out_notes(self.data.train, self.data.test), *feature_notes(self.config.features)]
        notes += self.data.notes
        border = len(self.data.train) - self.data.num_separate
        shared = int((self.split.validation >= border - self.data.num_shared).sum())
        if shared:
            notes.append(f"{shared} validation images are also unlabeled images: training leaves them out")
        return notes

    @property
    def channels(self) -> int:
        """The number of channels of an image, or of its features."""
        return self.readers["train"].shape[2]

    @property
    def augment(self) -> AugmentConfig:
        """The settings of views, with the defaults of the data set filled in."""
        augment = self.config.augment
        return replace(augment, flip=self.data.flips if augment.flip is None else augment.flip)

    def problem(self, num_features: int) -> Problem:
        return Problem(
            num_classes=len(self.data.classes),
            num_features=num_features,
            labeled_counts=self.labeled_counts,
            num_unlabeled=len(self.split.unlabeled),
        )

    def training_stream(
        self,
        method: Method,
        *,
        seed: int,
        batch_size: int,
        unlabeled_ratio: int,
        balanced: bool,
        has_teacher: bool = False,
    ) -> TrainingStream:
        """The batches of a run, with the views that its method needs.

        Class probabilities are those of `data.probs`, or a teacher computes them from the views (`has_teacher`).
        """
        needs = method.needs
        if (needs.teacher_probs or needs.labeled_teacher_probs) and self.teacher_probs is None and not has_teacher:
            raise InputError(
                f"{type(method).__name__} needs class probabilities of the images: set data.probs or teacher"
            )
        if needs.blank and self.config.features:
            raise InputError(
                f"{type(method).__name__} needs the prediction for a blank image, which stored features do not "
                "include: leave out data.features"
            )
        if needs.validation and not len(self.split.validation):
            raise InputError(f"{type(method).__name__} needs validation images: set data.validation_per_class")
        names = self.data.train.names
        return TrainingStream(
            reader=self.readers["train"],
            images=TrainingImages(
                labels=torch.from_numpy(self.training_labels),
                labeled=torch.from_numpy(self.split.labeled),
                unlabeled=torch.from_numpy(self.split.unlabeled),
                truth=torch.from_numpy(self.unlabeled_truth),
                teacher_probs=None if self.teacher_probs is None else torch.from_numpy(self.teacher_probs),
                shard_borders=(
                    np.searchsorted(self.split.unlabeled, names.borders) if isinstance(names, ShardedNames) else None
                ),
            ),
            sampling=Sampling(
                seed=seed,
                batch_size=batch_size,
                unlabeled_batch_size=batch_size * unlabeled_ratio,
                balanced=balanced,
            ),
            config=replace(self.config, augment=self.augment),
            normalization=Normalization.of(self.data.mean, self.data.std, self.place.device),
            needs=needs,
            place=self.place,
        )

    def evaluation_stream(self, part: Part, batch_size: int) -> EvaluationStream:
        index = np.arange(len(self.data.test)) if part == "test" else self.split.validation
        return EvaluationStream(
            reader=self.readers["test" if part == "test" else "train"],
            index=torch.from_numpy(index),
            mean=self.data.mean,
            std=self.data.std,
            batch_size=batch_size,
            place=self.place,
        )

    def evaluation_labels(self, part: Part) -> Int[Tensor, " N"]:
        labels = self.data.test.labels if part == "test" else self.data.train.labels[self.split.validation]
        return torch.from_numpy(labels)

    @property
    def parts(self) -> list[Part]:
        """The parts with images to evaluate on."""
        return ["test", "validation"] if len(self.split.validation) else ["test"]


def make_task(
    config: DataConfig, *, seed: int, place: Place, split_file: Path | None = None, progress: bool = True
) -> Task:
    """Makes the task of the settings: loads, reads and splits the images.

    Args:
        config: the settings of all stages.
        seed: seed of the split if `data.split_seed` is null.
        place: the rank of this process, and its device.
        split_file: the split.json of a run, to use instead of the settings of the split.
        progress: whether to show progress bars.

    Raises:
        InputError: files are missing, cannot be read or do not fit together.
    """
    data, unreadable = readable_data(config, progress)
    mark = fingerprint(data.train, data.num_separate)
    split = make_split(data, mark, config, seed=seed, split_file=split_file)
    readers = make_readers(data, config, place.device, progress)
    mean, std = channel_statistics(data, readers["train"], config)
    probs = given_probs(data, config)
    return Task(
        config=config,
        data=replace(data, mean=mean, std=std),
        split=split,
        fingerprint=mark,
        inputs=input_hashes(data, config, probs),
        unreadable=unreadable,
        readers=readers,
        teacher_probs=probs,
        place=place,
    )


def readable_data(config: DataConfig, progress: bool = True) -> tuple[Data, dict[str, str]]:
    """The data set of the settings, and the files that are left out because they cannot be read."""
    data = load_data(config)
    check_classes(config, data.classes)
    return readable(data, config, progress)


def make_split(data: Data, mark: str, config: SplitConfig, *, seed: int, split_file: Path | None = None) -> Split:
    """The split in `split_file`, which must be for data with the fingerprint `mark`; without a file, a drawn split.

    Raises:
        InputError: the file is for other data, there are too few images, or there are no labeled or unlabeled images.
    """
    split_file = split_file or (Path(config.split) if config.split else None)
    if split_file is not None:
        split = load_split(split_file, data.classes, mark, len(data.train), lambda: fingerprint(data.train))
    else:
        split = draw_split(
            data.train.labels,
            data.classes,
            config,
            seed=seed,
            num_separate=data.num_separate,
            num_shared=data.num_shared,
        )
    if not len(split.labeled) or not len(split.unlabeled):
        labeled, unlabeled, held_out = (len(getattr(split, part)) for part in PARTS)
        raise InputError(
            f"the split has {labeled} labeled, {unlabeled} unlabeled and {held_out} validation images of "
            f"{len(data.train)}: "
            + (
                "label fewer of them (data.labels_per_class, data.seeds_per_class, data.min_confidence), or set "
                "data.unlabeled_includes_labeled true"
                if labeled
                else "hold out fewer of them (data.validation_per_class), or label more"
            )
        )
    return split


def input_hashes(data: Data, config: DataConfig, probs: Float16[np.ndarray, "N C"] | None) -> dict[str, str]:
    """Hashes of the test images, of the model of the features, and of given class probabilities."""
    hashes = {"data.test": fingerprint(data.test)}
    if config.features:
        hashes["data.features"] = hash_of_model(config.features[0])
        hashes["data.feature_views"] = hash_of_views(config.features if config.feature_views == "auto" else ())
    if probs is not None:
        hashes["data.probs"] = sha256(np.ascontiguousarray(probs).data).hexdigest()[:32]
    return hashes


def make_readers(data: Data, config: ReadingConfig, device: torch.device, progress: bool = True) -> dict[str, Reader]:
    """Readers of the training images and of the test images, which must have the same shape."""
    parts = {"train": data.train, "test": data.test}
    readers = {part: make_reader(images, config, device, progress) for part, images in parts.items()}
    shapes = {part: reader.shape for part, reader in readers.items()}
    if shapes["train"] != shapes["test"]:
        raise InputError(f"training images are {shapes['train']}, test images {shapes['test']}: set data.image_size")
    return readers


def channel_statistics(
    data: Data, reader: Reader, config: ReadingConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: from the settings, else those of the data set or the features."""
    mean, std = _statistics_of(reader) if config.features and config.mean is None else (data.mean, data.std)
    mean, std = config.mean or mean, config.std or std
    channels = reader.shape[2]
    if not channels == len(mean) == len(std):
        raise InputError(f"data.mean and data.std need {channels} numbers, one for each channel")
    return mean, std


def _statistics_of(reader: Reader) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each feature over images."""
    assert reader.pixels is not None
    # In parts that fit into a processor's cache, instead of one copy in fp64.
    parts = reader.pixels.flatten(0, 2).split(STATISTICS_ROWS)
    number = sum(len(part) for part in parts)
    mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / number
    std = (torch.stack([(part.double() - mean).square_().sum(0) for part in parts]).sum(0) / number).sqrt()
    # A constant feature must not be divided by zero.
    return tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist())


def given_probs(data: Data, config: SourceConfig) -> Float16[np.ndarray, "N C"] | None:
    """Class probabilities of the training images in `data.probs`; None if it is null."""
    if config.probs is None:
        return None
    root = None if config.root is None else Path(config.root)
    return read_probs(Path(config.probs), root, data.train.names, data.classes)
