"""A process that is disturbed at a moment of its own work with files, and what jobs leave behind."""

import errno
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from debias_ssl.system.files import LOCK, UNFINISHED

# How files and folders are removed, renamed and made.
STEPS = [(os, name) for name in ("replace", "unlink", "rmdir", "rename", "fsync")] + [(shutil, "rmtree")]
STEPS += [(Path, name) for name in ("unlink", "rmdir", "rename", "mkdir")]
# Those of them that a full disk lets fail.
GROWING = ("fsync", "mkdir", "replace", "rename")
# Times, and what was computed of times.
CLOCKS = {"seconds", "images_per_second", "data_wait"}


class Killed(BaseException):
    """Nobody catches it: the process is gone."""


def disturbed(work: Callable[[], Any], disturb: Callable[[int, str], None]) -> None:
    """Does some work, and calls `disturb` with the number and the name of each step with files before it is done."""
    number = -1

    def before(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def step(*arguments: Any, **settings: Any) -> Any:
            nonlocal number
            number += 1
            disturb(number, name)
            return function(*arguments, **settings)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, before(getattr(owner, name), name))
        work()


def num_steps(work: Callable[[], Any]) -> tuple[int, int]:
    """How many steps with files some work has, and how many of them take room."""
    names: list[str] = []
    disturbed(work, lambda _, name: names.append(name))
    return len(names), sum(name in GROWING for name in names)


def killed_after(number: int, work: Callable[[], Any]) -> bool:
    """Lets so many steps with files succeed, and then no further one; returns whether the work came to so many."""

    def kill(step: int, _: str) -> None:
        if step >= number:
            raise Killed

    was_killed = False
    try:
        disturbed(work, kill)
    except Killed:
        was_killed = True
    # The system gives back the locks of a process that is gone; here they go with what holds them.
    gc.collect()
    return was_killed


def on_a_full_disk_after(number: int, work: Callable[[], Any]) -> None:
    """Lets so many of the steps that take room succeed, and then none."""
    done = 0

    def fill(_: int, name: str) -> None:
        nonlocal done
        done += name in GROWING
        if name in GROWING and done > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disturbed(work, fill)


def terminated_at(number: int, work: Callable[[], Any]) -> None:
    """Sends SIGTERM to this process before a step with files."""

    def terminate(step: int, _: str) -> None:
        if step == number:
            signal.raise_signal(signal.SIGTERM)

    disturbed(work, terminate)


def strays(folder: Path) -> list[str]:
    """Locks, files that were begun, and parts: what no job that has ended leaves."""
    found = [path for path in folder.rglob("*") if path.name.endswith((LOCK, UNFINISHED, ".parts"))]
    return sorted(str(path.relative_to(folder)) for path in found)


def without_clocks(value):
    if isinstance(value, dict):
        return {key: without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """What a job leaves behind, of one file too: bytes, but for the times in files that have any, and for pages."""
    found: dict[str, object] = {}
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.endswith(".lock"):
            continue
        if path.name.endswith(".html"):
            found[name] = "a page"
        elif path.name == "metrics.jsonl":
            found[name] = [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("summary.json", "compare.json"):
            found[name] = without_clocks(json.loads(path.read_text()))
        elif path.name == "compare.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            kept = [i for i, column in enumerate(rows[0]) if column not in CLOCKS]
            found[name] = [[row[i] for i in kept] for row in rows]
        else:
            found[name] = path.read_bytes()
    return found
