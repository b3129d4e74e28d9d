"""Finds images that are the same file, even if they are listed several times or by different paths."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int64

from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.sources.listing import FileNames
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A list of images in which each file occurs once."""

    images: Images
    keys: Int64[np.ndarray, " N"] | None
    """Numbers of the files from `file_keys`; None for tar files, whose images are not compared."""
    rows: Int64[np.ndarray, " N"]
    """Positions of the images in the original list."""
    notes: tuple[str, ...] = ()

    def part(self, positions: Int64[np.ndarray, " P"]) -> "Listed":
        keys = None if self.keys is None else self.keys[positions]
        return replace(self, images=self.images.part(positions), keys=keys, rows=self.rows[positions])


def file_keys(names: Sequence[str]) -> Int64[np.ndarray, " N"]:
    """A number for each image, which is equal for paths of the same file: a hash of the path with links resolved.

    For an image in a tar file, the link to the tar file is resolved. Numbers of 64 bits need 0.1 times the memory of
    paths. With a million files, the probability of two equal numbers is 3e-8.
    """
    folders: dict[str, str] = {}
    links_in: dict[str, set[str] | None] = {}
    tars: dict[str, str] = {}

    def resolved(path: str, is_link: bool | None = None) -> str:
        folder, _, name = path.rpartition(os.sep)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder or (os.sep if path.startswith(os.sep) else "."))
        real = folders[folder]
        path = f"{real}{os.sep}{name}"
        if is_link is None:
            if real not in links_in:
                links_in[real] = _links_in(real)
            links = links_in[real]
            is_link = os.path.islink(path) if links is None else name in links
        return os.path.realpath(path) if is_link else path

    def key(name: str) -> int:
        if not isinstance(name, Member):
            return hash(resolved(name))
        if name.shard.path not in tars:
            tars[name.shard.path] = resolved(name.shard.path)
        return hash(f"{tars[name.shard.path]}/{name.inner}")

    if isinstance(names, FileNames):
        # A listing knows which files are links.
        found = (hash(resolved(name, bool(is_link))) for name, is_link in zip(names, names.links, strict=True))
        return np.fromiter(found, np.int64, len(names))
    return np.fromiter((key(name) for name in names), np.int64, len(names))


def _links_in(folder: str) -> set[str] | None:
    """Names of the links in a folder; None if it cannot be listed. To test each file takes ten times as long."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return None


def each_once(images: Images, classes: Sequence[str], where: str) -> Listed:
    """A list of images without repeated files.

    Args:
        images: a list of files.
        classes: names of the classes, for errors.
        where: the folder or file of the list, for messages; for a file, messages have row numbers.

    Raises:
        InputError: a file has two labels.
    """
    if isinstance(images.names, ShardedNames):
        return Listed(images=images, keys=None, rows=np.arange(len(images)))  # the names in a tar file differ
    keys = file_keys(images.names)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    if len(first) == len(images):
        return Listed(images=images, keys=keys, rows=np.arange(len(images)), notes=images.notes)
    before = first[group]
    now, then = images.labels, images.labels[before]
    wrong = np.flatnonzero((now != then) & (now >= 0) & (then >= 0))
    if len(wrong):
        i, j = int(before[wrong[0]]), int(wrong[0])
        named = f"rows {i + 1} and {j + 1}, {images.names[i]!r}," if os.path.isfile(where) else f"{images.names[i]!r}"
        named += f" and {images.names[j]!r}" if images.names[i] != images.names[j] else ""
        raise InputError(
            f"{where}: {named} are the same file, labeled {classes[now[i]]!r} and {classes[now[j]]!r}: keep one of them"
        )
    rows = np.sort(first)
    note = f"{where} has {len(images) - len(rows)} duplicate files: each counts once"
    return Listed(images=images.part(rows), keys=keys[rows], rows=rows, notes=(*images.notes, note))


def among(some: Listed, others: Listed) -> Bool[np.ndarray, " N"]:
    """Whether each of some images is among other images; shards without one of them are not read."""
    assert others.keys is not None
    if some.keys is not None:
        return np.isin(some.keys, others.keys)
    names = some.images.names
    assert isinstance(names, ShardedNames)
    found = np.zeros(len(names), dtype=bool)
    for start, stop in _shards_of(names, others.images.names):
        found[start:stop] = np.isin(file_keys(names[start:stop]), others.keys)
    return found


def _shards_of(names: ShardedNames, members: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of the images of each shard that has one of the members."""
    wanted = {member.shard.path for member in members if isinstance(member, Member)}
    real = {os.path.realpath(path) for path in wanted}
    if not real:
        return
    for shard, start, stop in zip(names.shards, names.borders[:-1], names.borders[1:], strict=True):
        if os.path.realpath(shard.path) in real:
            yield int(start), int(stop)


def _keys_of(listed: Listed, positions: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, " P"]:
    if listed.keys is not None:
        return listed.keys[positions]
    chosen: list[int] = positions.tolist()
    return file_keys([listed.images.names[i] for i in chosen])


def _check_labels(
    some: Listed, positions: Int64[np.ndarray, " P"], setting: str, labeled: Listed, classes: Sequence[str]
) -> None:
    """Raises InputError if a file has one label among the labeled images and another one elsewhere."""
    assert labeled.keys is not None
    order = np.argsort(labeled.keys)
    place = order[np.searchsorted(labeled.keys[order], _keys_of(some, positions))]
    labels, known = some.images.labels[positions], labeled.images.labels[place]
    wrong = np.flatnonzero((labels != known) & (labels >= 0) & (known >= 0))
    if len(wrong):
        i = int(wrong[0])
        raise InputError(
            f"{some.images.names[int(positions[i])]!r} is {classes[known[i]]!r} in data.labeled and "
            f"{classes[labels[i]]!r} in {setting}: mend one of them"
        )


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Lists of images without common files, except for test images among the labeled ones."""

    train: Images
    num_separate: int
    num_shared: int
    """As in `Data`."""
    notes: tuple[str, ...]

    def with_test(self, test: Images, classes: tuple[str, ...], notes: Sequence[str] = ()) -> Data:
        """The data set of these images and test images. Mean and standard deviation are ImageNet's."""
        return Data(
            classes=classes,
            train=self.train,
            num_separate=self.num_separate,
            num_shared=self.num_shared,
            test=test,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            notes=(*notes, *self.notes),
        )


def separated(
    labeled: Listed, unlabeled: Listed | None, test: Listed, classes: Sequence[str], *, are_certain: bool
) -> Sets:
    """Makes each file one image. A file that is labeled and unlabeled is in both sets; test images are not unlabeled.

    Args:
        labeled: images with labels.
        unlabeled: the separate set of unlabeled images; None without such a set.
        test: images with labels.
        classes: names of the classes, for errors.
        are_certain: whether people gave the labels, so that two different labels of a file are an error.

    Raises:
        InputError: a file has two labels, or all unlabeled files are test images.
    """
    notes, known = [], np.flatnonzero(among(test, labeled))
    if len(known):
        notes.append(f"{len(known)} test images are also labeled images: test results are too optimistic")
    if are_certain:
        _check_labels(test, known, "data.test", labeled, classes)
    if unlabeled is None:
        return Sets(train=labeled.images, num_separate=0, num_shared=0, notes=tuple(notes))
    number, tested, both = len(unlabeled.images), among(unlabeled, test), among(unlabeled, labeled)
    if not number:
        raise InputError(
            "all images have a label, so none is unlabeled: lower data.seeds_per_class, raise "
            "data.min_confidence, or set data.unlabeled"
        )
    if tested.all():
        raise InputError("all unlabeled images are also test images: set data.unlabeled to other images")
    if tested.any():
        notes.append(f"{tested.sum()} of {number} unlabeled images are also test images: left out")
    if both.any():
        notes.append(f"{both.sum()} of {number} unlabeled images are also labeled images: each counts once")
    if are_certain:
        _check_labels(unlabeled, np.flatnonzero(both), "data.unlabeled", labeled, classes)
    train = labeled.images
    if (both & ~tested).any():
        # At the end of the labeled ones, so that each set is one contiguous part of the list.
        assert labeled.keys is not None
        shared = np.isin(labeled.keys, _keys_of(unlabeled, np.flatnonzero(both & ~tested)))
        train = train.part(np.argsort(shared, kind="stable"))
    left = np.flatnonzero(~(tested | both))
    separate = unlabeled.images if len(left) == number else unlabeled.images.part(left)
    return Sets(
        train=train + separate if len(left) else train,
        num_separate=len(left),
        num_shared=int((both & ~tested).sum()),
        notes=tuple(notes),
    )
