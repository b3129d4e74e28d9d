"""A small CLIP, images, and what is encoded."""

from pathlib import Path

import pytest
from embedded_images import CPU
from small_clip import paint_images, save_clip

from debias_ssl.features import embedding as features
from debias_ssl.models.clip import Clip, load_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Clip:
    return load_clip(save_clip(tmp_path_factory.mktemp("clip")), None, CPU)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_SIZE", 4)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return paint_images(tmp_path / "images")
