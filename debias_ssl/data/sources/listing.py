"""Lists the files of a folder in one pass, as arrays. Processes of one host share the list while they start."""

import hashlib
import json
import os
import shutil
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from jaxtyping import Bool, Int64
from pyarrow import compute

from debias_ssl.data.sources.left_out import (
    CLOSED,
    EXTENSIONS,
    HIDDEN_FOLDERS,
    NO_FILES,
    NOWHERE,
    TO_FOLDERS,
    UNSEEN,
    Tally,
    by_suffix,
    hidden,
    suffix_of,
    summed,
)
from debias_ssl.data.sources.rows import RowNames
from debias_ssl.distributed.start_up import SharedStart, shared_start
from debias_ssl.system.files import LOCK, cache_folder, read_array
from debias_ssl.system.texts import BLOCK, Texts

# pyarrow.compute creates its functions during the import, so Pyright does not know them.
pc: Any = compute
# Suffix of the folders in a cache that have a list during a start.
SUFFIX = ".listing"


@dataclass(frozen=True, kw_only=True, eq=False)
class FileNames(Texts):
    """Paths of files with their sizes and times when they were listed; 100 MB for a million files, instead of 1 GB."""

    sizes: Int64[np.ndarray, " N"]
    """Sizes in bytes."""
    mtimes: Int64[np.ndarray, " N"]
    """Times of the last changes, in nanoseconds."""
    links: Bool[np.ndarray, " N"]
    """Whether each path is a symbolic link; the same file may then be listed with another path too."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """The number of other entries in the folders, by the reason why they are left out."""

    @classmethod
    def of(cls, files: Iterable[tuple[str, int, int, bool]], prefix: str = "") -> "FileNames":
        """A list of files: for each, the path after the prefix, size, time, and whether it is a link."""
        # Arrays that grow in place: each element of a Python list would be an object.
        text, ends, sizes, mtimes, links = bytearray(), array("q"), array("q"), array("q"), bytearray()
        for path, size, mtime, is_link in files:
            text += os.fsencode(path)
            ends.append(len(text))
            sizes.append(size)
            mtimes.append(mtime)
            links.append(is_link)
        return cls(
            prefix=prefix,
            text=np.frombuffer(text, dtype=np.uint8),
            ends=np.frombuffer(ends, dtype=np.int64),
            sizes=np.frombuffer(sizes, dtype=np.int64),
            mtimes=np.frombuffer(mtimes, dtype=np.int64),
            links=np.frombuffer(links, dtype=bool),
        )

    @classmethod
    def of_arrow(
        cls, paths: pa.LargeBinaryArray, sizes: Int64[np.ndarray, " N"], mtimes: Int64[np.ndarray, " N"]
    ) -> "FileNames":
        """A list of the paths in an array of `arrow`, which shares its memory; no path is a link."""
        _, borders, text = paths.buffers()
        ends = np.frombuffer(borders, np.int64)[paths.offset : paths.offset + len(paths) + 1]
        return cls(
            text=np.frombuffer(text or b"", np.uint8)[ends[0] : ends[-1]],
            ends=ends[1:] - ends[0],
            sizes=sizes,
            mtimes=mtimes,
            links=np.zeros(len(paths), dtype=bool),
        )

    def stats(self) -> Iterator[tuple[str, int, int]]:
        """Path, size and time of each file, as they were when it was listed."""
        return zip(self, _numbers(self.sizes), _numbers(self.mtimes), strict=True)

    def part(self, positions: Int64[np.ndarray, " P"]) -> "FileNames":
        """The files at some positions, in their order."""
        text, ends = self._at(positions)
        sizes, mtimes, links = (values[positions] for values in (self.sizes, self.mtimes, self.links))
        return replace(self, text=text, ends=ends, sizes=sizes, mtimes=mtimes, links=links, left_out={})

    def below(self, folder: str) -> "FileNames | None":
        """The files with paths relative to a folder, if this is their prefix; else None."""
        is_it = os.path.abspath(self.prefix or ".") == os.path.abspath(folder)
        return replace(self, prefix="") if is_it and not self._has_absolute else None

    def written_out(self) -> "FileNames":
        """The same paths without a prefix."""
        paths = super().written_out()
        return replace(self, prefix="", text=paths.text, ends=paths.ends)

    def without_folder(self, folder: str) -> "FileNames":
        """The same paths, with the folder stored once as the prefix; without a prefix if some are in other folders."""
        prefix = os.path.normpath(folder)
        prefix = "" if prefix == "." else os.path.join(prefix, "")
        paths, front = self.written_out().arrow(), os.fsencode(prefix)
        if not prefix or not pc.all(pc.starts_with(paths, front)).as_py():
            return self.written_out()
        rest = FileNames.of_arrow(pc.binary_replace_slice(paths, 0, len(front), b""), self.sizes, self.mtimes)
        return replace(rest, prefix=prefix, links=self.links, left_out=self.left_out)

    @property
    def _has_absolute(self) -> bool:
        starts = np.concatenate([[0], self.ends[:-1]])
        return bool((self.text[starts[starts < self.ends]] == ord("/")).any())


ARRAYS = ("text", "ends", "sizes", "mtimes", "links")


def _numbers(values: Int64[np.ndarray, " N"]) -> Iterator[int]:
    for first in range(0, len(values), BLOCK):
        yield from values[first : first + BLOCK].tolist()


def picked(names: Sequence[str], positions: Int64[np.ndarray, " P"]) -> Sequence[str]:
    """The names at some positions."""
    if isinstance(names, FileNames | RowNames):
        return names.part(positions)
    order: list[int] = positions.tolist()
    return [names[i] for i in order]


def joined(*lists: Sequence[str]) -> Sequence[str]:
    """Names of several lists, one after another."""
    filled = [names for names in lists if len(names)]
    rows = [names for names in filled if isinstance(names, RowNames)]
    if rows and len(rows) == len(filled):
        return RowNames.joined(rows)
    files = [names for names in filled if isinstance(names, FileNames)]
    if len(files) < len(filled) or not files:
        return [name for names in filled for name in names]
    if len(files) == 1:
        return files[0]
    if len({names.prefix for names in files}) > 1:
        files = [names.written_out() for names in files]
    before = np.cumsum([0] + [len(names.text) for names in files])
    return FileNames(
        prefix=files[0].prefix,
        text=np.concatenate([names.text for names in files]),
        ends=np.concatenate([names.ends + start for names, start in zip(files, before[:-1], strict=True)]),
        sizes=np.concatenate([names.sizes for names in files]),
        mtimes=np.concatenate([names.mtimes for names in files]),
        links=np.concatenate([names.links for names in files]),
        left_out=summed(names.left_out for names in files),
    )


def find_images(folder: Path) -> FileNames:
    """Image files (by suffix) at any depth below a folder, in the order of their names. Each entry is read once.

    Hidden files and folders are left out, such as the `._x.jpg` that macOS writes beside `x.jpg`. Links to folders are
    not followed. Entries that are left out are counted.
    """
    left_out = Tally()
    found = FileNames.of(_found(folder, left_out), "" if str(folder) == "." else os.path.join(folder, ""))
    order = pc.array_sort_indices(found.arrow()).to_numpy().astype(np.int64)
    return replace(found.part(order), left_out=left_out.counts)


def _found(folder: Path, left_out: Tally) -> Iterator[tuple[str, int, int, bool]]:
    """Image files below a folder as they are found: path relative to it, size, time, and whether it is a link."""
    folders = [""]
    while folders:
        inner = folders.pop()
        # A folder without permission to read counts as empty.
        try:
            with os.scandir(folder / inner) as entries:
                for entry in entries:
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        folders.append(f"{inner}{entry.name}/")
                    elif isinstance(seen := look_at(entry), str):
                        left_out.add(seen)
                    else:
                        yield inner + entry.name, seen.st_size, seen.st_mtime_ns, entry.is_symlink()
        except PermissionError:
            left_out.add(CLOSED)


def look_at(entry: Any) -> os.stat_result | str:
    """The size and time of an image, or the reason why an entry of a folder (os.DirEntry) is left out."""
    if entry.name.startswith("."):
        return HIDDEN_FOLDERS if entry.is_dir(follow_symlinks=False) else hidden(entry.name)
    if suffix_of(entry.name) not in EXTENSIONS:
        return TO_FOLDERS if entry.is_symlink() and entry.is_dir() else by_suffix(entry.name)
    try:
        seen = entry.stat()
    except OSError:
        return NOWHERE if entry.is_symlink() else UNSEEN
    if stat.S_ISREG(seen.st_mode):
        return seen
    return TO_FOLDERS if stat.S_ISDIR(seen.st_mode) else NO_FILES


def shared_listing(
    what: str, cache: str | None, find: Callable[[], tuple[FileNames, list[str]]]
) -> tuple[FileNames, list[str]]:
    """Files, and a text for each, from `find`. The first process of a host calls it; the others read its result.

    A later start does not use the result, because files may have changed.

    Args:
        what: a name for the list.
        cache: folder for the result; None is the user's cache folder.
        find: lists the files.
    """
    start = shared_start()
    if start is None:
        return find()
    key = hashlib.sha256(os.fsencode(f"{os.path.abspath(what)}\0{what}")).hexdigest()[:16]
    folder = cache_folder(cache) / f"{start.name}-{key}{SUFFIX}"
    if not start.is_first:
        # If the result could not be written, each process lists the files itself.
        with suppress(OSError, ValueError):
            return _read(folder)
    names, texts = find()
    if start.is_first:
        _remove_abandoned(folder.parent)
        try:
            _make(folder, start)
            _write(folder, names, texts)
        except (OSError, Timeout):
            shutil.rmtree(folder, ignore_errors=True)
    return names, texts


def _make(folder: Path, start: SharedStart) -> None:
    """Makes a folder that is locked during a start and removed after it."""
    start.kept.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    start.kept.enter_context(FileLock(folder / LOCK, timeout=0))


def _remove_abandoned(cache: Path) -> None:
    """Removes the listings of starts whose first process was killed: the system has released their locks."""
    for folder in cache.glob(f"*{SUFFIX}"):
        with suppress(OSError, Timeout):
            with FileLock(folder / LOCK, timeout=0):
                pass
            shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, names: FileNames, texts: list[str]) -> None:
    number = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(names, name))
    np.save(folder / "texts.npy", np.array([number[text] for text in texts], dtype=np.int64))
    # Written last: it marks the other files as complete.
    (folder / "texts.json").write_text(
        json.dumps({"texts": [*number], "prefix": names.prefix, "left_out": names.left_out})
    )


def _read(folder: Path) -> tuple[FileNames, list[str]]:
    said = json.loads((folder / "texts.json").read_text())
    arrays = {name: read_array(folder / f"{name}.npy", "r") for name in ARRAYS}
    names = FileNames(**arrays, prefix=said["prefix"], left_out=said["left_out"])
    return names, [said["texts"][k] for k in read_array(folder / "texts.npy").tolist()]
