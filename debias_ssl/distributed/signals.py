"""Turns the signals that ask a job to stop into a flag. The job reads the flag where it can stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from debias_ssl.distributed.collectives import num_processes
from debias_ssl.system.errors import Terminated

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Signals that end Python immediately, so that locks and unfinished files would remain.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Asked:
    """The signal by which this process was asked to stop; 0 before."""

    number: int = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # Launchers and schedulers may send SIGTERM twice; after a second Ctrl-C the user does not want to wait.
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Inside, SIGTERM and SIGINT end nothing but are remembered; those that are ignored stay ignored."""
    asked, before = Asked(), {}
    # Python lets the main thread alone handle signals.
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, asked)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise an error, so that a job cleans up; existing handlers are kept.

    Raises:
        Terminated: such a signal came. Later ones are ignored, as launchers and schedulers may send them twice.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.SIG_DFL for number in ENDING if signal.getsignal(number) is signal.SIG_DFL}

    def end(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise Terminated(f"{signal.Signals(number).name}: stopped", number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(_: int) -> None:
    """For processes that decode images: they end with the one that they work for, which still needs them to stop."""
    for number in {*SIGNALS, *ENDING}:
        signal.signal(number, signal.SIG_IGN)


class StopVote:
    """Lets all processes stop after the same step, if any of them was asked to stop.

    A call is a vote of one number, on its way while the next step is computed: nothing waits for it, no GPU either.
    """

    def __init__(self):
        self._group: Any = dist.new_group(backend="gloo") if num_processes() > 1 else None
        self._vote = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def __call__(self, number: int) -> int:
        """The largest number of the call before over all processes; of one process, its own number of this call."""
        if self._group is None:
            return number
        found = self.result()
        self._vote = torch.tensor([number])
        self._work = dist.all_reduce(self._vote, dist.ReduceOp.MAX, self._group, async_op=True)
        return found

    def result(self) -> int:
        """The largest number of the last call; processes that leave must not leave it on its way."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return int(self._vote)
