"""Images in folders and their labels, as `debias` writes them, for tests of exports and corrections."""

import csv
import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

CLASSES = ["ant", "bee & wasp", 'cat "big"', "dog"]
NUM = 80


def make_images(folder: Path) -> list[str]:
    """Some images in folders; returns their paths."""
    pixels, names = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), dtype=np.uint8), []
    for i, image in enumerate(pixels):
        path = folder / f"s{i % 3}" / f"im {i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        names.append(path.relative_to(folder).as_posix())
    return names


def make_labels(place: Path) -> Path:
    """Writes images and labels into a folder, and returns the folder `labels` in it."""
    names = make_images(place / "images")
    logits = np.random.default_rng(1).normal(size=(NUM, len(CLASSES)))
    logits[:, 0] += 1
    logits[np.arange(NUM), np.arange(NUM) % len(CLASSES)] += 5
    table = pd.DataFrame(logits.round(4), columns=pd.Index(CLASSES))
    table.insert(0, "path", pd.Series(names))
    table.to_csv(place / "logits.csv", index=False)
    return debiased(place / "logits.csv", place / "labels")


def debiased(predictions: Path, out: Path) -> Path:
    """Labels of predictions, without the seconds of drawing a page."""
    # A function of the package has the name of this module.
    debias = importlib.import_module("debias_ssl.debias")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debias, "_page", lambda *_: "a page")
        debias.main(["--predictions", str(predictions), "--out", str(out)])
    return out


def labels_in(path: Path) -> dict[str, str]:
    """The labels of a table, by the paths."""
    with path.open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def differing(path: Path, other: Path) -> dict[str, str]:
    """The labels of a table that are others than those of another table of the same rows."""
    before, after = labels_in(other), labels_in(path)
    assert [*before] == [*after]
    return {name: label for name, label in after.items() if label != before[name]}
