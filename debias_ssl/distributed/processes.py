"""Ends all processes of a launch together: when one of them fails, the others stop waiting for it."""

import itertools
import os
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

# A process may do one job after another.
JOBS = itertools.count()
GONE = "another process has ended: start all of them again (a run: with --resume)"
# Seconds that hosts may take to start one after the other.
START_SECONDS = 600.0
# Seconds after which a process that opens the store looks whether it is still there.
OPEN_SECONDS = 5.0
# Seconds that a store which is there may take to answer.
ANSWER_SECONDS = 60.0
# Seconds between two looks at whether others have failed.
POLL_SECONDS = 0.2
# Seconds that the others have to hear that it is over.
LEAVE_SECONDS = 10.0
# Seconds that the others have to end when all is well: what they then still do is lost with the store.
DONE_SECONDS = 60.0


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
    """The other processes of this launch, reached through their common store.

    A thread of each process looks for word that another cannot go on, and then ends this one, whatever it waits for:
    the message of a process that is gone never comes, and on GPUs nothing says so. The store itself is kept by a
    process, which waits until all have left: where the store is lost, that process was killed.
    """

    def __init__(self):
        prefix = f"debias_ssl/{next(JOBS)}"
        self._failed, self._left = f"{prefix}/failed", f"{prefix}/left"
        self._is_over = threading.Event()
        self._ending = threading.Lock()
        self._store: TCPStore | None = None
        self._line: socket.socket | None = None
        self._watching = threading.Thread(target=self._watch, daemon=True)
        if has_store():
            self._watching.start()

    def _watch(self) -> None:
        failed = False
        try:
            store = self._join()
            while not (failed or self._is_over.is_set() or self._is_cut(POLL_SECONDS)):
                failed = store.check([self._failed])
        except (OSError, RuntimeError):
            # If no process ever opens a store, torch raises an error.
            if not self._has_met():
                return
        # Of the two threads that may end this process, one does.
        with self._ending:
            # This process may have left in the meantime, and the others after it.
            if failed and not self._is_over.is_set():
                with suppress(RuntimeError):
                    self._end(self._join())
            if not self._is_over.is_set():
                _end_alone()

    def _join(self) -> TCPStore:
        """The store, once the process that keeps it has started.

        Raises:
            OSError: that process has not started in time, or is gone.
            RuntimeError: the store does not answer.
        """
        if not _keeps_store() and self._line is None:
            self._line = self._connect()
        while self._store is None:
            try:
                self._store = _open_store()
            except RuntimeError:
                if self._line is None or self._is_cut(0):
                    raise
        return self._store

    def _connect(self) -> socket.socket:
        """A connection to the store, tried again every moment.

        Torch waits longer after each attempt, up to a minute. A process that has started early would not hear in that
        minute that the store is there, nor that it is lost.
        """
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                return socket.create_connection(_address())
            except OSError:
                # Processes that have met had a store.
                if distributed.is_initialized() or self._is_over.wait(POLL_SECONDS) or time.monotonic() > until:
                    raise

    def _has_met(self) -> bool:
        """Whether the process that keeps the store has started."""
        return self._line is not None or distributed.is_initialized()

    def _is_cut(self, seconds: float) -> bool:
        """Whether the store is lost, or is within so many seconds.

        A connection to the store that nothing is ever sent on ends with it. Whoever asks torch instead gets its trace.
        """
        if self._line is None:
            self._is_over.wait(seconds)
            return False
        return bool(select.select([self._line], [], [], seconds)[0])

    def fail(self, status: int, message: str | None) -> None:
        """Says that this process cannot go on; of several that cannot, the first one's message and status hold."""
        if not has_store():
            _tell(message)
            return
        with self._ending:
            try:
                # The connections of a process that is killed end one after the other.
                if self._line is not None and self._is_cut(POLL_SECONDS):
                    _end_alone()
                store = self._join()
                if store.add(f"{self._failed}/number", 1) > 1:
                    self._end(store)
                self._is_over.set()
                _tell(message)
                store.set(self._failed, str(status))
                self._leave_store(store, LEAVE_SECONDS)
            except (OSError, RuntimeError):
                if self._has_met():
                    _end_alone()
                _tell(message)

    def leave(self) -> None:
        """Says that this process has ended as it should."""
        if not has_store():
            return
        with self._ending:
            self._is_over.set()
            if self._line is None or not self._is_cut(0):
                with suppress(OSError, RuntimeError):
                    self._leave_store(self._join(), DONE_SECONDS)

    def stop(self) -> None:
        """Ends the thread: Python cannot end a thread that waits for the store, and would abort."""
        self._is_over.set()
        if self._watching.is_alive():
            self._watching.join(LEAVE_SECONDS)

    def _end(self, store: TCPStore) -> NoReturn:
        """Ends this process because another has said that it cannot go on."""
        status = int(store.get(self._failed))
        self._leave_store(store, LEAVE_SECONDS)
        _exit(status)

    def _leave_store(self, store: TCPStore, seconds: float) -> None:
        """Takes leave; the first process, which may keep the store, waits for the others, so many seconds at most."""
        store.set(f"{self._left}/{os.environ.get('RANK', '0')}", "")
        everyone = [f"{self._left}/{rank}" for rank in range(num_launched())]
        until = time.monotonic() + seconds
        while is_first() and not store.check(everyone) and time.monotonic() < until:
            time.sleep(0.02)


def _end_alone() -> NoReturn:
    """Ends this process because the one that keeps the store is gone."""
    _tell(f"error: {GONE}")
    _exit(1)


def _exit(status: int) -> NoReturn:
    """Ends this process at once, whatever its other threads wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _keeps_store() -> bool:
    # torchrun's agent keeps a store; else the first process keeps one, which its process group then shares.
    return is_first() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _address() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def _open_store() -> TCPStore:
    opening, answering = timedelta(seconds=OPEN_SECONDS), timedelta(seconds=ANSWER_SECONDS)
    store = TCPStore(*_address(), is_master=_keeps_store(), wait_for_workers=False, multi_tenant=True, timeout=opening)
    store.set_timeout(answering)
    return store


def _tell(message: str | None) -> None:
    if message is not None:
        # The progress bar of the first process may be in the middle of a line.
        print(message if is_first() else f"\n{message}", file=sys.stderr, flush=True)
