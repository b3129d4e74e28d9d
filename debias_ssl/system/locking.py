"""One job at a time in a folder, or at a file."""

import glob
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from debias_ssl.system.errors import InputError
from debias_ssl.system.files import LOCK, UNFINISHED, check_writable, remove_unfinished

# Processes that decode images notice within five seconds that the one they worked for is dead; until then they hold on.
PATIENCE = 8.0


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps other jobs out of a folder, which is made if it is not there, and removed again if nothing is put into it.

    The system gives a lock back when the process that holds it ends, however it ends.

    Args:
        folder: the folder.
        patience: seconds to wait for a lock whose owner is not there any more.

    Raises:
        InputError: another process holds the folder, or it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file")
    with _held(folder / LOCK, folder, "--out", patience):
        remove_unfinished(folder)
        try:
            check_writable(folder, "--out")
            yield
        finally:
            # What a signal has kept from being removed; somebody may have taken the folder away.
            with undisturbed(), suppress(OSError):
                remove_unfinished(folder)


@contextmanager
def locked_file(path: Path, flag: str) -> Iterator[None]:
    """Keeps other jobs from writing a file, by a lock beside it; what a job that was killed had begun of it is removed.

    Args:
        path: the file.
        flag: what names it.

    Raises:
        InputError: another process writes it, or nothing can be written beside it.
    """
    with _held(path.with_name(f".{path.name}{LOCK}"), path, flag, PATIENCE):
        _remove_begun(path)
        try:
            yield
        finally:
            # What a signal has kept from being removed.
            with undisturbed():
                _remove_begun(path)


def _remove_begun(path: Path) -> None:
    for begun in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        with suppress(OSError):
            begun.unlink(missing_ok=True)


@contextmanager
def _held(path: Path, what: Path, flag: str, patience: float) -> Iterator[None]:
    """Holds the lock in a file, whose folder is made if it is not there, and removed again if nothing is put into it.

    Args:
        path: of the lock.
        what: what is locked.
        flag: what names that.
        patience: seconds to wait for a lock whose owner is not there any more.
    """
    made = [each for each in path.parents if not each.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0 if _is_owner_alive(path) else patience)
    except Timeout as error:
        raise InputError(
            f"{str(what)!r} is in use by {_owner(path) or 'another process'}: "
            f"wait for it, stop it, or choose another {flag}"
        ) from error
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"cannot write to {flag} {str(what)!r}: {error.strerror}") from error
    try:
        # For people; on Windows nobody else can read it.
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        with undisturbed():
            with suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()
            _remove_empty(made)


def remove_stale_lock(folder: Path) -> None:
    """Removes the lock of a job that was killed after all its work, from a folder in which nothing is left to do."""
    path = folder / LOCK
    if path.exists():
        with suppress(OSError, Timeout), FileLock(path, timeout=0):
            path.unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps signals that end a job waiting while it cleans up, where the system has a mask for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _owner(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def _is_owner_alive(path: Path) -> bool:
    """Whether the process that a lock names may still run; one of another host may."""
    words = _owner(path).split(" ", 3)
    if len(words) != 4 or not words[1].isdigit() or words[3] != platform.node():
        return True
    return _exists(int(words[1]))


def _exists(pid: int) -> bool:
    if os.name == "nt":
        # os.kill would end it there.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
