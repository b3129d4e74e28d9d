"""Stores of features: a folder, or memory, in shards."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Int64

from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.feature_list import FeatureList
from debias_ssl.data.reading.features import MANIFEST, contents_path, list_path, read_manifest, shard_path
from debias_ssl.features.earlier import Earlier, compared, difference, is_same
from debias_ssl.features.known_contents import KnownContents, Place
from debias_ssl.system.errors import InputError, InUseError, StoppedError, WriteError, reason
from debias_ssl.system.files import LOCK, read_array, write_array, write_aside, writes
from debias_ssl.system.locking import Member, joined, lock_if_free


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The stored data of a shard's images, or the known data before the shard is computed."""

    features: Float16[np.ndarray, "n D"]
    """The rows of images without features are NaN."""
    contents: Int64[np.ndarray, "n 2"]
    """Hashes of the images' files from `content_of`; zeros if unknown."""

    @classmethod
    def unknown(cls, number: int, dim: int) -> "ShardRows":
        """Rows of images without known features."""
        features = np.full((number, dim), np.nan, dtype=np.float16)
        return cls(features=features, contents=np.zeros((number, 2), dtype=np.int64))


@runtime_checkable
class FeatureStore(Protocol):
    """Shards of features by number."""

    @property
    def note(self) -> str | None:
        """A note for users about features that are used again."""
        ...

    @property
    def known_contents(self) -> KnownContents | None:
        """Contents of earlier images, with the places of their features; None for stores without hashes."""
        ...

    def claim(self, own: dict[str, Any], files: Sequence[str], is_first: bool) -> "FeatureStore":
        """The store of these features, after the first process has written or checked its manifest."""
        ...

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        """Whether a shard exists with all of its rows."""
        ...

    def known(self, number: int, rows: range, dim: int) -> ShardRows:
        """The known data of a shard's images before the shard is computed, found by names, sizes and times."""
        ...

    def at(self, place: Place) -> Float16[np.ndarray, " D"] | None:
        """The features at a place of `known_contents`; None if they are missing."""
        ...

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        """The features of a shard; an image that could not be read has a row of NaN."""
        ...

    def lock(self, number: int) -> ExitStack | None:
        """Keeps other processes from making a shard until the result is closed; None if another one makes it now."""
        ...

    def write(self, number: int, rows: ShardRows) -> None:
        """Stores a shard."""
        ...

    def finish(self) -> None:
        """Marks the shards as complete, and removes those of earlier lists of images."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemoryStore:
    """Shards in memory, for the lifetime of the process."""

    shards: dict[int, Float16[np.ndarray, "_ D"]] = field(default_factory=dict)
    note: str | None = None
    known_contents: None = None

    def claim(self, own: dict[str, Any], files: Sequence[str], is_first: bool) -> "MemoryStore":
        """The store itself: no other process can use it."""
        return self

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        return number in self.shards

    def known(self, number: int, rows: range, dim: int) -> ShardRows:
        nothing = ShardRows.unknown(len(rows), dim)
        return replace(nothing, features=self.shards.get(number, nothing.features))

    def at(self, place: Place) -> None:
        """No place is known."""

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        return self.shards[number]

    def lock(self, number: int) -> ExitStack:
        """An empty stack: no other process can make the shard."""
        return ExitStack()

    def write(self, number: int, rows: ShardRows) -> None:
        self.shards[number] = rows.features

    def finish(self) -> None:
        """Does nothing: there are no earlier lists."""


@dataclass(frozen=True, kw_only=True)
class FolderStore:
    """Shards in files, with a manifest; `data/reading/features.py` describes the format.

    Features for a new list of images have their own manifest, `manifest.GENERATION.json`, until they are complete. This
    file is then renamed to `manifest.json`, and after that the shards of the earlier list are removed.
    """

    folder: Path
    flag: str = "--features"
    """The flag with which users have named the folder, or the folder that contains it."""
    generation: int = 0
    earlier: tuple[Earlier, ...] = ()
    dim: int = 0
    note: str | None = None
    member: Member | None = None
    """This process among those that share the folder; None if the folder is not shared."""

    def claim(self, own: dict[str, Any], files: Sequence[str], is_first: bool) -> "FolderStore":
        """The store of features of these images.

        Existing features are used if model, settings and images are the same. If some images are new, changed or
        removed, a new generation begins, which copies the rows of all other images.

        Args:
            own: the manifest of the features, without its generation.
            files: the images.
            is_first: whether this process may write; the others must call this later.

        Raises:
            InputError: the folder has features of another model, of other settings, or mostly of other images; or it
                cannot be written to.
            InUseError: a new generation is needed, but another process works with the current one.
        """
        with self._turn() if is_first else nullcontext():
            return self._claim(own, files, is_first)

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext() if self.member is None else self.member.turn()

    def _claim(self, own: dict[str, Any], files: Sequence[str], is_first: bool) -> "FolderStore":
        listed, dim = FeatureList.of(files, Path(own["root"])), own["dim"]
        if not (self.folder / MANIFEST).exists() and not any(self.folder.glob("shard_*.npy")):
            if is_first:
                self._say(MANIFEST, own | {"generation": 0}, listed)
            return replace(self, dim=dim)
        current = read_manifest(self.folder)
        if differing := difference(current, own, self.flag):
            raise InputError(f"{str(self.folder)!r} holds {differing}")
        found = [(current, self._list(current)), *self._unfinished(own)]
        same = next((k for k, each in enumerate(found) if is_same(*each, own, listed)), None)
        generation = self._next_generation(current) if same is None else found[same][0]["generation"]
        others = tuple(Earlier.of(*each, listed) for k, each in enumerate(found) if k != same)
        store = replace(self, generation=generation, earlier=others, dim=dim)
        if same is None:
            if self.member is not None and (others := self.member.others()):
                raise InUseError(
                    f"{str(self.folder)!r} is in use by {others[0]} for another list of images: wait for it, or "
                    f"choose another folder with {self.flag}"
                )
            moved = None if found[0][0]["root"] == own["root"] else (found[0][0]["root"], own["root"])
            note = compared(self.folder, store.earlier[0], moved, files, store.has, self.flag)
            store = replace(store, note=note)
            if is_first:
                store._say(_name(generation), own | {"generation": generation}, listed)
        return store

    def has(self, path: str) -> bool:
        """Whether an image with the content of this file has features."""
        place = self.known_contents.find(content_of(path))
        return place is not None and self.at(place) is not None

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        return self._shard(number, self.generation, shape) is not None

    def known(self, number: int, rows: range, dim: int) -> ShardRows:
        values = self._shard(number, self.generation, (len(rows), dim))
        if values is not None:
            return ShardRows(features=values, contents=self._contents(number, self.generation, len(rows)))
        known = ShardRows.unknown(len(rows), dim)
        for source in self.earlier:
            places, size = source.rows[rows.start : rows.stop], source.shard_size
            wanted = np.isnan(known.features[:, 0]) & (places >= 0)
            for other in np.unique(places[wanted] // size).tolist():
                kept = self._rows_of(source, other)
                if kept is not None:
                    inside = wanted & (places // size == other)
                    known.features[inside] = kept.features[places[inside] - other * size]
                    known.contents[inside] = kept.contents[places[inside] - other * size]
        return known

    @property
    def known_contents(self) -> KnownContents:
        return self._known_contents

    @cached_property
    def _known_contents(self) -> KnownContents:
        found = []
        for k, source in enumerate(self.earlier):
            for number in range(-(-source.num // source.shard_size)):
                rows = self._rows_of(source, number)
                if rows is not None:
                    found.append((k, number * source.shard_size, rows.contents))
        return KnownContents.of(found)

    def at(self, place: Place) -> Float16[np.ndarray, " D"] | None:
        source = self.earlier[place.source]
        rows = self._rows_of(source, place.row // source.shard_size)
        values = None if rows is None else rows.features[place.row % source.shard_size]
        # If a job was killed in between, the content of an image may be stored without its features.
        return None if values is None or np.isnan(values[0]) else np.array(values)

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        path = shard_path(self.folder, number, self.generation)
        try:
            return read_array(path, "r")
        except (OSError, ValueError) as error:
            raise StoppedError(
                f"{str(path)!r} is missing or damaged ({getattr(error, 'strerror', None) or reason(error)}): "
                "another job may use the folder. Run the same command again"
            ) from error

    def lock(self, number: int) -> ExitStack | None:
        path = shard_path(self.folder, number, self.generation)
        return lock_if_free(path.with_name(f".{path.name}{LOCK}"), self.flag)

    def write(self, number: int, rows: ShardRows) -> None:
        # The features last: they mark the shard as complete.
        write_array(contents_path(self.folder, number, self.generation), rows.contents)
        write_array(shard_path(self.folder, number, self.generation), rows.features)

    def finish(self) -> None:
        with self._turn():
            self._finish()

    def _finish(self) -> None:
        own = self.folder / _name(self.generation)
        with writes(self.folder / MANIFEST):
            if own.exists():
                os.replace(own, self.folder / MANIFEST)
        others = [*self.folder.glob("shard_*.npy"), *self.folder.glob("content_*.npy")]
        others = [
            path for path in [*others, *self.folder.glob("files*.parquet")] if _generation_of(path) != self.generation
        ]
        for path in [*self.folder.glob(_name("*")), *others]:
            # Remaining files do no harm, and the next job removes them.
            with suppress(OSError):
                path.unlink()

    def _shard(self, number: int, generation: int, shape: tuple[int, int]) -> Float16[np.ndarray, "n D"] | None:
        """A shard with all of its rows; None if it is missing or incomplete."""
        try:
            values = read_array(shard_path(self.folder, number, generation), "r")
        except (OSError, ValueError):
            return None
        return values if values.shape == shape and values.dtype == np.float16 else None

    def _contents(self, number: int, generation: int, num: int) -> Int64[np.ndarray, "n 2"]:
        """The contents of a shard's images; zeros if they are missing."""
        with suppress(OSError, ValueError):
            values = read_array(contents_path(self.folder, number, generation))
            if values.shape == (num, 2) and values.dtype == np.int64:
                return values
        return np.zeros((num, 2), dtype=np.int64)

    def _rows_of(self, source: Earlier, number: int) -> ShardRows | None:
        """A shard of an earlier list; None if it is missing."""
        num = min(source.shard_size, source.num - number * source.shard_size)
        values = self._shard(number, source.generation, (num, self.dim))
        if values is None:
            return None
        return ShardRows(features=values, contents=self._contents(number, source.generation, num))

    def _list(self, manifest: dict[str, Any]) -> FeatureList:
        return FeatureList.read(list_path(self.folder, manifest["generation"]))

    def _next_generation(self, current: dict[str, Any]) -> int:
        """The number of a new generation, which no file has, not even files of damaged lists."""
        there = [*self.folder.glob("shard_*.npy"), *self.folder.glob(_name("*"))]
        return 1 + max([current["generation"], *map(_generation_of, there)])

    def _unfinished(self, own: dict[str, Any]) -> Iterator[tuple[dict[str, Any], FeatureList]]:
        """Readable lists whose features were begun with the same model and not finished."""
        for path in sorted(self.folder.glob(_name("*"))):
            with suppress(InputError):
                manifest = read_manifest(self.folder, path.name)
                if difference(manifest, own, self.flag) is None:
                    yield manifest, self._list(manifest)

    def _say(self, name: str, manifest: dict[str, Any], listed: FeatureList) -> None:
        try:
            # The manifest last: it marks the list as complete.
            listed.write(list_path(self.folder, manifest["generation"]))
            write_aside(self.folder / name, json.dumps(manifest))
        except WriteError as error:
            raise InputError(f"{error}; choose another folder with {self.flag}") from error


@contextmanager
def shared(store: FolderStore) -> Iterator[FolderStore]:
    """A store whose folder other processes may use at the same time; a folder without write permission is only read."""
    with ExitStack() as kept:
        try:
            member = kept.enter_context(joined(store.folder, store.flag))
        except InUseError:
            raise
        except InputError:
            yield store
            return
        member.end_first_turn()
        yield replace(store, member=member)


def _name(generation: int | str) -> str:
    """The file name of the manifest of a list whose features are not complete yet."""
    return f"manifest.{generation}.json"


def _generation_of(path: Path) -> int:
    _, *generation = path.stem.split(".")
    return int(generation[0]) if generation else 0
