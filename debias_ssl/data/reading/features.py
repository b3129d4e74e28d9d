"""Features of images that `debias-ssl label` keeps on disk: a manifest, and shards of rows in its order."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from debias_ssl.data.sources.shards import members_of
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

MANIFEST = "manifest.json"


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05d}.npy"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder of features holds: model, root, files, shard_size and dim."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {key: manifest[key] for key in ("model", "root", "files", "shard_size", "dim")}
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} holds no features of debias-ssl label: it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(folder / MANIFEST)!r} cannot be read: {reason(error)}") from error


def _names(manifest: dict[str, Any]) -> Iterator[str]:
    """The images in a manifest, of which tar files have one row for all that is in them."""
    for name, *rest in manifest["files"]:
        match rest:
            case size, mtime_ns, _num_images:
                shard = os.path.join(manifest["root"], name)
                yield from (f"{name}/{member.inner}" for member in members_of(shard, size, mtime_ns))
            case _:
                yield name


def find_features(folders: Sequence[str], paths: Sequence[str]) -> Float16[np.ndarray, "N D"]:
    """The features of images, by their paths.

    Raises:
        InputError: the folders hold no features, or those of different models, or lack an image.
    """
    manifests = [read_manifest(Path(folder)) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest["model"] != manifests[0]["model"]:
            raise InputError(f"{folders[0]!r} and {folder!r} hold features of different models")
    place = {
        os.path.abspath(os.path.join(manifest["root"], name)): (number, row)
        for number, manifest in reversed([*enumerate(manifests)])
        for row, name in enumerate(_names(manifest))
    }
    features = np.zeros((len(paths), manifests[0]["dim"]), dtype=np.float16)
    places = [place.get(os.path.abspath(path)) for path in paths]
    if None in places:
        path = paths[places.index(None)]
        raise InputError(f"{', '.join(folders)} lack features of {path!r}: label its folder with debias-ssl label too")
    shards: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, (number, row) in enumerate(each for each in places if each is not None):
        shard, offset = divmod(row, manifests[number]["shard_size"])
        shards.setdefault((number, shard), []).append((i, offset))
    for (number, shard), rows in shards.items():
        path = shard_path(Path(folders[number]), shard)
        try:
            values = read_array(path, "r")
            to, where = np.array(rows).T
            features[to] = values[where]
        except (OSError, ValueError, IndexError) as error:
            raise InputError(f"{str(path)!r} is missing or damaged: run debias-ssl label again") from error
    broken = np.flatnonzero(~np.isfinite(features).all(1))
    if len(broken):
        raise InputError(f"{paths[broken[0]]!r} could not be read when its features were made: leave it out")
    return features
