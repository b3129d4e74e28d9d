"""Checks before the work starts that all processes have the same settings and data."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist

from debias_ssl import __version__
from debias_ssl.distributed.collectives import num_processes
from debias_ssl.system.errors import InputError, shortened

# Characters of a value that are shown of it.
SHOWN = 60
READ_BYTES = 2**20


def check_agreement(facts: Callable[[], Mapping[str, str]]) -> None:
    """Compares the package's version and further facts over all processes; nothing else may be on its way meanwhile.

    Args:
        facts: gives values by their names, which people read, and is not called where there is one process alone;
            whole values are compared, and their beginnings are shown.

    Raises:
        InputError: they differ; every process raises it, with the same message.
    """
    if num_processes() == 1:
        return
    own = {name: _short(value) for name, value in {"the package's version": __version__, **facts()}.items()}
    gathered: list[dict[str, tuple[str, str]]] = [{} for _ in range(num_processes())]
    # Processes of another version may have other facts.
    dist.all_gather_object(gathered, own)
    message = difference(gathered)
    if message is not None:
        raise InputError(message)


def difference(gathered: list[dict[str, tuple[str, str]]]) -> str | None:
    """The difference between processes in words; None if they agree. Each gives printable values and hashes by name."""
    first, *others = gathered
    differing = [name for name in dict.fromkeys(name for own in gathered for name in own) if _differs(name, gathered)]
    if not differing:
        return None
    name = differing[0]
    there, here = next((rank, own) for rank, own in enumerate(others, 1) if own.get(name) != first.get(name))
    (ours, _), (theirs, _) = (own.get(name, ("not known", "")) for own in (first, here))
    further = f"; they also differ in {shortened(differing[1:])}" if differing[1:] else ""
    return (
        f"the processes do not agree: {name} is {ours} in process 0, and {theirs} in process "
        f"{there}{further}\nstart all processes with the same package, flags and files; --out must be one folder "
        "on a disk that all hosts share"
    )


def _differs(name: str, gathered: list[dict[str, tuple[str, str]]]) -> bool:
    return any(own.get(name) != gathered[0].get(name) for own in gathered)


def _short(value: str) -> tuple[str, str]:
    return (value if len(value) <= SHOWN else f"{value[:SHOWN]}..."), hashlib.sha256(value.encode()).hexdigest()


def hash_of_files(*paths: Path) -> str:
    """Hash of the contents of files; those that are not there are as good as empty."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while part := file.read(READ_BYTES):
                    digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:32]
