"""Images in tar files (shards) as WebDataset writes them: lists of their names, and reading of members."""

import glob
import io
import os
import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from debias_ssl.data.sources.dataset_rows import row_named
from debias_ssl.data.sources.left_out import summed
from debias_ssl.data.sources.listing import FileNames, picked
from debias_ssl.data.sources.shard_index import COMPRESSED, Member, Shard, read_index
from debias_ssl.system.errors import InputError, StoppedError

# A pattern of more shards is a typing error.
MOST_SHARDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ShardedNames(Sequence[str]):
    """Names of files, then of members of shards, computed on access: there may be more than fit into memory."""

    before: Sequence[str] = ()
    """Files outside of shards."""
    shards: tuple[Shard, ...]
    rows: Int64[np.ndarray, " N"] | None = None
    """The positions of these images among those of the shards, ascending; None is all images."""
    cache: str | None = None
    """Folder of the indexes; None is the user's cache folder."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """The number of other members in the shards, by the reason why they are left out."""

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " borders"]:
        return np.cumsum([0] + [shard.num_images for shard in self.shards])

    @cached_property
    def borders(self) -> Int64[np.ndarray, " borders"]:
        """Position of each shard's first image, and the end of the list."""
        inner = self._starts if self.rows is None else np.searchsorted(self.rows, self._starts)
        return len(self.before) + inner

    def __len__(self) -> int:
        return int(self.borders[-1])

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        i = range(len(self))[key]
        if i < len(self.before):
            return self.before[i]
        i -= len(self.before)
        row = i if self.rows is None else int(self.rows[i])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard = self.shards[number]
        return read_index(shard.path, shard.size, shard.mtime_ns, self.cache)[row - int(self._starts[number])]

    def part(self, positions: Int64[np.ndarray, " P"]) -> "ShardedNames":
        """The names at some positions, which must be ascending."""
        border = int(np.searchsorted(positions, len(self.before)))
        rows = positions[border:] - len(self.before)
        return replace(
            self,
            before=picked(self.before, positions[:border]),
            rows=rows if self.rows is None else self.rows[rows],
        )

    def groups(self) -> Iterator[Sequence[str]]:
        """The files outside of shards, and the images of each shard."""
        if len(self.before):
            yield self.before
        for start, stop in pairwise(self.borders.tolist()):
            if start < stop:
                yield self.part(np.arange(start, stop))


class OnDisk(NamedTuple):
    """An image file or a shard, with its properties when it was listed."""

    path: str
    size: int
    """Size in bytes."""
    mtime_ns: int
    """Time of the last change, in nanoseconds."""
    part: tuple[int, ...] = ()
    """For a shard: the number of its images in the list and, if these are not all, a checksum of their positions."""


def on_disk(names: Sequence[str]) -> Iterator[OnDisk]:
    """The files of images: each image's own file, or each shard once.

    If a list has sizes and times of its files, the disk is not read again.
    """
    if isinstance(names, ShardedNames):
        yield from on_disk(names.before)
        for shard, (start, stop) in zip(names.shards, pairwise(names.borders - len(names.before)), strict=True):
            part = (int(stop - start),) + (
                () if names.rows is None else (zlib.crc32(names.rows[start:stop].tobytes()),)
            )
            if start < stop:
                yield OnDisk(shard.path, shard.size, shard.mtime_ns, part)
        return
    if isinstance(names, FileNames):
        yield from (OnDisk(*file) for file in names.stats())
        return
    for name in names:
        if isinstance(name, Member):
            yield OnDisk(name, name.length, name.shard.mtime_ns)
        else:
            stat = os.stat(name)
            yield OnDisk(name, stat.st_size, stat.st_mtime_ns)


def paths_on_disk(names: Sequence[str]) -> Iterator[str]:
    """The paths of these files, without access to the disk."""
    if isinstance(names, ShardedNames):
        yield from names.before
        for shard, (start, stop) in zip(names.shards, pairwise(names.borders), strict=True):
            if start < stop:
                yield shard.path
    else:
        yield from names


def read_member(member: Member) -> bytes:
    """The bytes of an image's file.

    Raises:
        StoppedError: the shard was removed, or has changed since it was indexed.
    """
    shard = member.shard
    try:
        with open(shard.path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            if (stat.st_size, stat.st_mtime_ns) == (shard.size, shard.mtime_ns):
                file.seek(member.offset)
                return file.read(member.length)
    except OSError as error:
        raise StoppedError(f"cannot read shard {shard.path!r}: {error.strerror}; restore it and start again") from error
    raise StoppedError(f"shard {shard.path!r} has changed since it was read first; restore it and start again")


class OpenMember(io.BytesIO):
    """An image's file in memory; Pillow's messages show the name of the member."""

    def __init__(self, member: Member):
        super().__init__(read_member(member))
        self.member = member

    def __repr__(self) -> str:
        return repr(self.member)


def is_shards(where: str) -> bool:
    """Whether a setting names tar files: a name or a pattern with their suffix that is not a folder."""
    return where.lower().endswith((".tar", *COMPRESSED)) and not Path(where).is_dir()


def open_shards(
    where: str, setting: str, cache: str | None = None
) -> tuple[ShardedNames, Int64[np.ndarray, " N"], tuple[str, ...]]:
    """The images in tar files.

    The headers of a tar file are read once; its index is kept in the cache.

    Args:
        where: a tar file or a pattern of some, with bash's `{000..099}` and `{a,b}`, and `*`.
        setting: the setting with this value, for messages.
        cache: folder of the indexes.

    Returns:
        The names of the images; for each image the position of its class in the third result, negative without a
        class; and the texts of the .cls members.

    Raises:
        InputError: a file is missing, damaged, compressed or without images, or a member's name is not a path below it.
    """
    paths = shard_paths(where, setting)
    indexes: dict[str, tuple[Shard, Int64[np.ndarray, " n"], tuple[str, ...]]] = {}
    left_out = []
    # In random order: processes that start together then read different shards, and use each other's indexes.
    for path in tqdm(random.SystemRandom().sample(paths, len(paths)), "indexing", unit="shard", leave=False, delay=2):
        try:
            stat = os.stat(path)
        except OSError as error:
            raise InputError(f"{setting}: cannot read shard {path!r}: {error.strerror}") from error
        index = read_index(path, stat.st_size, stat.st_mtime_ns, cache)
        indexes[path] = index.shard, index.codes, index.classes
        left_out.append(index.left_out)
    classes = tuple(sorted({text for _, _, texts in indexes.values() for text in texts}))
    number = {text: k for k, text in enumerate(classes)}
    codes = []
    for path in paths:
        _, own, texts = indexes[path]
        codes.append(np.array([*(number[text] for text in texts), -1], dtype=np.int64)[own])
    shards = tuple(indexes[path][0] for path in paths)
    names = ShardedNames(shards=shards, cache=cache, left_out=summed(left_out))
    return names, np.concatenate(codes), classes


def members_of(path: str, size: int, mtime_ns: int) -> Iterator[Member]:
    """The images in a tar file, which must have this size and time.

    Raises:
        InputError: it was removed or has changed.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise InputError(f"cannot read shard {path!r}: {error.strerror}") from error
    if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
        raise InputError(
            f"shard {path!r} has changed since its features were made: run debias-ssl features or label again"
        )
    index = read_index(path, size, mtime_ns, None)
    return (index[i] for i in range(index.shard.num_images))


def member_named(path: str) -> Member | None:
    """The image with this name in a shard or in a Hugging Face data set; None if it is not such a name."""
    end = path.lower().find(".tar/") + len(".tar")
    if end < len(".tar") or not Path(path[:end]).is_file():
        return row_named(path)
    stat = os.stat(path[:end])
    return _by_name(path[:end], stat.st_size, stat.st_mtime_ns).get(path[end + 1 :])


@lru_cache(maxsize=8)
def _by_name(path: str, size: int, mtime_ns: int) -> dict[str, Member]:
    index = read_index(path, size, mtime_ns, None)
    return {member.inner: member for member in (index[i] for i in range(index.shard.num_images))}


def shard_paths(where: str, setting: str) -> list[str]:
    """The files that a pattern matches, in order: for braces as written, for `*` by name."""
    paths: list[str] = []
    for pattern in [where] if Path(where).is_file() else expanded(where):
        if pattern.lower().endswith(COMPRESSED):
            raise InputError(f"{setting}: {pattern!r} is compressed: uncompress it, so that single images can be read")
        found = [pattern] if Path(pattern).is_file() or not glob.has_magic(pattern) else sorted(glob.glob(pattern))
        if not found or not Path(found[0]).is_file():
            raise InputError(f"{setting}: there is no shard {pattern!r}")
        paths += found
    return [*dict.fromkeys(paths)]


def expanded(pattern: str) -> list[str]:
    """The words that bash makes from a pattern with `{first..last}` (leading zeros are kept) and `{a,b}`."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    ends = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", found[1])
    if ends is not None:
        first, last = int(ends[1]), int(ends[2])
        is_padded = any(len(end) > 1 and end.startswith("0") for end in ends.groups())
        width = max(map(len, ends.groups())) if is_padded else 0
        if abs(last - first) >= MOST_SHARDS:
            raise InputError(f"{pattern!r} means {abs(last - first) + 1:,} files; {MOST_SHARDS:,} are the most")
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        words = [f"{number:0{width}}" for number in numbers]
    elif "," in found[1]:
        words = found[1].split(",")
    else:
        raise InputError(f"{pattern!r}: braces must hold two numbers, as in {{000..099}}, or a list, as in {{a,b}}")
    rest = expanded(pattern[found.end() :])
    if len(words) * len(rest) > MOST_SHARDS:
        raise InputError(f"{pattern!r} means {len(words) * len(rest):,} files; {MOST_SHARDS:,} are the most")
    return [pattern[: found.start()] + word + tail for word in words for tail in rest]
