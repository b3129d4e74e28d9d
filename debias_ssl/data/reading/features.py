"""Stored features, which `features` and `label` write: their format, and how the rows of images are found.

A folder has a manifest, a list of files, and shards of rows.

Beside each shard of features stands a file with the hashes of its images' contents. When images are added, changed or
removed, the features of the new list form a new generation of all these files. The manifest names a generation once it
is complete. The first generation is 0.

Features of weak and strong views of the images are folders of the same format inside this one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, Int64, Shaped
from tqdm import tqdm

from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.decode import in_threads
from debias_ssl.data.reading.feature_list import FeatureList
from debias_ssl.data.sources.listing import FileNames, picked
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import member_named, members_of, on_disk
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

MANIFEST = "manifest.json"
VERSION = 3
KEYS = ("version", "model", "root", "shard_size", "dim", "generation")
# The jobs that make features; only the first one can use networks of timm.
MAKERS = "debias-ssl features or label"
ViewKind = Literal["weak", "strong"]


def view_folder(folder: Path, kind: ViewKind, number: int) -> Path:
    """The folder of the features of view `number` (from 0) of a kind, inside the folder of the plain features."""
    return folder / f"{kind}_{number}"


def shard_path(folder: Path, number: int, generation: int) -> Path:
    return folder / _of_generation(f"shard_{number:05d}", generation, "npy")


def contents_path(folder: Path, number: int, generation: int) -> Path:
    """The path of the hashes of a shard's images: two numbers each, zeros if an image could not be read."""
    return folder / _of_generation(f"content_{number:05d}", generation, "npy")


def list_path(folder: Path, generation: int) -> Path:
    """The path of the list of files."""
    return folder / _of_generation("files", generation, "parquet")


def _of_generation(name: str, generation: int, suffix: str) -> str:
    return f"{name}.{generation}.{suffix}" if generation else f"{name}.{suffix}"


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """The manifest of a folder of features: version, model, root, shard_size, dim and generation.

    Raises:
        InputError: the folder has no features, or those of an earlier version, or the manifest cannot be read.
    """
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
        if manifest.get("version") != VERSION:
            raise InputError(
                f"{str(folder)!r} holds features of another version of this program: let {MAKERS} make "
                "new ones in another folder, or delete that one"
            )
        return {key: manifest[key] for key in KEYS}
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} holds no features of {MAKERS}: it has no {name}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(folder / name)!r} cannot be read: {reason(error)}") from error


def hash_of_model(folder: str) -> str:
    """A hash of the model, the precision and the settings with which a folder's features were made."""
    model = read_manifest(Path(folder))["model"]
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:32]


def feature_notes(folders: Sequence[str]) -> list[str]:
    """Notes for users about features from another version of this program."""
    older = [folder for folder in folders if read_manifest(Path(folder))["model"].get("decoder") != DECODER]
    return [
        f"the features in {folder} are from another version, which may have read rotated photos and transparency "
        f"differently: let {MAKERS} write new ones in another folder"
        for folder in older
    ]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Images whose features are needed."""

    names: Sequence[str]

    @classmethod
    def of(cls, paths: Sequence[str]) -> "_Asked":
        """Images by their paths; paths may lead into tar files."""
        if isinstance(paths, FileNames):
            return cls(names=paths)
        return cls(names=[path if isinstance(path, Member) else member_named(path) or path for path in paths])

    def part(self, positions: Int64[np.ndarray, " P"]) -> "_Asked":
        return self if len(positions) == len(self.names) else _Asked(names=picked(self.names, positions))

    @cached_property
    def files(self) -> list[str]:
        """The path of each image, or of the tar file that contains it."""
        return [path.shard.path if isinstance(path, Member) else path for path in self.names]

    def on_disk(self, positions: Int64[np.ndarray, " P"]) -> Int64[np.ndarray, "P 2"]:
        """Sizes and times of some files. If a list has them, they are not read from the disk again."""
        if isinstance(self.names, FileNames):
            return np.stack([self.names.sizes[positions], self.names.mtimes[positions]], axis=1)
        found = on_disk(picked(self.names, positions))
        return np.array([(file.size, file.mtime_ns) for file in found], dtype=np.int64).reshape(-1, 2)

    def below(self, root: str) -> list[str]:
        """The names of the images relative to a folder."""
        return _below(self.names, root)


def _below(paths: Iterable[str], root: str) -> list[str]:
    """Paths relative to a folder; each of their folders is resolved once."""
    known: dict[str, str] = {}
    found = []
    for path in paths:
        border = path.rfind("/") + 1
        front = known.get(path[:border])
        if front is None:
            front = os.path.join(os.path.relpath(path[:border] or ".", root), "")
            known[path[:border]] = front = "" if front == "./" else front
        found.append(front + path[border:])
    return found


@dataclass(frozen=True, kw_only=True)
class KeptFeatures:
    """A folder of features."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def listed(self) -> FeatureList:
        return FeatureList.read(list_path(self.folder, self.manifest["generation"]))

    def read(
        self,
        path_of: Callable[[Path, int, int], Path],
        rows: Int64[np.ndarray, " n"],
        to: Shaped[np.ndarray, "N _"],
        at: Int64[np.ndarray, " n"],
    ) -> None:
        """Copies rows of the features, or of the hashes of contents, to positions in an array.

        Raises:
            InputError: one of their files is missing or damaged.
        """
        shards = rows // self.manifest["shard_size"]
        for shard in np.unique(shards).tolist():
            path, own = path_of(self.folder, shard, self.manifest["generation"]), np.flatnonzero(shards == shard)
            try:
                to[at[own]] = read_array(path, "r")[rows[own] - shard * self.manifest["shard_size"]]
            except (OSError, ValueError, IndexError) as error:
                raise InputError(f"{str(path)!r} is missing or damaged: run {MAKERS} again") from error

    def rows(self, asked: _Asked, *, moved: bool) -> Int64[np.ndarray, " N"]:
        """The rows of unchanged images; -1 for images without a row.

        Args:
            asked: the images.
            moved: whether to search for them below another folder than the manifest names.

        Raises:
            InputError: an image, or the tar file that contains it, has changed.
        """
        root = self._moved_root(asked.files) if moved else self.manifest["root"]
        if root is None:
            return np.full(len(asked.names), -1)
        entries = self.listed.find(asked.below(root))
        rows = np.where(entries >= 0, self.listed.first_rows[entries], -1)
        known = np.flatnonzero(entries >= 0)
        others = known[~self._are_same(entries[known], asked, known)]
        if len(others):
            raise InputError(
                f"{asked.names[int(others[0])]!r} has changed since its features were made: run {MAKERS} again; with "
                f"--out or --features {str(self.folder)!r} it makes those of changed images alone"
            )
        tars: dict[str, list[tuple[int, str]]] = {}
        for i in np.flatnonzero(entries < 0).tolist() if not isinstance(asked.names, FileNames) else ():
            path = asked.names[i]
            if isinstance(path, Member):
                tars.setdefault(path.shard.path, []).append((i, path.inner))
        found: list[int] = self.listed.find(_below(tars, root)).tolist()
        for tar, entry in zip(tars, found, strict=True):
            if entry >= 0:
                place = {member.inner: k for k, member in enumerate(members_of(tar, *self._was(entry)))}
                for i, inner in tars[tar]:
                    rows[i] = self.listed.first_rows[entry] + place[inner]
        return rows

    def _moved_root(self, files: Sequence[str]) -> str | None:
        """The folder to which the images (or their tar files) were moved; None if no image is found."""
        described = {name: entry for entry, name in enumerate(self.listed.files)}
        for file in dict.fromkeys(files):
            file = os.path.abspath(file)
            parts = Path(file).parts
            for cut in range(1, len(parts)):
                # A name such as 0.png may belong to any image, and files from archives may all have the same time.
                entry = described.get("/".join(parts[cut:]))
                if entry is not None and self._is_content(entry, file):
                    return os.path.join(*parts[:cut])
        return None

    def _is_content(self, entry: int, path: str) -> bool:
        """Whether a file is unchanged, by the content of an image, or by size and time of a tar file."""
        stat, was = os.stat(path), self._was(entry)
        if self.listed.images[entry] or stat.st_size != was[0]:
            return (stat.st_size, stat.st_mtime_ns) == was
        return bool((content_of(path) == self._contents(np.array([entry]))).all())

    def _was(self, entry: int) -> tuple[int, int]:
        """The size and the time of a file when its features were made."""
        return int(self.listed.files.sizes[entry]), int(self.listed.files.mtimes[entry])

    def _contents(self, entries: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, "n 2"]:
        """The hashes of the contents of images when their features were made."""
        before = np.empty((len(entries), 2), dtype=np.int64)
        self.read(contents_path, self.listed.first_rows[entries], before, np.arange(len(entries)))
        return before

    def _are_same(
        self, entries: Int64[np.ndarray, " n"], asked: _Asked, positions: Int64[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether images are unchanged: same size and time, or same size and content."""
        files = self.listed.files
        was, now = np.stack([files.sizes[entries], files.mtimes[entries]], axis=1), asked.on_disk(positions)
        same = (was == now).all(1)
        in_doubt = np.flatnonzero(~same & (was[:, 0] == now[:, 0]) & (self.listed.images[entries] == 0))
        if len(in_doubt):
            contents = in_threads(content_of, [asked.names[i] for i in positions[in_doubt].tolist()])
            contents = tqdm(contents, "comparing contents", len(in_doubt), unit="img", leave=False, delay=2)
            same[in_doubt] = (np.stack([*contents]) == self._contents(entries[in_doubt])).all(1)
        return same


@dataclass(frozen=True, kw_only=True)
class Located:
    """Images whose features are in one folder."""

    kept: KeptFeatures
    rows: Int64[np.ndarray, " n"]
    """Rows of their features in the folder."""
    positions: Int64[np.ndarray, " n"]
    """Positions of these images in the requested list."""


def locate(folders: Sequence[str], paths: Sequence[str]) -> list[Located]:
    """Finds the features of images by their paths; for moved images, by the paths relative to their common folder.

    An image is unchanged if its file has the same size and time, or the same size and content.

    Raises:
        InputError: the folders have no features or features of different models, lack an image, or have features of an
            image that has changed.
    """
    manifests = [read_manifest(Path(folder)) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        one, other = manifest["model"], manifests[0]["model"]
        differing = [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]
        if differing:
            raise InputError(
                f"{folders[0]!r} and {folder!r} hold features of different models ({' and '.join(differing)} differ): "
                f"run {MAKERS} with the same model and settings for both"
            )
    asked, left, found = _Asked.of(paths), np.arange(len(paths)), []
    kept = [
        KeptFeatures(folder=Path(folder), manifest=manifest)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]
    # Moved images are searched last, because images of another folder may have the same names.
    for each, moved in [*product(kept, (False,)), *product(kept, (True,))]:
        if len(left):
            rows = each.rows(asked.part(left), moved=moved)
            if (rows >= 0).any():
                found.append(Located(kept=each, rows=rows[rows >= 0], positions=left[rows >= 0]))
            left = left[rows < 0]
    if len(left):
        path = paths[int(left[0])]
        raise InputError(f"{', '.join(folders)} lack features of {path!r}: run {MAKERS} on its folder too")
    return found


def find_features(folders: Sequence[str], paths: Sequence[str]) -> Float16[np.ndarray, "N D"]:
    """The features of images, found by `locate`.

    Raises:
        InputError: an image has no features, or could not be read when they were made.
    """
    found = locate(folders, paths)
    features = np.empty((len(paths), found[0].kept.manifest["dim"]), dtype=np.float16)
    for each in found:
        each.kept.read(shard_path, each.rows, features, each.positions)
    check_finite(features, paths)
    return features


def check_finite(features: Float16[np.ndarray, "N D"], paths: Sequence[str]) -> None:
    """Raises InputError if an image could not be read when its features were made."""
    # Tests the bits of infinite numbers and NaN, which is four times as fast as isfinite.
    broken = np.flatnonzero((features.view(np.uint16) & 0x7FFF).max(1, initial=0) >= 0x7C00)
    if len(broken):
        raise InputError(f"{paths[int(broken[0])]!r} could not be read when its features were made: leave it out")
