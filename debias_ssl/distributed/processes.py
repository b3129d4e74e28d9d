"""Processes that were launched together end together: when one cannot go on, none waits for it for ever."""

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

FAILED, LEFT = "debias_ssl/failed", "debias_ssl/left"
# How long hosts may take to start one after the other.
START_TIMEOUT = timedelta(minutes=10)
# Seconds between two looks at whether others have failed.
POLL_SECONDS = 0.2
# Seconds that the others have to hear that it is over.
LEAVE_SECONDS = 10.0


def num_launched() -> int:
    """How many processes were launched together; they need not have met yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_store() -> bool:
    """Whether there are others, and it is known where they meet."""
    return num_launched() > 1 and "MASTER_ADDR" in os.environ


def is_first() -> bool:
    """Whether this is the process that speaks for all; known before they have met."""
    return os.environ.get("RANK", "0") == "0"


def says_that_another_is_gone(error: Exception) -> bool:
    """Whether an error is what torch makes of a message from a process that was killed."""
    lost = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "remote process exited")
    return num_launched() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in lost)


class Companions:
    """Those that this process was launched with, through the store by which they meet.

    A thread of each process looks for word that another cannot go on, and then ends this one, whatever it waits for:
    the message of a process that is gone never comes, and on GPUs nothing says so.
    """

    def __init__(self):
        self._is_over = threading.Event()
        self._ending = threading.Lock()
        if has_store():
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        # The store ends with the process that keeps it, which then has told why.
        with suppress(RuntimeError):
            store = _open_store()
            while not self._is_over.wait(POLL_SECONDS):
                if store.check([FAILED]):
                    self._end(store)

    def fail(self, status: int, message: str | None) -> None:
        """Says that this process cannot go on; of several that cannot, the first one's message and status hold."""
        if not has_store():
            _tell(message)
            return
        try:
            store = _open_store()
            if store.add(f"{FAILED}/number", 1) > 1:
                self._end(store)
            self._is_over.set()
            _tell(message)
            store.set(FAILED, str(status))
            _leave_store(store)
        except RuntimeError:
            if is_first():
                _tell(message)

    def leave(self) -> None:
        """Says that this process has ended as it should."""
        if has_store():
            self._is_over.set()
            with suppress(RuntimeError):
                _leave_store(_open_store())

    def _end(self, store: TCPStore) -> NoReturn:
        # Of the two threads that may come here, one does.
        self._ending.acquire()
        status = int(store.get(FAILED))
        _leave_store(store)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave_store(store: TCPStore) -> None:
    """Takes leave of the store; the first process, which may host it, waits for the others."""
    num = store.add(LEFT, 1)
    until = time.monotonic() + LEAVE_SECONDS
    while is_first() and num < num_launched() and time.monotonic() < until:
        time.sleep(0.02)
        num = store.add(LEFT, 0)


def _open_store() -> TCPStore:
    # torchrun's agent keeps a store; else the first process keeps one, which its process group then shares.
    keeps = is_first() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=keeps, wait_for_workers=False, multi_tenant=True, timeout=START_TIMEOUT)


def _tell(message: str | None) -> None:
    if message is not None:
        # The progress bar of the first process may be in the middle of a line.
        print(message if is_first() else f"\n{message}", file=sys.stderr, flush=True)
