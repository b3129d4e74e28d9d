"""Renamed settings: a file or flag with an old name gets a message with the new name."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from debias_ssl.system.errors import InputError

RENAMED = {
    "given_by": "teacher",
    "optim.momentum": "optim.args.momentum",
    "optim.nesterov": "optim.args.nesterov",
}
# The setting `teacher` once named the model that makes the pseudo-labels; now it is a run folder.
OLD_TEACHERS = {"student": "raw", "ema": "ema"}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as a flat dictionary, with the names of flags such as `data.labels_per_class`."""
    result = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def check_names(settings: Iterable[tuple[str, Any]], where: str) -> None:
    """Raises InputError for a setting with an old name; `where` is a file, or `--` for flags."""
    before = where if where == "--" else f"{where}: "
    for name, value in settings:
        if name in RENAMED:
            raise InputError(f"{before}{name} is now called {RENAMED[name]}")
        if name == "teacher" and value in OLD_TEACHERS:
            raise InputError(
                f"{before}teacher {value} is now called target_model {OLD_TEACHERS[value]}; teacher is a run folder"
            )


def check_flags(arguments: Iterable[str]) -> None:
    """The same for the flags of a command line."""
    flags = []
    for argument, following in pairwise([*arguments, ""]):
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            flags.append((name, value if equals else following))
    check_names(flags, "--")
