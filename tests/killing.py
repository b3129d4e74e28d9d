"""A process that is killed at a moment of its own work with files."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# How files and folders are removed, renamed and made.
STEPS = [(os, name) for name in ("replace", "unlink", "rmdir", "rename", "fsync")] + [(shutil, "rmtree")]
STEPS += [(Path, name) for name in ("unlink", "rmdir", "rename", "mkdir")]


class Killed(BaseException):
    """Nobody catches it: the process is gone."""


def killed_after(number: int, work: Callable[[], Any]) -> bool:
    """Lets so many steps with files succeed, and then no further one; returns whether the work came to so many."""
    left = number

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*arguments, **settings)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, dying(getattr(owner, name)))
        try:
            work()
        except Killed:
            return True
    return False
