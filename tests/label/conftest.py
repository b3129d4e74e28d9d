"""A small CLIP, images, and the arguments of `debias-ssl label`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_clip import paint_images, save_clip

from debias_ssl import label
from debias_ssl.features import embedding as features


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_SIZE", 4)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds of drawing where a test is about something else."""
    monkeypatch.setattr(label, "_page", lambda *_: "")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return paint_images(tmp_path / "images")


@pytest.fixture
def arguments(tmp_path: Path, model: str, images: list[Path]) -> Callable[..., list[str]]:
    """A command line; further settings by name."""

    def arguments(**settings: Any) -> list[str]:
        classes = tmp_path / "classes.txt"
        if not classes.exists():
            classes.write_text("ant\nbee\tbumble bee\n")
        given = {"images": tmp_path / "images", "classes": classes, "model": model, "out": tmp_path / "out"}
        given |= {"workers": 0, "precision": "fp32"} | settings
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    return arguments
