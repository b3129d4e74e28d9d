"""Folders of features, as jobs leave them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.feature_list import FeatureList


def write_features(folder: Path, root: Path, names: list[str], values: np.ndarray, **settings: Any) -> str:
    """Features in shards of two rows; images that are missing are made up."""
    folder.mkdir(parents=True)
    paths = [root / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(b"not looked at" + bytes(path))
    FeatureList.of([str(path) for path in paths], root).write(folder / "files.parquet")
    manifest = {"version": 3, "model": {"model": "a"}, "root": str(root), "shard_size": 2, "generation": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"dim": values.shape[1]} | settings))
    contents = np.stack([content_of(str(path)) for path in paths])
    for number in range(0, len(values), 2):
        np.save(folder / f"shard_{number // 2:05d}.npy", values[number : number + 2].astype(np.float16))
        np.save(folder / f"content_{number // 2:05d}.npy", contents[number : number + 2])
    return str(folder)
