"""Data sets of Hugging Face as tests write them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def save_arrow(folder: Path, splits: Mapping[str, Sequence[Path]], classes: Sequence[str], **settings: Any) -> Path:
    """What `save_to_disk` writes of image files, whose folders are their classes."""
    datasets = imported()
    every = {name: of_files(files, classes) for name, files in splits.items()}
    datasets.DatasetDict(every).save_to_disk(folder, **settings)
    return folder


def save_parquet(folder: Path, splits: Mapping[str, Sequence[Path]], classes: Sequence[str], num: int = 2) -> Path:
    """The same images in a folder of Parquet files as the hub has them, several of each split."""
    (folder / "data").mkdir(parents=True)
    for name, files in splits.items():
        dataset = of_files(files, classes)
        for k in range(num):
            path = folder / "data" / f"{name}-{k:05d}-of-{num:05d}.parquet"
            dataset.shard(num, k, contiguous=True).to_parquet(path)
    return folder


def of_files(files: Sequence[Path], classes: Sequence[str]) -> Any:
    """A data set with the columns image and label."""
    datasets = imported()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*classes])})
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    labels = [path.parent.name if path.parent.name in classes else None for path in files]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def imported() -> Any:
    """The package, which shows no progress and asks nobody."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    return datasets
