"""Runs in one process that have the same images load them once."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from debias_ssl.contract import Place
from debias_ssl.data import last_task as module
from debias_ssl.data.config import DataConfig
from debias_ssl.data.last_task import LastTask
from debias_ssl.data.task import make_task


@pytest.fixture
def config(tree: Path, tmp_path: Path) -> DataConfig:
    parts: dict[str, Any] = {part: str(tree / part) for part in ("labeled", "unlabeled", "test")}
    return DataConfig(name="folder", image_size=8, cache=str(tmp_path / "cache"), **parts)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[DataConfig]:
    """The settings whose images were loaded."""
    settings: list[DataConfig] = []

    def counted(config: DataConfig, **others: Any):
        settings.append(config)
        return make_task(config, **others)

    monkeypatch.setattr(module, "make_task", counted)
    return settings


def made(last: LastTask, config: DataConfig, seed: int = 0):
    return last.make(config, seed=seed, place=Place(), progress=False)


def test_splits_and_views_may_differ(config: DataConfig, loaded: list[DataConfig]):
    last = LastTask()
    first = made(last, config)
    others = [
        (replace(config, labels_per_class=1), 0),
        (replace(config, labels_per_class=2), 7),
        (replace(config, augment=replace(config.augment, cutout=0.0)), 1),
    ]
    for other, seed in others:
        task, alone = made(last, other, seed), make_task(other, seed=seed, place=Place(), progress=False)
        assert task.readers is first.readers and task.data is first.data and task.config == other
        for name in ("labeled", "unlabeled", "validation"):
            assert (getattr(task.split, name) == getattr(alone.split, name)).all()
        assert (task.fingerprint, task.inputs, task.notes) == (alone.fingerprint, alone.inputs, alone.notes)
    assert loaded == [config]


@pytest.mark.parametrize("change", [{"image_size": 4}, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}])
def test_other_images_are_loaded_and_the_last_ones_kept_no_longer(config, loaded, change: dict[str, Any]):
    last = LastTask()
    first = weakref.ref(made(last, config).readers["train"])
    assert (
        made(last, replace(config, **change)).data.mean
        == make_task(replace(config, **change), seed=0, place=Place(), progress=False).data.mean
    )
    assert first() is None and len(loaded) == 2


def test_images_leave_before_others_are_loaded(config: DataConfig, monkeypatch):
    last = LastTask()
    first, there = weakref.ref(made(last, config).readers["train"]), []
    monkeypatch.setattr(module, "make_task", lambda *one, **other: there.append(first()) or make_task(*one, **other))
    made(last, replace(config, image_size=4))
    assert there == [None]


def test_a_split_that_does_not_fit_leaves_the_images(config: DataConfig, loaded: list[DataConfig]):
    last = LastTask()
    made(last, config)
    with pytest.raises(ValueError, match="labels_per_class"):
        made(last, replace(config, labels_per_class=1000))
    made(last, config)
    assert len(loaded) == 1
