"""Writes files completely or not at all, by a temporary name that is then renamed; turns errors into messages."""

import os
import secrets
import shutil
import signal
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import yaml
from safetensors import SafetensorError

from debias_ssl.system.errors import InputError, Interrupted, StoppedError, Terminated, WriteError, reason

# Size of the checksum at the end of a file in a cache.
CHECK_BYTES = 4
READ_BYTES = 2**20
# Suffix of files and folders that are being written; no other program uses it.
UNFINISHED = ".debias_ssl.tmp"
# Suffix of the lock file of the job that works in a folder.
LOCK = ".debias_ssl.lock"
# How to fix a cache that cannot be written to. Only some jobs have data settings.
ELSEWHERE = "set XDG_CACHE_HOME to a folder elsewhere, or data.cache in a job with data settings"
# Size of the test file that shows whether a disk has space: one block.
PROBE_BYTES = 4096
# Number of threads that write a file (two wait less for the system than one), and of parts that may wait for them.
WRITERS, PENDING = 2, 4


@contextmanager
def writes(path: Path) -> Iterator[None]:
    """For a block that only writes: every error of the system in it is reported as an error about `path`.

    Raises:
        WriteError: it cannot be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise WriteError(f"cannot write to {str(path)!r}: {reason(error)}") from error
    except OSError as error:
        raise WriteError(f"cannot write to {str(path)!r}: {error.strerror or reason(error)}") from error


def unfinished(path: Path) -> Path:
    """A path beside `path` for a file that is not complete yet."""
    # A random name instead of the process number, which may be equal in containers that share a folder.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; the written file replaces `path` once it is complete.

    The block must only write. For data that are computed while they are written, use `writing_parts`.

    Raises:
        WriteError: it cannot be written.
    """
    aside = unfinished(path)
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


class Parts:
    """Writes parts of a file one after another, while the next parts are computed."""

    def __init__(self, path: Path, file: int, threads: ThreadPoolExecutor):
        self.path, self.file, self.threads = path, file, threads
        self.end = 0
        self.pending: deque[Future[None]] = deque()

    def __call__(self, part: bytes | memoryview) -> None:
        """Begins to write a part. It must not be changed any more.

        Raises:
            WriteError: an earlier part could not be written.
        """
        if len(self.pending) == PENDING:
            self.pending.popleft().result()
        whole = memoryview(part).cast("B")
        self.pending.append(self.threads.submit(self._write, whole, self.end))
        self.end += len(whole)

    def wait(self) -> None:
        """Waits until all parts are written.

        Raises:
            WriteError: one of them could not be written.
        """
        while self.pending:
            self.pending.popleft().result()

    def _write(self, part: memoryview, place: int) -> None:
        with writes(self.path):
            while len(part):
                number = os.pwrite(self.file, part, place)
                part, place = part[number:], place + number


@contextmanager
def writing_parts(path: Path) -> Iterator[Parts]:
    """Returns an object that writes the parts of a file, which replaces `path` when it is complete.

    Errors of the code that computes the parts are not changed. The file is not mapped into memory: on a full disk a
    write is an error, but a mapped page would kill the process.

    Raises:
        WriteError: a part cannot be written.
    """
    aside = unfinished(path)
    with writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = aside.open("wb")
    threads = ThreadPoolExecutor(WRITERS)
    parts = Parts(path, file.fileno(), threads)
    try:
        yield parts
        parts.wait()
        with writes(path):
            os.fsync(file.fileno())
            file.close()
            os.replace(aside, path)
    finally:
        threads.shutdown(cancel_futures=True)
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def read_array(path: Path, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """An array of a .npy file; nothing in it is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a complete .npy file. NumPy itself raises many kinds of errors for damaged headers.
    """
    try:
        if mmap_mode is not None:
            return np.lib.format.open_memmap(path, mmap_mode)
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (EOFError, SyntaxError, TokenError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(reason(error)) from error


@contextmanager
def ends_told(mend: str = "--resume goes on") -> Iterator[None]:
    """Adds how to continue to the message about a file that cannot be written, or about a signal.

    Other errors are not changed.

    Raises:
        StoppedError: a file cannot be written.
        Interrupted: a signal came.
    """
    try:
        yield
    except WriteError as error:
        raise StoppedError(f"{error}; {mend}") from error
    except Terminated as stopped:
        raise Terminated(f"{stopped}; {mend}", stopped.number) from stopped
    except Interrupted:
        # Its message already says how to continue.
        raise
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"SIGINT: stopped; {mend}", signal.SIGINT) from stopped


def cache_folder(where: str | None) -> Path:
    """The folder of a cache, which is made if it is missing; None is the user's cache folder."""
    folder = Path(where or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "debias_ssl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(folder)!r}: {error.strerror}; {ELSEWHERE}") from error
    return folder


@contextmanager
def writing_to_cache(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Returns a function that writes the parts of a file one after another; their checksum (CRC-32) ends the file.

    Raises:
        InputError: the file cannot be written.
    """
    check = 0
    try:
        with writing_parts(path) as write:

            def write_checked(part: bytes) -> None:
                nonlocal check
                check = zlib.crc32(part, check)
                write(part)

            yield write_checked
            write(check.to_bytes(CHECK_BYTES))
    except WriteError as error:
        raise InputError(f"{error}; {ELSEWHERE}") from error


def is_whole(path: Path) -> bool:
    """Whether a file of a cache exists and is unchanged."""
    check = 0
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - CHECK_BYTES
            if left <= 0:
                return False
            while left > 0:
                part = file.read(min(left, READ_BYTES))
                check, left = zlib.crc32(part, check), left - len(part)
            return left == 0 and file.read() == check.to_bytes(CHECK_BYTES)
    except OSError:
        return False


def remove_unfinished(folder: Path) -> None:
    """Removes unfinished files of killed jobs, in a locked folder and in the folders in it."""
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    # Another job may write in a folder with its own lock.
    for place in [folder, *(path for path in inner if not any(path.glob(f"*{LOCK}")))]:
        for path in place.glob(f".*{UNFINISHED}"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delays signals that end a job while it cleans up, if the system supports it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def check_writable(path: Path, flag: str) -> None:
    """Tests, before anything is computed, whether `path` can be written: writes a block there, and removes it.

    Args:
        path: a file, which need not exist, or a folder.
        flag: the flag that names it.

    Raises:
        InputError: nothing can be written there.
    """
    places = (path, *path.absolute().parents) if path.is_dir() or not path.exists() else path.absolute().parents
    nearest = next(place for place in places if os.path.lexists(place))
    if not nearest.is_dir():
        raise InputError(f"cannot write to {flag} {str(path)!r}: {str(nearest)!r} is not a folder")
    # If the process is killed meanwhile, the file is removed with other unfinished files for `path`.
    probe = unfinished(nearest / f"{path.name}.probe")
    with undisturbed():
        try:
            with probe.open("wb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write to {flag} {str(path)!r}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def check_new_file(path: Path, flag: str, overwrite: bool) -> None:
    """Checks an output file before anything is computed.

    Raises:
        InputError: `path`, the value of a flag, is a folder, is a file that must not be replaced, or cannot be written.
    """
    if path.is_dir():
        raise InputError(f"{flag} {str(path)!r} is a folder: name a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{str(path)!r} exists: pass --overwrite to replace it")
    check_writable(path, flag)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, so that it is complete or missing at any time."""
    with replacing(path) as aside, aside.open("wb") as file:
        np.save(file, array)


def write_aside(path: Path, text: str) -> None:
    """Writes a text file, so that it is complete or missing at any time."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of settings."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a YAML file of settings") from error
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a YAML file of settings")
    return value
