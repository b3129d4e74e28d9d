"""Whole files: written aside and renamed, so that nobody sees half of one; and errors of writing as messages."""

import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import yaml
from safetensors import SafetensorError

from debias_ssl.system.errors import InputError, StoppedError, reason

# Of the checksum at the end of a file in a cache.
CHECK_BYTES = 4
READ_BYTES = 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; what is written there takes the place of `path` once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process's number: containers that share a folder give the same ones.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_array(path: Path, mmap_mode: Literal["r", "c"] | None = None) -> np.ndarray:
    """An array of a .npy file; nothing in it is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not a whole .npy file. NumPy itself raises nearly anything for headers that are damaged.
    """
    try:
        if mmap_mode is not None:
            return np.lib.format.open_memmap(path, mmap_mode)
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (EOFError, SyntaxError, TokenError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(reason(error)) from error


@contextmanager
def writing(folder: Path, fix: str = "--resume goes on") -> Iterator[None]:
    """Tells people of what cannot be written to a folder.

    Raises:
        StoppedError: a disk is full, a file larger than allowed, a folder gone.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else str(folder)
        if not Path(os.path.abspath(named)).is_relative_to(os.path.abspath(folder)):
            raise StoppedError(f"cannot use {named!r}: {why}; {fix}") from error
        raise StoppedError(f"cannot write to {str(folder)!r}: {why}; {fix}") from error


def cache_folder(where: str | None) -> Path:
    """The folder of a cache, which is made; None is the user's."""
    folder = Path(where or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "debias_ssl")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(folder)!r}: {error.strerror}; set data.cache") from error
    return folder


@contextmanager
def writing_to_cache(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that writes the parts of a file one after another; a checksum of them (CRC-32) ends the file.

    Raises:
        InputError: the file cannot be written.
    """
    check = 0
    try:
        with replacing(path) as aside, aside.open("wb") as file:

            def write(part: bytes) -> None:
                nonlocal check
                check = zlib.crc32(part, check)
                file.write(part)

            yield write
            file.write(check.to_bytes(CHECK_BYTES))
    except OSError as error:
        raise InputError(f"cannot write to {str(path.parent)!r}: {error.strerror}; set data.cache") from error


def is_whole(path: Path) -> bool:
    """Whether a file of a cache is there, and as it was written."""
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
    """Removes what jobs that were killed had begun to write, in a folder and in those in it; no job may run there."""
    for pattern in (".*.tmp", "*/.*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_new_file(path: Path, flag: str, overwrite: bool) -> None:
    """Before anything is computed.

    Raises:
        InputError: `path`, the value of a flag, is a folder, or a file that is not to be replaced.
    """
    if path.is_dir():
        raise InputError(f"{flag} {str(path)!r} is a folder: name a file")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists: pass --overwrite to replace it")


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file that is never seen half-written."""
    with replacing(path) as aside, aside.open("wb") as file:
        np.save(file, array)


def write_aside(path: Path, text: str) -> None:
    """Writes a text file that is never seen half-written."""
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
