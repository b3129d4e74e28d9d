"""The exceptions that are shown to users as a message instead of a traceback."""

from typing import Any


class InputError(ValueError):
    """Something the user gave is wrong: a flag, a file, an image.

    The message says what is wrong, where, and how to fix it, in one or two lines; entry points print it and
    exit with 2.
    """


class StoppedError(RuntimeError):
    """A run cannot go on; entry points print the message, which says from where it can, and exit with 1."""


class Interrupted(KeyboardInterrupt):
    """A job stopped where it can go on, as a signal asked it to; entry points exit with 128 and the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


def check_settings(settings: Any, prefix: str, /, **rules: tuple[bool, str]) -> None:
    """Holds settings to their rules: by name, whether the value is right, and what it must be, in words.

    Raises:
        InputError: a value is not right, as in "optim.lr is -1, must be above 0".
    """
    for name, (is_right, rule) in rules.items():
        if not is_right:
            raise InputError(f"{prefix}{name} is {getattr(settings, name)}, must be {rule}")


def reason(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
