"""Indexes of shards: the positions of images in a tar file as WebDataset writes it.

Python's tarfile finds the members. Each member is then read from its position in the file. The package webdataset reads
shards only from start to end, so it could not read the batch of any given step.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from safetensors.numpy import load, save

from debias_ssl.data.sources.left_out import EXTENSIONS, LINKS, SPARSE, Tally, by_suffix, hidden, none_told, suffix_of
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import CHECK_BYTES, cache_folder, is_whole, writing_to_cache

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
# The first bytes of files of gzip, bzip2, xz, zstd and lz4.
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
# Exceptions of tarfile for damaged files.
DAMAGED = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, IndexError, MemoryError)
BLOCK = 512
LONGEST_CLASS = 1024
VERSION = 2


class Shard(NamedTuple):
    """A tar file, or an Arrow file, as it was when its index was made."""

    path: str
    size: int
    mtime_ns: int
    num_images: int


class Member(str):
    """The name of an image in a shard, `SHARD.tar/MEMBER.jpg`, with the position of its bytes.

    A row of a Hugging Face data set is also a member: of an Arrow file, and with its own form of name.
    """

    __slots__ = ("inner", "length", "offset", "shard")
    shard: Shard
    """The file that contains it."""
    inner: str
    """Its name in the shard, which is unique there."""
    offset: int
    """Position of its first byte in the shard."""
    length: int
    """Its size in bytes."""

    def __new__(cls, shard: Shard, inner: str, offset: int, length: int, name: str | None = None) -> "Member":
        self = super().__new__(cls, f"{shard.path}/{inner}" if name is None else name)
        self.shard, self.inner, self.offset, self.length = shard, inner, offset, length
        return self

    def __reduce__(self):
        return Member, (self.shard, self.inner, self.offset, self.length, str(self))


@dataclass(frozen=True, kw_only=True)
class Index:
    """The positions of the images in a shard."""

    shard: Shard
    offsets: Int64[np.ndarray, " n"]
    """Position of each image's first byte."""
    lengths: Int64[np.ndarray, " n"]
    """Size of each image's file in bytes."""
    names: bytes
    """The names of all images, one after another."""
    ends: Int64[np.ndarray, " n"]
    """The position in `names` where each image's name ends."""
    codes: Int64[np.ndarray, " n"]
    """Class of each image as a position in `classes`; negative without a class."""
    classes: tuple[str, ...]
    """The different texts in the shard's .cls members, which are the classes."""
    left_out: dict[str, int]
    """The number of other members, by the reason why they are left out."""

    def __getitem__(self, i: int) -> Member:
        name = self.names[self.ends[i - 1] if i else 0 : self.ends[i]]
        return Member(self.shard, _text(name), int(self.offsets[i]), int(self.lengths[i]))


# Large enough for the shards that one process reads at a time.
@lru_cache(maxsize=128)
def read_index(path: str, size: int, mtime_ns: int, cache: str | None) -> Index:
    """The index of a tar file from the cache, which is made if it is missing or incomplete."""
    key = f"{VERSION}\0{os.path.abspath(path)}\0{size}\0{mtime_ns}\0{sorted(EXTENSIONS)}"
    kept = cache_folder(cache) / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.index"
    if is_whole(kept):
        arrays = load(kept.read_bytes()[:-CHECK_BYTES])
    else:
        arrays = make_index(path)
        with writing_to_cache(kept) as write:
            write(save(arrays))
    return Index(
        shard=Shard(path, size, mtime_ns, len(arrays["offsets"])),
        names=arrays["names"].tobytes(),
        classes=tuple(json.loads(arrays["classes"].tobytes())),
        left_out=json.loads(arrays["left_out"].tobytes()),
        **{name: arrays[name] for name in ("offsets", "lengths", "ends", "codes")},
    )


@dataclass(kw_only=True)
class _Members:
    """The images and classes of a tar file, collected member after member."""

    path: str
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """Names of the images; the two fields before are their offsets and lengths."""
    texts: dict[str, str] = field(default_factory=dict)
    """Texts of .cls members, by the common part of the names of a sample."""
    left_out: Tally = field(default_factory=Tally)

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        # Left out, because they have no plain bytes: links, devices, folders and files with holes.
        if not member.isreg() or member.issparse():
            if not member.isdir():
                self.left_out.add(SPARSE if member.isreg() else LINKS)
            return
        name = _inner(member.name, self.path)
        suffix = suffix_of(name)
        if any(part.startswith(".") for part in name.split("/")):
            self.left_out.add(hidden(os.path.basename(name)))
        elif suffix in EXTENSIONS:
            self.offsets.append(member.offset_data)
            self.lengths.append(member.size)
            self.names.append(name)
        elif suffix == ".cls":
            content = tar.extractfile(member)
            assert content is not None
            if member.size > LONGEST_CLASS:
                raise InputError(f"shard {self.path!r}: {name!r} is too long to be a class")
            self.texts[_key(name)] = content.read().decode("utf-8").strip()
        else:
            self.left_out.add(by_suffix(name))

    def check(self) -> None:
        """Raises InputError if there are no images, or two with the same name."""
        if not self.names:
            raise InputError(f"shard {self.path!r} holds no images{none_told(self.left_out.counts)}")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"shard {self.path!r} holds {twice!r} twice")


def make_index(path: str) -> dict[str, np.ndarray]:
    """Makes the index of a tar file from its headers."""
    found = _Members(path=path)
    try:
        # A small buffer: a file system may suggest megabytes, but headers are far apart.
        with open(path, "rb", buffering=8 * BLOCK) as file:
            start = file.read(BLOCK)
            if start.startswith(COMPRESSED_STARTS):
                raise InputError(f"shard {path!r} is compressed: uncompress it, so that single images can be read")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    found.add(member, tar)
                    # tarfile would keep one kilobyte for each member.
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
                file.seek(tar.offset)
                # tarfile stops at a damaged header as if it were the end, so the end is checked.
                if file.read(BLOCK) != bytes(BLOCK):
                    raise InputError(f"shard {path!r} is damaged or cut off at byte {tar.offset}")
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"shard {path!r} cannot be read as a tar file: {reason(error)}") from error
    found.check()
    classes = sorted({text for text in found.texts.values() if text})
    code = {text: k for k, text in enumerate(classes)} | {"": -1}
    encoded = [name.encode("utf-8", "surrogateescape") for name in found.names]
    return {
        "offsets": np.array(found.offsets, dtype=np.int64),
        "lengths": np.array(found.lengths, dtype=np.int64),
        "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "names": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "codes": np.array([code[found.texts.get(_key(name), "")] for name in found.names], dtype=np.int64),
        "classes": np.frombuffer(json.dumps(classes).encode(), dtype=np.uint8),
        "left_out": np.frombuffer(json.dumps(found.left_out.counts).encode(), dtype=np.uint8),
    }


def _inner(name: str, path: str) -> str:
    """A member's name without `./`. It is checked because label files use it as a path."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InputError(f"shard {path!r}: the name {name!r} leads out of it; write the shard with other names")
    return "/".join(parts)


def _key(name: str) -> str:
    """The common part of the names of a sample's members: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
