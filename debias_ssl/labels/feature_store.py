"""Where features of images are kept, in shards: a folder, or memory."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float16

from debias_ssl.data.reading.features import MANIFEST, read_manifest, shard_path
from debias_ssl.system.errors import InputError, WriteError
from debias_ssl.system.files import read_array, write_array, write_aside


@runtime_checkable
class FeatureStore(Protocol):
    """Shards of features by number."""

    def claim(self, own: dict[str, Any], is_first: bool) -> None:
        """Says whose features these are, by the first process, or checks what was said before."""
        ...

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        """Whether a shard is there, with all of its rows."""
        ...

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        """The features of a shard; an image that could not be read has a row that is no numbers."""
        ...

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        """Keeps a shard."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemoryStore:
    """Shards that are there as long as the process."""

    shards: dict[int, Float16[np.ndarray, "_ D"]] = field(default_factory=dict)

    def claim(self, own: dict[str, Any], is_first: bool) -> None:
        """Nobody else's features can be here."""

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        return number in self.shards

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        return self.shards[number]

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        self.shards[number] = values


@dataclass(frozen=True, kw_only=True)
class FolderStore:
    """Shards in files, beside a manifest; `data/reading/features.py` has the layout."""

    folder: Path

    def claim(self, own: dict[str, Any], is_first: bool) -> None:
        """Says in the folder whose features it holds, or checks what it says.

        Raises:
            InputError: it holds those of other images or of another model, or cannot be written to.
        """
        if (self.folder / MANIFEST).exists() or any(self.folder.glob("shard_*.npy")):
            found = read_manifest(self.folder)
            if differing := _difference(found, own):
                raise InputError(
                    f"{str(self.folder)!r} holds features of {differing}: name another folder by --features, or delete "
                    "that one"
                )
        elif is_first:
            try:
                write_aside(self.folder / MANIFEST, json.dumps(own))
            except WriteError as error:
                raise InputError(f"{error}; name another folder by --features") from error

    def is_whole(self, number: int, shape: tuple[int, int]) -> bool:
        try:
            values = read_array(shard_path(self.folder, number), "r")
        except (OSError, ValueError):
            return False
        return values.shape == shape and values.dtype == np.float16

    def read(self, number: int) -> Float16[np.ndarray, "n D"]:
        return np.load(shard_path(self.folder, number), mmap_mode="r", allow_pickle=False)

    def write(self, number: int, values: Float16[np.ndarray, "n D"]) -> None:
        write_array(shard_path(self.folder, number), values)


def _difference(found: dict[str, Any], own: dict[str, Any]) -> str | None:
    """What differs between two manifests, in words; None where nothing does."""
    if found["model"] != own["model"]:
        differing = [
            key
            for key in sorted(own["model"].keys() | found["model"].keys())
            if found["model"].get(key) != own["model"].get(key)
        ]
        return f"another model ({' and '.join(differing)} differ)"
    if found["root"] != own["root"] and found["files"] != own["files"]:
        return f"images in {found['root']!r}, not in {own['root']!r}"
    before, now = ({name: rest for name, *rest in manifest["files"]} for manifest in (found, own))
    changes = [f"{name!r} was removed" for name in before if name not in now]
    changes += [f"{name!r} is new" for name in now if name not in before]
    changes += [f"{name!r} has changed" for name in now if name in before and before[name] != now[name]]
    if changes:
        return f"other images ({changes[0]}" + (f", and {len(changes) - 1} more differ)" if len(changes) > 1 else ")")
    if any(found[key] != own[key] for key in ("files", "shard_size", "dim")):
        return "these images in another order or layout"
    return None
