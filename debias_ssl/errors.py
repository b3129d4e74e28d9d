"""The exceptions that are shown to users as a message instead of a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong: a flag, a file, an image.

    The message says what is wrong, where, and the mend, in one or two lines; entry points print it and exit with 2.
    """


class StoppedError(RuntimeError):
    """A run cannot go on; entry points print the message, which says from where it can, and exit with 1."""


def reason(error: Exception) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
