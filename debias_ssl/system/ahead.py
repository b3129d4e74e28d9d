"""Runs work on several parts in parallel, and returns the results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
# More threads would need more memory, and the operations on each part have their own threads.
THREADS = 2


def ahead(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """function(part) of each part, in order, computed while the caller uses the results before it.

    Torch and NumPy release the interpreter's lock, so that operations with one thread also run in parallel.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        pending: deque[Future[Result]] = deque()
        for part in parts:
            pending.append(threads.submit(function, part))
            if len(pending) == THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
