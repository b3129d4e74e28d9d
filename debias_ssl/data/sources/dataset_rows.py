"""Hugging Face's map-style data sets as lists of image bytes, from Arrow files or from Parquet files.

The package datasets finds the Arrow files. It converts Parquet files to Arrow once, and keeps the result in its cache.
"""

import importlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.arrow_columns import NO_CLASS, Columns, bytes_type
from debias_ssl.data.sources.rows import RowNames
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.hub import hub_or_cache
from debias_ssl.system.tables import LABELS, usual

# Values of `--images` that name a data set of Hugging Face begin with this.
PREFIX = "hf:"
SUFFIXES = (".parquet", ".arrow")
# Files in a folder of `save_to_disk` with several splits, or with one.
SPLITS_FILE, STATE_FILE = "dataset_dict.json", "state.json"
ROW = re.compile(r"(?P<where>.+)/(?P<split>[^/\[\]]+)\[(?P<row>\d+)\](?:\.(?P<column>[^/]+))?")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Images of a split, of several splits, or of parts of splits."""

    names: RowNames
    codes: Int64[np.ndarray, " N"]
    """Class of each image as a position in `classes`; negative if unknown."""
    classes: tuple[str, ...]
    """The names of a ClassLabel column, or the different values of another column as text."""
    is_fixed: bool
    """Whether the type of the column lists the classes, in their order."""

    def labels(self, number: Mapping[str, int]) -> Int64[np.ndarray, " N"]:
        """The numbers of the classes by their names; negative for rows without a class."""
        return np.array([*(number.get(name, NO_CLASS) for name in self.classes), NO_CLASS], dtype=np.int64)[self.codes]


@dataclass(frozen=True, kw_only=True)
class DatasetRows:
    """A data set of Hugging Face."""

    where: str
    splits: Mapping[str, Any]
    """A `datasets.Dataset` for each split, by name."""

    def rows(self, split: str, setting: str, image_column: str | None = None, label_column: str | None = None) -> Rows:
        """The images and classes of a split.

        Args:
            split: the name of a split, or an expression of `datasets`: a part such as `train[:80%]`, or a sum such as
                `train+validation`.
            setting: the name of the setting, for errors.
            image_column: the column of the images; None takes the only one.
            label_column: the column of the classes; None takes the only ClassLabel column, or one with a usual name.

        Raises:
            InputError: there is no such split or column, several columns fit, or a row has no image.
        """
        parts, label = self._parts(split, setting), label_column
        image = self._image_column(parts[0][0], image_column)
        if label is None:
            label = self._label_column(parts[0][0])
        columns = [Columns.read(self.splits[name], image, label, f"{self.where}, {name}") for name, *_ in parts]
        fixed = next((found.classes for found in columns if found.is_fixed), None)
        classes = fixed or tuple(dict.fromkeys(text for found in columns for text in found.classes))
        number, names, codes = {name: k for k, name in enumerate(classes)}, [], []
        suffix = "" if image_column is None else f".{image_column}"
        for (name, first, stop), found in zip(parts, columns, strict=True):
            place = np.arange(first, stop)
            names.append(found.names(os.path.join(self.where, name), suffix).part(place))
            codes.append(np.array([*map(number.__getitem__, found.classes), NO_CLASS])[found.codes[place]])
        return Rows(
            names=RowNames.joined(names), codes=np.concatenate(codes), classes=classes, is_fixed=fixed is not None
        )

    def _parts(self, split: str, setting: str) -> list[tuple[str, int, int]]:
        """The splits and ranges of rows that the expression `split` names."""
        sizes = {name: len(each) for name, each in self.splits.items()}
        try:
            found = importlib.import_module("datasets").ReadInstruction.from_spec(split).to_absolute(sizes)
        except (ValueError, AssertionError) as error:
            raise InputError(
                f"{setting} is {split!r}: {self.where!r} has the splits {', '.join(sizes)}; write a part of a "
                "split as train[:80%]"
            ) from error
        parts = [
            (each.splitname, each.from_ or 0, sizes[each.splitname] if each.to is None else each.to) for each in found
        ]
        if not sum(stop - first for _, first, stop in parts):
            raise InputError(f"{setting} is {split!r}: it has no rows in {self.where!r}")
        return parts

    def _image_column(self, split: str, chosen: str | None) -> str:
        features, kinds = self.splits[split].features, importlib.import_module("datasets")
        schema = features.arrow_schema
        if chosen is not None:
            if chosen not in features or bytes_type(schema.field(chosen).type) is None:
                raise InputError(f"data.image_column is {chosen!r}: {self._columns(split)}")
            return chosen
        found = [name for name, feature in features.items() if isinstance(feature, kinds.Image)]
        # Files of other programs do not have the column types of Hugging Face.
        found = found or [
            name
            for name, feature in features.items()
            if isinstance(feature, dict) and bytes_type(schema.field(name).type)
        ]
        if len(found) != 1:
            raise InputError(f"which column has the images? Set data.image_column: {self._columns(split)}")
        return found[0]

    def _label_column(self, split: str) -> str | None:
        features = self.splits[split].features
        kind = importlib.import_module("datasets").ClassLabel
        found = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(found) > 1:
            raise InputError(f"which column has the classes? Set data.label_column: {self._columns(split)}")
        return found[0] if found else next((name for name in features if usual(name) in LABELS), None)

    def _columns(self, split: str) -> str:
        told = (f"{name} ({type(feature).__name__})" for name, feature in self.splits[split].features.items())
        return f"{self.where!r} has the columns {', '.join(told)}"


def open_dataset(where: str, setting: str, *, download: bool = False, cache: str | None = None) -> DatasetRows:
    """A data set in a folder, in a file or, if downloads are allowed, on the hub. No code in it is executed.

    Args:
        where: a folder that `save_to_disk` has written, a folder with Parquet or Arrow files at any depth, such a
            file, or a name on the hub.
        setting: the setting with this value, for errors.
        download: whether a name may be downloaded from the hub.
        cache: folder of converted Parquet files; None is the default of `datasets`.

    Raises:
        InputError: the package is missing, or there is no such data set.
    """
    datasets = _package(setting)
    path, kept = Path(where), None if cache is None else os.path.join(cache, "huggingface")
    try:
        if (path / SPLITS_FILE).is_file() or (path / STATE_FILE).is_file():
            found = datasets.load_from_disk(where)
        elif path.exists():
            files = _files(path, setting)
            kind = "parquet" if all(name.endswith(".parquet") for each in files.values() for name in each) else "arrow"
            found = datasets.load_dataset(kind, data_files=files, cache_dir=kept)
        elif download:
            with hub_or_cache():
                found = datasets.load_dataset(where, cache_dir=kept)
        else:
            raise InputError(
                f"{setting} is {where!r}: there is no such folder or file; for a data set on the hub, "
                + ("pass --data.download true" if setting.startswith("data.") else "save it first, by save_to_disk")
            )
    except InputError:
        raise
    except Exception as error:  # its readers of damaged files and its downloads raise nearly anything
        raise InputError(f"{setting}: datasets cannot read {where!r}: {reason(error)}") from error
    splits = {str(found.split or "train"): found} if isinstance(found, datasets.Dataset) else {**found}
    return DatasetRows(where=where, splits=splits)


def _package(setting: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise InputError(f"{setting} needs the package datasets: pip install 'debias-ssl[hf]'") from error


def _files(path: Path, setting: str) -> dict[str, list[str]]:
    """The Parquet or Arrow files of each split, found by `datasets` from the names of files and folders."""
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{setting} is {str(path)!r}: it is not a Parquet or Arrow file")
        return {"train": [os.path.abspath(path)]}
    module = importlib.import_module("datasets.data_files")
    files = {}
    if _holds_tables(path):
        # A README.md in the folder is ignored, because it may name addresses on the network.
        for split, patterns in module.get_data_patterns(os.path.abspath(path)).items():
            found = set()
            for pattern in patterns:
                # Only one of the patterns of a split must match.
                with suppress(FileNotFoundError):
                    found.update(module.resolve_pattern(pattern, os.path.abspath(path)))
            files[str(split)] = sorted(name for name in found if name.endswith(SUFFIXES))
    files = {split: names for split, names in files.items() if names}
    if not files:
        raise InputError(
            f"{setting} is {str(path)!r}: it is not a Hugging Face data set: it has no {SPLITS_FILE} and no "
            "Parquet files"
        )
    return files


def _holds_tables(path: Path) -> bool:
    return any(next(path.rglob(f"*{suffix}"), None) is not None for suffix in SUFFIXES)


def is_hf(where: str) -> bool:
    """Whether a value of `--images` names a data set of Hugging Face."""
    return where.startswith(PREFIX)


def folder_of_hf(where: str) -> Path:
    """The folder or file of the data set that `hf:PATH` or `hf:PATH:SPLIT` names."""
    return Path(_path_and_split(where)[0])


def rows_of_hf(where: str, setting: str) -> Rows:
    """The images that `hf:PATH` or `hf:PATH:SPLIT` names, with their classes. A single split may be left out.

    Raises:
        InputError: there is no such data set or split, or there are several splits and none is named.
    """
    path, split = _path_and_split(where)
    if not path:
        raise InputError(f"{setting} is {where!r}: name a folder or a file after {PREFIX}")
    dataset = open_dataset(path, setting)
    if split is None and len(dataset.splits) > 1:
        first = next(iter(dataset.splits))
        raise InputError(
            f"{setting}: {path!r} has the splits {', '.join(dataset.splits)}: name one, as in {PREFIX}{path}:{first}"
        )
    return dataset.rows(split or next(iter(dataset.splits)), setting)


def _path_and_split(where: str) -> tuple[str, str | None]:
    path = where.removeprefix(PREFIX)
    # The path may contain a colon, and so may a part of a split such as train[:80%].
    fronts = [path[: found.start()] for found in re.finditer(":", path)]
    if not fronts or Path(path).exists():
        return path, None
    front = next((front for front in fronts if Path(front).exists()), fronts[0])
    return front, path[len(front) + 1 :]


def row_named(name: str) -> Member | None:
    """The image with this name in a Hugging Face data set; None if it is not such a name."""
    found = ROW.fullmatch(name)
    if found is None or not _is_dataset(found["where"]):
        return None
    _package(f"a row of {found['where']!r}")
    # A folder that contains tables may be no data set.
    with suppress(InputError):
        dataset, row = _opened(found["where"]), int(found["row"])
        if found["split"] in dataset.splits and row < len(dataset.splits[found["split"]]):
            member = _all_rows(found["where"], found["split"], found["column"])[row]
            return member if isinstance(member, Member) else None
    return None


@lru_cache(maxsize=64)
def _is_dataset(where: str) -> bool:
    path = Path(where)
    if path.is_file():
        return path.name.endswith(SUFFIXES)
    return (path / SPLITS_FILE).is_file() or (path / STATE_FILE).is_file() or (path.is_dir() and _holds_tables(path))


@lru_cache(maxsize=8)
def _opened(where: str) -> DatasetRows:
    return open_dataset(where, f"a row of {where!r}")


@lru_cache(maxsize=8)
def _all_rows(where: str, split: str, column: str | None) -> RowNames:
    return _opened(where).rows(split, f"a row of {where!r}", column).names
