"""Features of images that `debias-ssl label` keeps on disk: a manifest, and shards of rows in its order.

Where images were added, changed or removed, the features of the new list are another generation of shards, which the
manifest names as soon as it is whole. The first generation is 0, and manifests of earlier versions name none.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16

from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import members_of
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array

MANIFEST = "manifest.json"


def shard_path(folder: Path, number: int, generation: int = 0) -> Path:
    return folder / (f"shard_{number:05d}.{generation}.npy" if generation else f"shard_{number:05d}.npy")


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """What a folder of features holds: model, root, files, shard_size, dim and generation."""
    try:
        manifest = json.loads((folder / name).read_text(encoding="utf-8"))
        found = {key: manifest[key] for key in ("model", "root", "files", "shard_size", "dim")}
        return found | {"generation": int(manifest.get("generation", 0))}
    except FileNotFoundError as error:
        raise InputError(f"{str(folder)!r} holds no features of debias-ssl label: it has no {name}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
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
        "black: debias-ssl label makes new ones in another folder"
        for folder in older
    ]


def _rows(manifest: dict[str, Any], root: str) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The images in a manifest, each with the size and the time that its file had.

    Tar files have one row for all that is in them, and are compared with what they were before they are gone through.
    """
    for name, size, mtime_ns, *part in manifest["files"]:
        path = os.path.abspath(os.path.join(root, name))
        if part:
            yield from ((f"{path}/{member.inner}", None) for member in members_of(path, size, mtime_ns))
        else:
            yield path, (size, mtime_ns)


def _root_of(manifest: dict[str, Any], files: Sequence[str]) -> str:
    """The folder that the images of a manifest lie below: the one named in it, or another one that they were moved to.

    Args:
        manifest: of a folder of features.
        files: absolute paths of images, or of the tar files that they are in.
    """
    root, described = manifest["root"], {name: (size, time) for name, size, time, *_ in manifest["files"]}
    if any(os.path.relpath(file, root) in described for file in files):
        return root
    for file in files:
        parts = Path(file).parts
        for cut in range(1, len(parts)):
            # A name alone, such as 0.png, may be that of any image: size and time say that it is the same.
            was = described.get("/".join(parts[cut:]))
            if was is not None and was == _now(file):
                return os.path.join(*parts[:cut])
    return root


def _now(path: str) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def find_features(folders: Sequence[str], paths: Sequence[str]) -> Float16[np.ndarray, "N D"]:
    """The features of images, by their paths; where the images were moved, by their paths below the folder of all.

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
                "run debias-ssl label with the same model and settings for both"
            )
    files = [os.path.abspath(path.shard.path if isinstance(path, Member) else path) for path in paths]
    files = [*dict.fromkeys(files)]
    place = {
        name: (number, row, was)
        for number, manifest in reversed([*enumerate(manifests)])
        for row, (name, was) in enumerate(_rows(manifest, _root_of(manifest, files)))
    }
    features = np.zeros((len(paths), manifests[0]["dim"]), dtype=np.float16)
    places = [place.get(os.path.abspath(path)) for path in paths]
    if None in places:
        path = paths[places.index(None)]
        raise InputError(f"{', '.join(folders)} lack features of {path!r}: label its folder with debias-ssl label too")
    shards: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, (number, row, was) in enumerate(each for each in places if each is not None):
        if was is not None and _now(paths[i]) != was:
            raise InputError(
                f"{paths[i]!r} has changed since its features were made, by its size or time: run debias-ssl label "
                f"again, into another folder than {folders[number]!r} (copies keep their time by cp -p)"
            )
        shard, offset = divmod(row, manifests[number]["shard_size"])
        shards.setdefault((number, shard), []).append((i, offset))
    for (number, shard), rows in shards.items():
        path = shard_path(Path(folders[number]), shard, manifests[number]["generation"])
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
