"""Keeps the images of the last run, so that the next run in the same process can use them again."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.task import Task, make_split, make_task

OF_IMAGES = [field.name for stage in (SourceConfig, ReadingConfig) for field in fields(stage)]


class LastTask:
    """Makes tasks, and keeps the last one. A task that differs only in split or views uses the same images again."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def make(
        self, config: DataConfig, *, seed: int, place: Place, split_file: Path | None = None, progress: bool = True
    ) -> Task:
        """`make_task`, without loading the images of the last task again."""
        last = self._task
        if last is not None and last.place == place and _images_of(last.config) == _images_of(config):
            split = make_split(last.data, last.fingerprint, config, seed=seed, split_file=split_file)
            self._task = replace(last, config=config, split=split)
        else:
            # The old images are released before the new ones are loaded: both may not fit into memory.
            last = self._task = None
            self._task = make_task(config, seed=seed, place=place, split_file=split_file, progress=progress)
        return self._task


def _images_of(config: DataConfig) -> dict[str, Any]:
    """The settings by which images are found and read."""
    return {name: getattr(config, name) for name in OF_IMAGES}
