"""Which images are one file, however often and by whatever path they are listed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from debias_ssl.data.sources.images import Images
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames
from debias_ssl.system.errors import InputError


def file_keys(names: Sequence[str]) -> Int64[np.ndarray, " N"]:
    """A number for each image, the same where the file is: of its path without links, or of that of its tar file.

    Numbers of 64 bits are a tenth of the paths in memory; of a million files, two share one with probability 3e-8.
    """
    folders: dict[str, str] = {}
    tars: dict[str, str] = {}

    def resolved(path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        path = os.path.join(folders[folder], name)
        return os.path.realpath(path) if os.path.islink(path) else path

    def key(name: str) -> int:
        if not isinstance(name, Member):
            return hash(resolved(name))
        if name.shard.path not in tars:
            tars[name.shard.path] = resolved(name.shard.path)
        return hash(f"{tars[name.shard.path]}/{name.inner}")

    return np.fromiter((key(name) for name in names), np.int64, len(names))


def first_of_each(images: Images, classes: Sequence[str], where: str, *, are_rows: bool) -> Int64[np.ndarray, " M"]:
    """Positions of the images without those whose file was there before.

    Args:
        images: a list of files.
        classes: names of the classes, for errors.
        where: what errors call the list.
        are_rows: whether it is a file, whose rows people look for by number.

    Raises:
        InputError: a file is there with two labels.
    """
    if isinstance(images.names, ShardedNames):
        return np.arange(len(images))  # the names in a tar file differ
    _, first, group = np.unique(file_keys(images.names), return_index=True, return_inverse=True)
    before = first[group]
    now, then = images.labels, images.labels[before]
    wrong = np.flatnonzero((now != then) & (now >= 0) & (then >= 0))
    if len(wrong):
        i, j = int(before[wrong[0]]), int(wrong[0])
        named = f"rows {i + 1} and {j + 1}, {images.names[i]!r}," if are_rows else f"{images.names[i]!r}"
        named += f" and {images.names[j]!r}" if images.names[i] != images.names[j] else ""
        raise InputError(
            f"{where}: {named} are the same file, as {classes[now[i]]!r} and as {classes[now[j]]!r}: keep one of them"
        )
    return np.sort(first)


def among(images: Images, others: Images) -> Bool[np.ndarray, " N"]:
    """Which of some images are among others that are listed one by one; shards without any are not gone through."""
    names = images.names
    if not isinstance(names, ShardedNames):
        return np.isin(file_keys(names), file_keys(others.names))
    found = np.zeros(len(names), dtype=bool)
    found[: len(names.before)] = np.isin(file_keys(names.before), file_keys(others.names))
    wanted: dict[str, set[str]] = {}
    for name in others.names:
        if isinstance(name, Member):
            wanted.setdefault(os.path.realpath(name.shard.path), set()).add(name.inner)
    borders = names.borders.tolist()
    for shard, start, stop in zip(names.shards, borders[:-1], borders[1:], strict=True):
        inner = wanted.get(os.path.realpath(shard.path)) if wanted else None
        if inner:
            found[start:stop] = [isinstance(name, Member) and name.inner in inner for name in names[start:stop]]
    return found


def check_labels(images: Images, setting: str, labeled: Images, classes: Sequence[str]) -> None:
    """Raises InputError where a file has one label among the labeled images and another one elsewhere."""
    number_of = dict(zip(file_keys(labeled.names).tolist(), labeled.labels.tolist(), strict=True))
    for name, key, label in zip(images.names, file_keys(images.names).tolist(), images.labels.tolist(), strict=True):
        known = number_of.get(key, label)
        if known != label and label >= 0 <= known:
            raise InputError(
                f"{name!r} is {classes[known]!r} in data.labeled and {classes[label]!r} in {setting}: mend one of them"
            )


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Lists of images that have no file in common but for the test images among the labeled ones."""

    train: Images
    num_separate: int
    num_shared: int
    """As in `Data`."""
    notes: tuple[str, ...]


def separated(
    labeled: Images, unlabeled: Images | None, test: Images, classes: Sequence[str], *, are_certain: bool
) -> Sets:
    """Makes each file one image: one that is labeled and unlabeled is in both sets, and test images are not unlabeled.

    Args:
        labeled: each file once.
        unlabeled: a set of its own, each file once; None where there is none.
        test: each file once.
        classes: names of the classes, for errors.
        are_certain: whether labels were given by people, so that two of them for a file contradict each other.

    Raises:
        InputError: a file has two labels, or all unlabeled files are test images.
    """
    notes, known = [], among(test, labeled)
    if known.any():
        notes.append(f"{known.sum()} test images are in data.labeled too: figures of the test are too good")
    if are_certain:
        check_labels(test.part(np.flatnonzero(known)), "data.test", labeled, classes)
    if unlabeled is None:
        return Sets(train=labeled, num_separate=0, num_shared=0, notes=tuple(notes))
    tested, both = among(unlabeled, test), among(unlabeled, labeled)
    if tested.any():
        notes.append(f"{tested.sum()} of {len(unlabeled)} unlabeled images are test images: left out")
    if tested.all():
        raise InputError("all unlabeled images are test images too: data.unlabeled must be others")
    if both.any():
        notes.append(f"{both.sum()} of {len(unlabeled)} unlabeled images are in data.labeled too: each is one image")
        if are_certain:
            check_labels(unlabeled.part(np.flatnonzero(both)), "data.unlabeled", labeled, classes)
    shared = among(labeled, unlabeled.part(np.flatnonzero(both & ~tested)).listed()) if both.any() else None
    if shared is not None:
        labeled = labeled.part(np.concatenate([np.flatnonzero(~shared), np.flatnonzero(shared)]))
    left = ~(tested | both)
    separate = unlabeled if left.all() else unlabeled.part(np.flatnonzero(left))
    return Sets(
        train=labeled + separate if len(separate) else labeled,
        num_separate=len(separate),
        num_shared=0 if shared is None else int(shared.sum()),
        notes=tuple(notes),
    )
