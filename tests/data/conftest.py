from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from debias_ssl.data.config import DataConfig

Paint = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(cache: Path) -> Path:
    """Every test here has a cache of its own, whether or not it asks for it."""
    return cache


@pytest.fixture
def paint() -> Paint:
    """Writes images of noise, each with a number of its own."""

    def paint(path: Path, number: int, size: tuple[int, int] = (12, 12)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        return path

    return paint


@pytest.fixture
def tree(tmp_path: Path, paint: Paint) -> Path:
    """Four cats and five dogs to train on, six images of unknown class at several depths, and four to test on."""
    root = tmp_path / "images"
    for i in range(4):
        paint(root / "labeled" / "cat" / f"{i}.png", i)
    for i in range(5):
        paint(root / "labeled" / "dog" / f"{i}.png", 100 + i)
    for i, place in enumerate(["", "", "a", "a", "a/b", "c"]):
        paint(root / "unlabeled" / place / f"{i}.png", 200 + i)
    for i in range(4):
        paint(root / "test" / ("cat" if i < 2 else "dog") / f"{i}.png", 300 + i)
    return root


@pytest.fixture
def config(tree: Path) -> DataConfig:
    return DataConfig(
        name="folder",
        labeled=str(tree / "labeled"),
        unlabeled=str(tree / "unlabeled"),
        test=str(tree / "test"),
        workers=0,
    )
