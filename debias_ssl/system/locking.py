"""One job at a time in a folder."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from debias_ssl.system.errors import InputError
from debias_ssl.system.files import LOCK, check_writable, remove_unfinished

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
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(timeout=0 if _is_owner_alive(path) else patience)
    except Timeout as error:
        raise InputError(
            f"{str(folder)!r} is in use by {_owner(path) or 'another process'}: "
            "wait for it, stop it, or choose another --out"
        ) from error
    except OSError as error:
        _remove_empty(made)
        raise InputError(f"cannot write to {str(folder)!r}: {error.strerror}") from error
    try:
        # For people; on Windows nobody else can read it.
        with suppress(OSError):
            path.write_text(f"process {os.getpid()} on {platform.node()}")
        remove_unfinished(folder)
        check_writable(folder, "--out")
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()
        _remove_empty(made)


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
