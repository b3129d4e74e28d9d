"""Imports objects that a setting names by their Python path, as package.module.function."""

import difflib
import importlib
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, reason

PACKAGE = Path(__file__).parents[1]


def imported(name: str, setting: str) -> Any:
    """The user's function or class at `package.module.name`.

    Args:
        name: the Python path.
        setting: the setting with this value, for messages.

    Raises:
        InputError: the module or the name in it cannot be found.
    """
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{setting} {name!r} is not of the form package.module.function")
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{setting} {name!r} cannot be imported: {reason(error)}; PYTHONPATH=. makes Python search the "
            "current folder"
        ) from error
    if not hasattr(module, attribute):
        shown = [known for known in vars(module) if not known.startswith("_")]
        missing = f"module {module_name!r} has no {attribute!r}{near(attribute, shown)}"
        raise InputError(f"{setting} {name!r} cannot be imported: {missing}")
    return getattr(module, attribute)


def near(name: str, known: Sequence[str]) -> str:
    """The known names that are similar to a wrong one, as the end of a message; empty if there are none."""
    by_lower = {each.lower(): each for each in known}
    found = [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower)]
    return f"; near it: {', '.join(found)}" if found else ""


def near_beside(path: Path) -> str:
    """The same for a file or folder that is not there: what lies beside its place, or beside that of a folder above it.

    A folder that cannot be read has nothing near.
    """
    missing = next((each for each in [*reversed(path.parents), path] if not each.exists()), path)
    try:
        return near(missing.name, [each.name for each in missing.parent.iterdir()])
    except OSError:
        return ""


def told(error: Exception) -> str:
    """A text about the exception of a user's function, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not Path(frame.filename).is_relative_to(PACKAGE)]
    place = "".join(f" ({frame.filename}, line {frame.lineno})" for frame in outside[:1])
    return f"{type(error).__name__}: {reason(error)}{place}"
