"""`InputError` and other exceptions that users see as a message instead of a traceback."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """A mistake in the user's input: a flag, a file or an image.

    The message says what is wrong, where, and how to fix it, in one or two lines; entry points print it and
    exit with 2.
    """


class InUseError(InputError):
    """Another process works in a folder, or writes a file."""


class StoppedError(RuntimeError):
    """A run cannot continue. Commands print the message, which says how to resume, and exit with 1."""


class LeftToOthers(Exception):
    """A job ends early because other processes continue its work. Commands exit with 75 (EX_TEMPFAIL)."""


class WriteError(StoppedError):
    """A file or a folder cannot be written: a disk is full, a folder is gone, a file is larger than allowed."""


class Interrupted(KeyboardInterrupt):
    """A job stopped after a signal and can be resumed; entry points exit with 128 plus the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Terminated(Interrupted):
    """A job was stopped by a signal at an arbitrary place."""


Verdict = tuple[bool, str]
"""Whether a value is allowed, and a text of what it must be."""


def check_settings(settings: Any, prefix: str, /, **rules: Callable[[Any], Verdict] | Verdict) -> None:
    """Checks attributes by rules with the same names; a rule is a verdict, or a function from the value to a verdict.

    Raises:
        InputError: a value is not right, as in "optim.lr is -1, must be above 0".
    """
    for name, rule in rules.items():
        value = getattr(settings, name)
        is_right, right = rule(value) if callable(rule) else rule
        if not is_right:
            raise InputError(f"{prefix}{name} is {value}, must be {right}")


def shortened(names: Sequence[str]) -> str:
    """The first ten of many names."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


@contextmanager
def only_warned(what: str) -> Iterator[None]:
    """Turns errors of the block into warnings on stderr: for pages about results that are already written.

    Args:
        what: the outcome, such as "no report.html".
    """
    try:
        yield
    except (InputError, StoppedError) as error:
        print(f"warning: {what}: {reason(error)}", file=sys.stderr)
    except Exception as error:
        print(f"warning: {what}: {type(error).__name__}: {reason(error)}", file=sys.stderr)


def reason(error: Exception) -> str:
    """The first line of an error's message, or its class if it has no message."""
    return (str(error) or type(error).__name__).splitlines()[0]
