"""The data set `hf`: map-style data sets of Hugging Face."""

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.dataset_rows import DatasetRows, Rows, open_dataset
from debias_ssl.data.sources.folder import class_names
from debias_ssl.data.sources.identity import Listed, each_once, separated
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.label_files import UNKNOWN_WORDS
from debias_ssl.system.errors import InputError, shortened


def read_hf(config: SourceConfig) -> Data:
    """Images of the splits in the settings. Mean and standard deviation are ImageNet's.

    Raises:
        InputError: a setting, a split or a column is missing, or test images have no classes.
    """
    dataset = _dataset(config)
    rows = _rows(dataset, config, config.train_split, "data.train_split")
    if (rows.codes < 0).all():
        raise InputError(
            f"data.train_split is {config.train_split!r}: its rows have no classes; set data.label_column to the "
            "column that has them, or set another split"
        )
    classes = rows.classes if rows.is_fixed else _classes(rows.classes)
    labeled, unlabeled = _listed(rows, classes, "data.train_split"), None
    if config.unlabeled_split is not None:
        rows = _rows(dataset, config, config.unlabeled_split, "data.unlabeled_split")
        unlabeled = _listed(rows, classes, "data.unlabeled_split")
    test = _test(dataset, config, classes)
    sets = separated(labeled, unlabeled, test, classes, are_certain=True)
    return sets.with_test(test.images, classes)


def read_hf_test(config: SourceConfig, classes: tuple[str, ...]) -> Images:
    """The test images alone, for a model with these classes."""
    return _test(_dataset(config), config, classes).images


def _dataset(config: SourceConfig) -> DatasetRows:
    if config.path is None:
        raise InputError("data.name 'hf' needs data.path: a folder or file of a data set of Hugging Face, or its name")
    return open_dataset(config.path, "data.path", download=config.download, cache=config.cache)


def _rows(dataset: DatasetRows, config: SourceConfig, split: str, setting: str) -> Rows:
    return dataset.rows(split, setting, config.image_column, config.label_column)


def _test(dataset: DatasetRows, config: SourceConfig, classes: tuple[str, ...]) -> Listed:
    listed = _listed(_rows(dataset, config, config.test_split, "data.test_split"), classes, "data.test_split")
    unknown = int((listed.images.labels < 0).sum())
    if unknown:
        raise InputError(
            f"data.test_split is {config.test_split!r}: {unknown} of its {len(listed.images)} rows have no class; set "
            f"another split, of {', '.join(dataset.splits)}"
        )
    return listed


def _listed(rows: Rows, classes: tuple[str, ...], setting: str) -> Listed:
    names = rows.classes if rows.is_fixed else _classes(rows.classes)
    used = {rows.classes[k] for k in np.unique(rows.codes[rows.codes >= 0]).tolist()} & {*names}
    others = sorted(used - {*classes})
    if others:
        raise InputError(f"{setting} has a class {others[0]!r} that the model does not know: {shortened(classes)}")
    labels = rows.labels({name: k for k, name in enumerate(classes)})
    return each_once(Images(pixels=None, labels=labels, names=rows.names), classes, setting)


def _classes(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The class names in a column, in order."""
    return class_names([text for text in texts if text.strip().lower() not in UNKNOWN_WORDS])
