"""Where features of images are kept, in shards: a folder, or memory."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16, Int64

from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.reading.features import MANIFEST, read_manifest, shard_path
from debias_ssl.system.errors import InputError, StoppedError, WriteError, reason
from debias_ssl.system.files import read_array, write_array, write_aside, writes

ELSEWHERE = "name another folder by --features, or delete that one"


@runtime_checkable
class FeatureStore(Protocol):
    """Shards of features by number."""

    @property
    def note(self) -> str | None:
        """What people should know of features that are used again."""
        ...

    def claim(self, own: dict[str, Any], is_first: bool) -> "FeatureStore":
        """The store of these features, once the first process has said whose they are, or has found it said before."""
        ...

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        """Whether a shard is there, with all of its rows."""
        ...

    def known(self, number: int, rows: range, dim: int) -> Float16[np.ndarray, "n D"]:
        """What is known of a shard's features before it is made; the other rows are no numbers."""
        ...

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        """The features of a shard; an image that could not be read has a row that is no numbers."""
        ...

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        """Keeps a shard."""
        ...

    def finish(self) -> None:
        """Says that all shards are kept, and removes those of earlier lists of images."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemoryStore:
    """Shards that are there as long as the process."""

    shards: dict[int, Float16[np.ndarray, "_ D"]] = field(default_factory=dict)
    note: str | None = None

    def claim(self, own: dict[str, Any], is_first: bool) -> "MemoryStore":
        """Nobody else's features can be here."""
        return self

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        return number in self.shards

    def known(self, number: int, rows: range, dim: int) -> Float16[np.ndarray, "n D"]:
        return self.shards.get(number, np.full((len(rows), dim), np.nan, dtype=np.float16))

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        return self.shards[number]

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        self.shards[number] = values

    def finish(self) -> None:
        """Nothing else can be here."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Features of another list of images, and where in it the images of the list that is made are."""

    generation: int
    num: int
    """How many images that list has."""
    shard_size: int
    rows: Int64[np.ndarray, " N"]
    """For each image of the new list its place in the other one; negative where it is not in it, or has changed."""


@dataclass(frozen=True, kw_only=True)
class FolderStore:
    """Shards in files, beside a manifest; `data/reading/features.py` has the layout.

    What is made for a new list of images has a manifest of its own, `manifest.GENERATION.json`, until it is whole. Then
    that is renamed to `manifest.json`, and only after this are the shards of the earlier list removed.
    """

    folder: Path
    generation: int = 0
    earlier: tuple[Earlier, ...] = ()
    note: str | None = None

    def claim(self, own: dict[str, Any], is_first: bool) -> "FolderStore":
        """The store of features of these images.

        The features that are there are taken where model, settings and images are the same. Where some images are new,
        have changed or are gone, another generation is begun, which takes over the rows of all others.

        Args:
            own: the manifest of the features.
            is_first: whether this process may write; the others must come after it.

        Raises:
            InputError: the folder holds those of another model, of other settings, or largely of other images; or it
                cannot be written to.
        """
        if not (self.folder / MANIFEST).exists() and not any(self.folder.glob("shard_*.npy")):
            if is_first:
                self._say(MANIFEST, own)
            return self
        current = read_manifest(self.folder)
        if differing := _difference(current, own):
            raise InputError(f"{str(self.folder)!r} holds {differing}")
        found = [current, *(each for each in self._unfinished() if _difference(each, own) is None)]
        same = next((each for each in found if all(each[key] == own[key] for key in ("files", "shard_size"))), None)
        others, note = [each for each in found if each is not same], None
        if same is None:
            note = _compared(self.folder, current, own)
            same = own | {"generation": 1 + max(each["generation"] for each in found)}
            if is_first:
                self._say(_name(same["generation"]), same)
        earlier = tuple(_earlier(each, own) for each in others)
        return replace(self, generation=same["generation"], earlier=earlier, note=note)

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        return self._shard(number, self.generation, shape) is not None

    def known(self, number: int, rows: range, dim: int) -> Float16[np.ndarray, "n D"]:
        values = self._shard(number, self.generation, (len(rows), dim))
        if values is not None:
            return values
        values = np.full((len(rows), dim), np.nan, dtype=np.float16)
        for source in self.earlier:
            places, size = source.rows[rows.start : rows.stop], source.shard_size
            wanted = np.isnan(values[:, 0]) & (places >= 0)
            for other in np.unique(places[wanted] // size).tolist():
                shape = (min(size, source.num - other * size), dim)
                kept = self._shard(other, source.generation, shape)
                if kept is not None:
                    inside = wanted & (places // size == other)
                    values[inside] = kept[places[inside] - other * size]
        return values

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        path = shard_path(self.folder, number, self.generation)
        try:
            return read_array(path, "r")
        except (OSError, ValueError) as error:
            raise StoppedError(
                f"{str(path)!r} is gone or damaged ({getattr(error, 'strerror', None) or reason(error)}): does another "
                "job use the folder? Run the same command again"
            ) from error

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        write_array(shard_path(self.folder, number, self.generation), values)

    def finish(self) -> None:
        own = self.folder / _name(self.generation)
        with writes(self.folder / MANIFEST):
            if own.exists():
                os.replace(own, self.folder / MANIFEST)
        others = [path for path in self.folder.glob("shard_*.npy") if _generation_of(path) != self.generation]
        for path in [*self.folder.glob(_name("*")), *others]:
            # What stays is in nobody's way, and is removed the next time.
            with suppress(OSError):
                path.unlink()

    def _shard(self, number: int, generation: int, shape: tuple[int, int]) -> Float16[np.ndarray, "n D"] | None:
        """A shard that is there, with all of its rows."""
        try:
            values = read_array(shard_path(self.folder, number, generation), "r")
        except (OSError, ValueError):
            return None
        return values if values.shape == shape and values.dtype == np.float16 else None

    def _unfinished(self) -> Iterator[dict[str, Any]]:
        """The manifests of lists whose features were begun, and not made to the end, as far as they can be read."""
        for path in sorted(self.folder.glob(_name("*"))):
            with suppress(InputError):
                yield read_manifest(self.folder, path.name)

    def _say(self, name: str, manifest: dict[str, Any]) -> None:
        try:
            write_aside(self.folder / name, json.dumps(manifest))
        except WriteError as error:
            raise InputError(f"{error}; name another folder by --features") from error


def _name(generation: int | str) -> str:
    """Of the manifest of a list whose features are not whole yet."""
    return f"manifest.{generation}.json"


def _generation_of(shard: Path) -> int:
    _, *generation = shard.stem.split(".")
    return int(generation[0]) if generation else 0


def _entries(manifest: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], int, int]]:
    """The files of a manifest, each with its first row and the number of its rows: a tar file has many."""
    first = 0
    for entry in manifest["files"]:
        number = entry[3] if len(entry) > 3 else 1
        yield tuple(entry), first, number
        first += number


def _num_rows(manifest: dict[str, Any]) -> int:
    return sum(number for _, _, number in _entries(manifest))


def _earlier(manifest: dict[str, Any], own: dict[str, Any]) -> Earlier:
    known = {entry: first for entry, first, _ in _entries(manifest)}
    rows = np.full(_num_rows(own), -1, dtype=np.int64)
    for entry, first, number in _entries(own):
        if entry in known:
            rows[first : first + number] = np.arange(known[entry], known[entry] + number)
    return Earlier(
        generation=manifest["generation"], num=_num_rows(manifest), shard_size=manifest["shard_size"], rows=rows
    )


def _difference(found: dict[str, Any], own: dict[str, Any]) -> str | None:
    """By what model or settings features were made, if not by those that are asked for; what to do is said with it."""
    before, now = (manifest["model"] | {"dim": manifest["dim"]} for manifest in (found, own))
    differing = [key for key in sorted(now.keys() | before.keys()) if before.get(key) != now.get(key)]
    if not differing:
        return None
    if differing == ["precision"]:
        was = before["precision"]
        return f"features of --precision {was}, not {now['precision']}: pass --precision {was}, {ELSEWHERE}"
    if before.get("decoder") != DECODER:
        return (
            "features of another version, which read some images otherwise (EXIF orientation, transparency): "
            + ELSEWHERE
        )
    return f"features of another model ({' and '.join(differing)} differ): {ELSEWHERE}"


def _compared(folder: Path, found: dict[str, Any], own: dict[str, Any]) -> str:
    """What is said of features that are used again for a list that is not quite the same.

    Raises:
        InputError: more than half of the features would be lost by it, as the images are largely others.
    """
    before, now = ({entry: number for entry, _, number in _entries(manifest)} for manifest in (found, own))
    num_before, num_now = sum(before.values()), sum(now.values())
    kept = sum(number for entry, number in before.items() if entry in now)
    if not kept and found["root"] != own["root"]:
        raise InputError(
            f"{str(folder)!r} holds features of images in {found['root']!r}, not in {own['root']!r}: {ELSEWHERE}"
        )
    if 2 * kept < num_before:
        raise InputError(
            f"{str(folder)!r} holds features of {num_before:,} images, of which {kept:,} are among these {num_now:,} "
            f"as they were: {ELSEWHERE}"
        )
    return (
        f"{folder}: features of {kept:,} images are used again, {num_now - kept:,} are new or have changed, "
        f"{num_before - kept:,} are not needed any more"
    )
