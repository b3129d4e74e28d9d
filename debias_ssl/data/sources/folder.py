"""The data set `folder`: image files in folders, label files, lists of paths and tar files."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.dataset_rows import folder_of_hf, is_hf, rows_of_hf
from debias_ssl.data.sources.identity import Listed, each_once, separated
from debias_ssl.data.sources.images import UNKNOWN, Data, Images, common_parent
from debias_ssl.data.sources.label_files import (
    LabelFile,
    confident,
    has_confidence,
    read_classes,
    read_confidence,
    read_label_file,
    read_list,
)
from debias_ssl.data.sources.left_out import BESIDE, EXTENSIONS, LeftOut, Tally, none_told, summed
from debias_ssl.data.sources.listing import FileNames, find_images, joined, look_at, shared_listing
from debias_ssl.data.sources.shards import is_shards, member_named, on_disk, open_shards
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.imports import near_beside


@dataclass(frozen=True, kw_only=True)
class Found:
    """Files, and the names of their classes; an empty name is an unknown class."""

    paths: FileNames | list[str]
    labels: list[str]
    notes: tuple[str, ...] = ()


def find_files(where: str, setting: str, root: str | None = None, root_setting: str = "--root") -> Images:
    """Images of a folder of any depth, an image, a text file of paths, a CSV file with a path column, or tar files.

    A value that begins with `hf:` is a data set of Hugging Face. Labels are left out.

    Args:
        where: the value of a setting.
        setting: the name of the setting, for errors.
        root: the folder that the paths of a list are relative to and must lie below; None is the folder of the list.
        root_setting: the setting with which users set the root.

    Raises:
        InputError: there are no images, or `root` is given but `where` is not a list.
    """
    if root is not None and not is_list(where):
        raise InputError(
            f"{root_setting} works with lists and CSV files, but {setting} {where!r} is neither: leave it out"
        )
    if is_hf(where):
        names = rows_of_hf(where, setting).names
        return Images(pixels=None, labels=np.full(len(names), UNKNOWN), names=names)
    if is_shards(where):
        return images_in_shards(where, (), setting)
    listed = _unlabeled_files(where, None if root is None else Path(root), setting, root_setting=root_setting)
    return _images_of(replace(listed, labels=[""] * len(listed.labels)), (), where)


def is_list(where: str) -> bool:
    """Whether a setting names a text file of paths or a CSV file."""
    path = Path(where)
    return path.is_file() and not is_shards(where) and path.suffix.lower() not in EXTENSIONS


def is_table(path: Path) -> bool:
    """Whether a list of images names its columns."""
    return path.suffix.lower() in (".csv", ".tsv", ".parquet")


def listed_images(paths: Sequence[str | Path], setting: str) -> Images:
    """Images from a sequence of paths. Paths may lead into tar files. Labels are not read."""
    names = [str(path) for path in paths]
    if not names:
        raise InputError(f"{setting} lists no images")
    missing = next((name for name in names if not Path(name).is_file() and member_named(name) is None), None)
    if missing is not None:
        raise InputError(f"{setting}: there is no file {missing!r}")
    files = [member_named(name) or str(Path(name)) for name in names]
    return images_of_files(files, [""] * len(names), (), setting)


def folder_of(where: str, images: Images, root: str | None = None) -> Path:
    """The folder that the paths of `find_files` are relative to: the given one, or that of the list."""
    if root is not None:
        return Path(root)
    if is_hf(where):
        return folder_of_hf(where)
    if is_shards(where):
        return common_parent([file.path for file in on_disk(images.names)])
    return Path(where) if Path(where).is_dir() else Path(where).parent


def read_folder(config: SourceConfig) -> Data:
    """Images of the files that `labeled`, `unlabeled` and `test` name; mean and deviation are ImageNet's."""
    if config.labeled is None or config.test is None:
        raise InputError(
            "data.name 'folder' needs data.labeled and data.test: a class tree or a CSV of path,label each"
        )
    labeled_in, root = Path(config.labeled), None if config.root is None else Path(config.root)
    # Rows without a label (abstention) are not chosen, so labels are not required then.
    listed = labeled_files(config.labeled, root, "data.labeled", config.cache, needs_labels=not config.chooses_rows)
    classes = class_names([*listed.labels, *(read_classes(labeled_in) if config.chooses_rows else ())])
    labeled = each_once(_images_of(listed, classes, config.labeled), classes, config.labeled)
    notes, unlabeled = labeled.notes, None
    if config.chooses_rows:
        labeled, unlabeled = _chosen(labeled, config, len(classes))
    if config.unlabeled is not None:
        if is_shards(config.unlabeled):
            images = images_in_shards(config.unlabeled, classes, "data.unlabeled", config.cache)
        else:
            listed = _unlabeled_files(config.unlabeled, root, "data.unlabeled", config.cache, classes)
            images = _images_of(listed, classes, config.unlabeled)
        unlabeled = each_once(images, classes, config.unlabeled)
        notes += unlabeled.notes
    test = _read_test(config, classes)
    sets = separated(labeled, unlabeled, test, classes, are_certain=not has_confidence(labeled_in))
    return sets.with_test(test.images, classes, (*notes, *test.notes))


def read_test(config: SourceConfig, classes: tuple[str, ...]) -> Images:
    """The test images alone, for a model with these classes."""
    return _read_test(config, classes).images


def _read_test(config: SourceConfig, classes: tuple[str, ...]) -> Listed:
    if config.test is None:
        raise InputError("there are no test images: set data.test to a class tree or a CSV of path,label")
    root = None if config.root is None else Path(config.root)
    listed = labeled_files(config.test, root, "data.test", config.cache, classes)
    return each_once(_images_of(listed, classes, config.test), classes, config.test)


def _chosen(listed: Listed, config: SourceConfig, num_classes: int) -> tuple[Listed, Listed]:
    """The rows of a label file that are confident enough to be labeled images; and the others, without labels."""
    assert config.labeled is not None
    confidence = read_confidence(Path(config.labeled))[listed.rows]
    chosen = confident(listed.images.labels, confidence, num_classes, config.min_confidence, config.seeds_per_class)
    if not chosen.any():
        raise InputError(
            f"no row of {config.labeled!r} has a confidence of {config.min_confidence}, the highest is "
            f"{confidence.max():.3f}: lower data.min_confidence, or set data.seeds_per_class instead"
        )
    others = listed.part(np.flatnonzero(~chosen))
    unknown = replace(others.images, labels=np.full_like(others.images.labels, UNKNOWN))
    return listed.part(np.flatnonzero(chosen)), replace(others, images=unknown)


def images_of_files(files: FileNames | list[str], names: list[str], classes: tuple[str, ...], where: str) -> Images:
    """Images of files; an empty name is an unknown class."""
    number = {name: k for k, name in enumerate(classes)} | {"": UNKNOWN}
    unknown = sorted(set(names) - set(number))
    if unknown:
        raise InputError(
            f"{where} has a class {unknown[0]!r} that the labeled images do not have: {shortened(classes)}"
        )
    labels = np.fromiter((number[name] for name in names), np.int64, len(names))
    counts = files.left_out if isinstance(files, FileNames) else {}
    left_out = (LeftOut(where=where, number=len(files), counts=counts),) if counts else ()
    return Images(pixels=None, labels=labels, names=files, left_out=left_out)


def _images_of(found: Found, classes: tuple[str, ...], where: str) -> Images:
    images = images_of_files(found.paths, found.labels, classes, where)
    return replace(images, notes=(*images.notes, *found.notes))


def images_in_shards(
    where: str,
    classes: tuple[str, ...],
    setting: str,
    cache: str | None = None,
    numbers: Mapping[str, int] | None = None,
) -> Images:
    """Images in tar files. The .cls members have names of classes or, if one is not a name, class numbers.

    Without `classes`, labels are left out. `numbers` maps all accepted names of classes to their numbers; None accepts
    only the names in `classes`.
    """
    names, codes, texts = open_shards(where, setting, cache)
    number: Mapping[str, int] = {name: k for k, name in enumerate(classes)} if numbers is None else numbers
    if not set(texts) <= set(number):
        number = {str(k): k for k in range(len(classes))}
    wrong = [text for text in texts if text not in number]
    if classes and wrong:
        raise InputError(
            f"{where}: a .cls member says {wrong[0]!r}, which is neither one of the classes, {shortened(classes)}, "
            f"nor one of their numbers, 0 to {len(classes) - 1}"
        )
    found = np.array([*(number.get(text, UNKNOWN) for text in texts), UNKNOWN], dtype=np.int64)
    left_out = (LeftOut(where=where, number=len(names), counts=names.left_out),) if names.left_out else ()
    return Images(pixels=None, labels=found[codes], names=names, left_out=left_out)


def class_names(names: list[str]) -> tuple[str, ...]:
    """Names in order: numbers by value, other names by the alphabet."""
    found = set(names) - {""}
    numbers = all(name.isdecimal() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numbers else 0, name)))


def deeper_classes(folder: Path) -> Path | None:
    """The nearest folder below this one that contains several folders."""
    return next((inner for inner in _folders_below(folder) if len(_shown_folders(inner)) > 1), None)


def _folders_below(folder: Path) -> Iterator[Path]:
    """Folders at any depth, the nearest ones first."""
    level = _shown_folders(folder)
    while level:
        yield from level
        level = [inner for each in level for inner in _shown_folders(each)]


def _shown_folders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def labeled_files(
    where: str,
    root: Path | None,
    setting: str,
    cache: str | None = None,
    classes: Collection[str] = (),
    *,
    needs_labels: bool = True,
) -> Found:
    """Paths and class names from a class tree or a CSV file; `needs_labels` requires a label in each row."""
    path = Path(where)
    if path.is_file():
        return _of_rows(read_label_file(path, root, classes, needs_labels=needs_labels))
    if not path.is_dir():
        raise InputError(f"{setting} is {where!r}: there is no such folder or file{near_beside(path)}")
    paths, labels = shared_listing(where, cache, lambda: _tree(where, setting))
    return Found(paths=paths, labels=labels)


def _of_rows(listed: LabelFile) -> Found:
    return Found(paths=listed.files, labels=listed.labels, notes=listed.notes)


def _tree(where: str, setting: str) -> tuple[FileNames, list[str]]:
    """Paths and class names from a class tree."""
    folders = _shown_folders(Path(where))
    if not folders:
        raise InputError(f"{setting} is {where!r}: it must have a folder for each class, but it has no folders")
    lists, names = [], []
    for folder in folders:
        found = find_images(folder)
        if not len(found):
            why = none_told(found.left_out)
            raise InputError(f"{setting}: class folder {str(folder)!r} has no images{why}; remove it or fill it")
        lists.append(found)
        names += [folder.name] * len(found)
    paths = joined(*lists)
    assert isinstance(paths, FileNames)
    return replace(paths, left_out=summed([paths.left_out, _left_beside(Path(where))])), names


def _left_beside(folder: Path) -> dict[str, int]:
    """Entries beside the class folders, which have no class, counted by reason."""
    left_out = Tally()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                seen = look_at(entry)
                left_out.add(seen if isinstance(seen, str) else BESIDE)
    return left_out.counts


def _unlabeled_files(
    where: str,
    root: Path | None,
    setting: str,
    cache: str | None = None,
    classes: Collection[str] = (),
    root_setting: str = "data.root",
) -> Found:
    """Paths, and class names if they are known, from a folder of any depth, an image, a list or a CSV file."""
    path = Path(where)
    if path.is_dir():
        # "/." distinguishes this listing from that of a class tree in the same folder.
        paths, names = shared_listing(f"{where}/.", cache, lambda: _images_below(path))
        if not len(paths):
            shards = f"; for its tar files, write {str(path / '*.tar')!r}" if any(path.glob("*.tar")) else ""
            raise InputError(f"{setting} is {where!r}: it has no images{shards or none_told(paths.left_out)}")
        return Found(paths=paths, labels=names)
    if not path.is_file():
        raise InputError(f"{setting} is {where!r}: there is no such folder or file{near_beside(path)}")
    if path.suffix.lower() in EXTENSIONS:
        return Found(paths=[str(path)], labels=[""])
    if is_table(path):
        return _of_rows(read_label_file(path, root, classes, root_setting=root_setting))
    return _of_rows(read_list(path, root, root_setting))


def _images_below(folder: Path) -> tuple[FileNames, list[str]]:
    found = find_images(folder)
    return found, [""] * len(found)
