"""Features of images that `features` and `label` keep on disk: a manifest, a list of files, and shards of their rows.

Beside each shard of features stand the contents of its images, as hashes. Where images were added, changed or removed,
the features of the new list are another generation of all these files, which the manifest names as soon as it is whole.
The first generation is 0.

Features of weak and strong views of the images are folders of the same format below that one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float16, Int64, Shaped
from tqdm import tqdm

from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.decode import in_threads
from debias_ssl.data.reading.feature_list import FeatureList
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import member_named, members_of, on_disk
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

MANIFEST = "manifest.json"
VERSION = 3
KEYS = ("version", "model", "root", "shard_size", "dim", "generation")
# The jobs that make features; those of networks of timm, the first alone.
MAKERS = "debias-ssl features or label"
ViewKind = Literal["weak", "strong"]


def view_folder(folder: Path, kind: ViewKind, number: int) -> Path:
    """Of the features of view `number`, 0 first, of a kind: they are beside those of the images as they are."""
    return folder / f"{kind}_{number}"


def shard_path(folder: Path, number: int, generation: int) -> Path:
    return folder / _of_generation(f"shard_{number:05d}", generation, "npy")


def contents_path(folder: Path, number: int, generation: int) -> Path:
    """Of the hashes of a shard's images, two numbers each; zeros where an image could not be read."""
    return folder / _of_generation(f"content_{number:05d}", generation, "npy")


def list_path(folder: Path, generation: int) -> Path:
    """Of the list of files."""
    return folder / _of_generation("files", generation, "parquet")


def _of_generation(name: str, generation: int, suffix: str) -> str:
    return f"{name}.{generation}.{suffix}" if generation else f"{name}.{suffix}"


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """What a folder of features holds: version, model, root, shard_size, dim and generation.

    Raises:
        InputError: it holds none, or those of an earlier version, or the manifest cannot be read.
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
    """A hash of the model, the precision and the settings that a folder's features were made by."""
    model = read_manifest(Path(folder))["model"]
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:32]


def feature_notes(folders: Sequence[str]) -> list[str]:
    """What people should know of features that another version of this program has made."""
    older = [folder for folder in folders if read_manifest(Path(folder))["model"].get("decoder") != DECODER]
    return [
        f"the features in {folder} are of another version, which may have read photos sideways and transparency as "
        f"black: {MAKERS} makes new ones in another folder"
        for folder in older
    ]


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A folder of features."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def listed(self) -> FeatureList:
        return FeatureList.read(list_path(self.folder, self.manifest["generation"]))

    def read(
        self, path_of: Callable[[Path, int, int], Path], rows: Int64[np.ndarray, " n"], to: Shaped[np.ndarray, "n _"]
    ) -> None:
        """Copies rows of the features or of the contents.

        Raises:
            InputError: a file of theirs is missing or damaged.
        """
        shards = rows // self.manifest["shard_size"]
        for shard in np.unique(shards).tolist():
            path, own = path_of(self.folder, shard, self.manifest["generation"]), np.flatnonzero(shards == shard)
            try:
                to[own] = read_array(path, "r")[rows[own] - shard * self.manifest["shard_size"]]
            except (OSError, ValueError, IndexError) as error:
                raise InputError(f"{str(path)!r} is missing or damaged: run {MAKERS} again") from error

    def rows(self, paths: Sequence[str]) -> Int64[np.ndarray, " N"]:
        """The rows of images that are as they were; -1 for those that have none.

        Raises:
            InputError: an image, or the tar file that it is in, has changed.
        """
        files = [os.path.abspath(path.shard.path if isinstance(path, Member) else path) for path in paths]
        root = self._root([*dict.fromkeys(files)])
        entries = self.listed.find(os.path.relpath(path, root) for path in paths)
        rows = np.where(entries >= 0, self.listed.first_rows[entries], -1)
        known = np.flatnonzero(entries >= 0)
        others = known[~self._are_same(entries[known], [paths[i] for i in known.tolist()])]
        if len(others):
            raise InputError(
                f"{paths[others[0]]!r} has changed since its features were made: run {MAKERS} again; with --out or "
                f"--features {str(self.folder)!r} it makes those of changed images alone"
            )
        tars: dict[str, list[tuple[int, str]]] = {}
        for i in np.flatnonzero(entries < 0).tolist():
            path = paths[i]
            if isinstance(path, Member):
                tars.setdefault(path.shard.path, []).append((i, path.inner))
        found: list[int] = self.listed.find(os.path.relpath(tar, root) for tar in tars).tolist()
        for tar, entry in zip(tars, found, strict=True):
            if entry >= 0:
                place = {member.inner: k for k, member in enumerate(members_of(tar, *self._was(entry)))}
                for i, inner in tars[tar]:
                    rows[i] = self.listed.first_rows[entry] + place[inner]
        return rows

    def _root(self, files: Sequence[str]) -> str:
        """The folder that the images lie below: the one that is named, or another one that they were moved to.

        Args:
            files: absolute paths of images, or of the tar files that they are in.
        """
        root = self.manifest["root"]
        if (self.listed.find(os.path.relpath(file, root) for file in files) >= 0).any():
            return root
        described = {name: entry for entry, name in enumerate(self.listed.files)}
        for file in files:
            parts = Path(file).parts
            for cut in range(1, len(parts)):
                # A name alone, such as 0.png, may be that of any image: time or content say that it is the same.
                entry = described.get("/".join(parts[cut:]))
                if entry is not None and self._are_same(np.array([entry]), [file]).all():
                    return os.path.join(*parts[:cut])
        return root

    def _was(self, entry: int) -> tuple[int, int]:
        """The size and the time that a file had."""
        return int(self.listed.files.sizes[entry]), int(self.listed.files.mtimes[entry])

    def _are_same(self, entries: Int64[np.ndarray, " N"], paths: Sequence[str]) -> Bool[np.ndarray, " N"]:
        """Which files are what they were: of the same size and time, or images of the same size and content."""
        files = self.listed.files
        was = np.stack([files.sizes[entries], files.mtimes[entries]], axis=1)
        now = np.array([(file.size, file.mtime_ns) for file in on_disk(paths)], dtype=np.int64).reshape(-1, 2)
        same = (was == now).all(1)
        asked = np.flatnonzero(~same & (was[:, 0] == now[:, 0]) & (self.listed.images[entries] == 0))
        if len(asked):
            before = np.empty((len(asked), 2), dtype=np.int64)
            self.read(contents_path, self.listed.first_rows[entries[asked]], before)
            contents = in_threads(content_of, [paths[i] for i in asked.tolist()])
            contents = tqdm(contents, "comparing contents", len(asked), unit="img", leave=False, delay=2)
            same[asked] = (np.stack([*contents]) == before).all(1)
        return same


def find_features(folders: Sequence[str], paths: Sequence[str]) -> Float16[np.ndarray, "N D"]:
    """The features of images, by their paths; where the images were moved, by their paths below the folder of all.

    An image is what it was where its file has the size and the time that it had; or that size and that content.

    Raises:
        InputError: the folders hold no features, or those of different models, lack an image, or have features of what
            an image was before.
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
    paths = [path if isinstance(path, Member) else member_named(path) or path for path in paths]
    features = np.zeros((len(paths), manifests[0]["dim"]), dtype=np.float16)
    left = np.arange(len(paths))
    for folder, manifest in zip(folders, manifests, strict=True):
        kept = _Kept(folder=Path(folder), manifest=manifest)
        rows = kept.rows([paths[i] for i in left.tolist()])
        values = np.empty(((rows >= 0).sum(), features.shape[1]), dtype=np.float16)
        kept.read(shard_path, rows[rows >= 0], values)
        features[left[rows >= 0]], left = values, left[rows < 0]
    if len(left):
        path = paths[left[0]]
        raise InputError(f"{', '.join(folders)} lack features of {path!r}: run {MAKERS} on its folder too")
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise InputError(f"{paths[broken[0]]!r} could not be read when its features were made: leave it out")
    return features
