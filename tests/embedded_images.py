"""Features of a few images by a small CLIP, for tests of what is kept."""

import os
from pathlib import Path
from typing import Any

import torch

from debias_ssl.contract import Place
from debias_ssl.features.embedding import FeatureCache, embed
from debias_ssl.features.store import FolderStore
from debias_ssl.models.clip import Clip

CPU = torch.device("cpu")


encode = Clip.encode


def cached(clip: Clip, images: list[Path], folder: str = "features", **settings: Any) -> FeatureCache:
    root = images[0].parents[1]
    settings = {"place": Place(), "batch_size": 3} | settings
    store = FolderStore(folder=root.parent / folder)
    return embed(clip, [str(path) for path in images], root, store, **settings)


def folder_of(cache: FeatureCache) -> Path:
    assert isinstance(cache.store, FolderStore)
    return cache.store.folder


def shards(cache: FeatureCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder_of(cache).glob("*.npy"))}


def spoil(path: Path) -> None:
    """Overwrites a file so that nothing but reading it would tell."""
    stat = path.stat()
    path.write_bytes(b"?" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


FIX = r": choose another folder with --features, or delete that one$"
