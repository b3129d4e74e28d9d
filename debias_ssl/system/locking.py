"""Locks: one job at a time in a folder or at a file, or several jobs that share a folder, each with its own lock."""

import glob
import os
import platform
import secrets
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from debias_ssl.system.errors import InputError, InUseError, StoppedError
from debias_ssl.system.files import LOCK, UNFINISHED, check_writable, remove_unfinished, undisturbed

# Seconds to wait for a lock of a dead process. Its decoding processes hold the lock until they end, within 5 seconds.
PATIENCE = 8.0
# Suffixes of locks in a folder that processes share: the lock of each process, and the lock that they hold in turn.
MEMBER, TURN = f".member{LOCK}", f".turn{LOCK}"
# Seconds after which a process prints that it waits for its turn.
TOLD_AFTER = 5.0


@contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Keeps other jobs out of a folder. The folder is made if it is missing, and removed again if it stays empty.

    The system releases a lock when the process that holds it ends, in any way.

    Args:
        folder: the folder.
        patience: seconds to wait for a lock whose owner does not exist any more.

    Raises:
        InputError: another process holds the folder, or it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file")
    with _held(folder / LOCK, folder, "--out", patience):
        if others := at_work(folder):
            raise _in_use(folder, others[0], "--out")
        remove_unfinished(folder)
        try:
            check_writable(folder, "--out")
            yield
        finally:
            # Files that remained after a signal; the folder may have been removed.
            with undisturbed(), suppress(OSError):
                remove_unfinished(folder)


@dataclass(frozen=True, kw_only=True)
class Member:
    """This process among those that share a folder."""

    folder: Path
    flag: str
    lock: Path
    """The lock that it holds while it works in the folder."""
    held: ExitStack
    """Releases that lock."""
    first_turn: ExitStack
    """Ends the first turn."""

    def others(self) -> list[str]:
        """The other processes that work in the folder."""
        return at_work(self.folder, but=self.lock)

    def check(self) -> None:
        """Raises StoppedError if another process has removed this one's lock, as if this process were dead."""
        if not self.lock.exists():
            raise StoppedError(
                f"another process did not see the lock of this process in {str(self.folder)!r}: the file system "
                "does not share locks between machines (see docs/scale.md). Work there on one machine at a time"
            )

    def end_first_turn(self) -> None:
        """Lets other processes continue, and new ones join."""
        self.first_turn.close()

    def leave(self) -> None:
        """Ends the work in the folder."""
        self.held.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Makes the other processes wait during the block, which reads and writes shared files."""
        with _held(self.folder / TURN, self.folder, self.flag, None):
            yield


@contextmanager
def joined(folder: Path, flag: str = "--out", work: str = "") -> Iterator[Member]:
    """Joins the processes that share a folder. Jobs that need the folder for themselves are kept out.

    Processes join one after another: at the start of the block, this process has its first turn, which it must end. The
    folder is made if it is missing, and removed again if it stays empty.

    Args:
        folder: the folder.
        flag: the flag that names it.
        work: the common work of the processes, as one line.

    Raises:
        InUseError: one process has locked the whole folder, or processes do other work there.
        InputError: it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag} {str(folder)!r} is a file")
    made = _missing(folder)
    own = folder / f".{secrets.token_hex(8)}{MEMBER}"
    try:
        with ExitStack() as held, ExitStack() as first_turn:
            first_turn.enter_context(_held(folder / TURN, folder, flag, None))
            first_turn.enter_context(_held(folder / LOCK, folder, flag, PATIENCE))
            others = [path for path in _member_locks(folder) if holder(path) is not None]
            if not others:
                remove_unfinished(folder)
                _remove_dead_locks(folder)
            for path in others:
                if _lines(path)[1:] != ([work] if work else []):
                    raise _in_use(folder, f"{_owner(path)}, which works on something else", flag)
            check_writable(folder, flag)
            held.enter_context(_held(own, folder, flag, PATIENCE, work))
            yield Member(folder=folder, flag=flag, lock=own, held=held, first_turn=first_turn)
    finally:
        at_work(folder)  # removes the locks of those that were killed
        _remove_empty(made)


def at_work(folder: Path, but: Path | None = None) -> list[str]:
    """The processes that share a folder; locks of processes that have ended are removed.

    Args:
        folder: the folder.
        but: the lock of a process to leave out.
    """
    owners = [holder(path) for path in _member_locks(folder) if path != but]
    return [owner for owner in owners if owner is not None]


def holder(path: Path) -> str | None:
    """The process that holds a lock; None if no process does. The lock of a process that has ended is removed."""
    if not path.exists():
        return None
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
    except Timeout:
        return (_owner(path) or "another process") if _is_owner_alive(path) else None
    except OSError:
        # On Windows, an open file cannot be removed; or the folder was removed.
        return None
    return None


def _remove_dead_locks(folder: Path) -> None:
    """Removes the locks of files in a folder, for example of shards, that killed processes have left."""
    for path in folder.glob(f".*{LOCK}"):
        if path.name != TURN:
            holder(path)


def _member_locks(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".*{MEMBER}"))


def lock_if_free(path: Path, flag: str) -> ExitStack | None:
    """Acquires a lock and returns a stack that releases it; None if another process holds the lock.

    Args:
        path: the path of the lock.
        flag: the flag that names its folder.
    """
    held = ExitStack()
    try:
        held.enter_context(_held(path, path.parent, flag, 0))
    except InUseError:
        return None
    return held


@contextmanager
def locked_file(path: Path, flag: str) -> Iterator[None]:
    """Keeps other jobs from writing a file, by a lock beside it. Unfinished parts of a killed job are removed.

    Args:
        path: the file.
        flag: the flag that names it.

    Raises:
        InputError: another process writes the file, or its folder cannot be written to.
    """
    with _held(path.with_name(f".{path.name}{LOCK}"), path, flag, PATIENCE):
        _remove_begun(path)
        try:
            yield
        finally:
            # Files that were not removed because of a signal.
            with undisturbed():
                _remove_begun(path)


def _remove_begun(path: Path) -> None:
    for begun in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        with suppress(OSError):
            begun.unlink(missing_ok=True)


@contextmanager
def _held(path: Path, what: Path, flag: str, patience: float | None, work: str = "") -> Iterator[None]:
    """Holds a lock file. Its folder is made if it is missing, and removed again if it stays empty.

    Args:
        path: the path of the lock.
        what: the locked file or folder.
        flag: the flag that names it.
        patience: seconds to wait for a lock whose owner does not exist any more; None waits for every owner.
        work: the work of this process, for other processes to read.
    """
    made = _missing(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        if patience is None:
            _wait_for(lock, path)
        else:
            lock.acquire(timeout=0 if _is_owner_alive(path) else patience)
    except Timeout as error:
        raise _in_use(what, _owner(path) or "another process", flag) from error
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"cannot write to {flag} {str(what)!r}: {error.strerror}") from error
    try:
        # For users to read; on Windows, other processes cannot read it.
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}" + (f"\n{work}" if work else ""))
        yield
    finally:
        with undisturbed():
            try:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            finally:
                lock.release()
                _remove_empty(made)


def _wait_for(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=TOLD_AFTER)
    except Timeout:
        print(f"waiting for {_owner(path) or 'another process'}, which writes in {path.parent}", file=sys.stderr)
        lock.acquire()


def _in_use(what: Path, owner: str, flag: str) -> InUseError:
    return InUseError(f"{str(what)!r} is in use by {owner}: wait for it, stop it, or choose another {flag}")


def _missing(folder: Path) -> list[Path]:
    """The missing folders among this one and those above it."""
    return [each for each in (folder, *folder.parents) if not each.exists()]


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _owner(path: Path) -> str:
    return "".join(_lines(path)[:1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []


def _is_owner_alive(path: Path) -> bool:
    """Whether the process that a lock names may still be running; this is assumed for other hosts."""
    words = _owner(path).split(" ", 3)
    if len(words) != 4 or not words[1].isdigit() or words[3] != platform.node():
        return True
    return _exists(int(words[1]))


def _exists(pid: int) -> bool:
    if os.name == "nt":
        # On Windows, os.kill would end the process.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
