"""Runs work on several parts in parallel, and returns the results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
# More would hold more parts in memory, and the operations on each have threads of their own.
THREADS = 2


def ahead(function: Callable[[Part], Result], parts: Iterable[Part]) -> Iterator[Result]:
    """function(part) of each part, in order, computed while the caller uses the results before it.

    Torch and NumPy release the interpreter's lock, so that what has one thread in either shares the cores too.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        pending: deque[Future[Result]] = deque()
        for part in parts:
            pending.append(threads.submit(function, part))
            if len(pending) == THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
