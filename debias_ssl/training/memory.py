"""Turns out-of-memory errors into a line that names the setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from debias_ssl.system.errors import StoppedError


@contextmanager
def memory_told(when: str, fix: str) -> Iterator[None]:
    """Turns an out-of-memory error of its block into a message for users.

    Args:
        when: what ran out of memory, such as "in step 3".
        fix: how to use less memory.

    Raises:
        StoppedError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # For CPU memory, torch raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise StoppedError(f"out of memory {when}: {fix}") from error
