"""`ListedFiles`: the files that the lines of a list name, found in a folder and kept in arrays."""

import os
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sources.listing import FileNames
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import member_named
from debias_ssl.data.sources.spellings import spellings
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ListedFiles:
    """The files that the lines of a list name."""

    files: FileNames | list[str]
    """Paths of the files; a plain list if some of them lead into tar files."""
    lines: Int64[np.ndarray, " N"]
    """The number of the last line of each row."""
    notes: tuple[str, ...]
    """Notes for users about how the list was read."""


def find_listed(
    path: Path,
    root: Path | None,
    root_setting: str,
    names: Iterator[tuple[int, str]],
    again: Callable[[], Iterator[tuple[int, str]]],
) -> ListedFiles:
    """Finds the files for the names in a list.

    Relative names are relative to `root`, or to the folder of the list. All files must lie below this folder.

    Args:
        path: the path of the list.
        root: the folder that the user has set; None is the folder of the list.
        root_setting: the setting with which users set the root.
        names: names of the files, with the numbers of their lines.
        again: returns all names once more, for errors.

    Raises:
        InputError: there are no names, or a name matches no file.
    """
    places = _Places(listed_in=path, root=path.parent if root is None else root)
    lines, members, respelled, first = array("q"), [], 0, ""

    def files() -> Iterator[tuple[str, int, int, bool]]:
        nonlocal respelled, first
        for line, name in names:
            found = places.find(name)
            if found is None:
                raise InputError(f"{path}, line {line}: {_what_is_wrong(places, name, again, root, root_setting)}")
            lines.append(line)
            if found.spelled != name:
                respelled, first = respelled + 1, first or f"{name!r} is found as {found.spelled!r}"
            if isinstance(found.path, Member):
                members.append((len(lines) - 1, found.path))
            yield (found.path, *found.stat)

    listed = FileNames.of(files())
    if not len(lines):
        raise InputError(f"{path} lists no images")
    notes = (f"{path}: {respelled} paths are spelled differently from their files: {first}",) if respelled else ()
    numbers = np.frombuffer(lines, dtype=np.int64)
    if not members:
        return ListedFiles(files=listed.without_folder(str(places.root)), lines=numbers, notes=notes)
    paths = [*listed]
    for i, member in members:
        paths[i] = member
    return ListedFiles(files=paths, lines=numbers, notes=notes)


class _Place(NamedTuple):
    """A file that was found for a name."""

    path: str
    spelled: str
    """The spelling of the name with which the file was found."""
    stat: tuple[int, int, bool]
    """Size and time of the file, and whether the path is a link."""


@dataclass(frozen=True, kw_only=True)
class _Places:
    """The folders in which the files of a list may be."""

    listed_in: Path
    root: Path
    """The folder below which they must lie."""

    def find(self, name: str) -> _Place | None:
        """The file for a name; None if there is none."""
        for spelled in spellings(name):
            for path in self.below(spelled):
                if (seen := _seen(path)) is not None:
                    return _Place(path, spelled, seen)
                if (member := member_named(path)) is not None:
                    return _Place(member, spelled, (member.length, member.shard.mtime_ns, False))
        return None

    def below(self, name: str) -> Iterator[str]:
        """Possible paths for a name below the root: first relative to the root, then to the list."""
        for folder in dict.fromkeys((self.root, self.listed_in.parent)):
            path = os.path.normpath(folder / name)
            if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.root)):
                yield path
        if os.path.isabs(name):
            # The root, or a folder above it, may be a link.
            inner = os.path.relpath(os.path.realpath(name), os.path.realpath(self.root))
            if inner.split(os.sep)[0] != os.pardir:
                yield str(self.root / inner)


def _seen(path: str) -> tuple[int, int, bool] | None:
    """Size and time of a file, and whether the path is a link; None if there is no file."""
    try:
        seen = os.lstat(path)
        if is_link := stat.S_ISLNK(seen.st_mode):
            seen = os.stat(path)
    except (OSError, ValueError):
        return None
    return (seen.st_size, seen.st_mtime_ns, is_link) if stat.S_ISREG(seen.st_mode) else None


def _what_is_wrong(
    places: _Places,
    name: str,
    names: Callable[[], Iterator[tuple[int, str]]],
    root: Path | None,
    root_setting: str,
) -> str:
    """Why no file was found for a name, and how to fix it."""
    folder, verb = str(places.root), f"set {root_setting} to"
    if root_setting.startswith("--"):
        verb = f"pass {root_setting}"
    path = next(places.below(name), None)
    if path is None:
        folders = {os.path.dirname(os.path.abspath(places.listed_in.parent / each)) for _, each in names()}
        common = os.path.commonpath(folders)
        hint = repr(common) if common != os.sep else "a folder that holds it"
        return f"{name!r} lies outside {folder!r}; to read files there, {verb} {hint}"
    hint = f"is {root_setting} right?" if root else f"where paths are not relative to {folder!r}, {verb} their folder"
    return f"there is no file {path!r}; {hint}"
