"""The start of processes on one host: one of them does the slow work, and the others use its result."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    import accelerate

# How long processes wait for one that lists and decodes.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True, kw_only=True)
class SharedStart:
    """A start that is under way, of several processes of a host."""

    name: str
    """The same in all processes of this host, and in no others and at no other time."""
    is_first: bool
    """Whether this process is the one that goes first."""
    kept: ExitStack = field(default_factory=ExitStack)
    """Removes, after the start, what this process gives to the others."""


_under_way: list[SharedStart] = []


def shared_start() -> SharedStart | None:
    """The start that is under way; None where a process works alone."""
    return _under_way[-1] if _under_way else None


@contextmanager
def first_of_each_host_first(accelerator: "accelerate.Accelerator") -> Iterator[None]:
    """Runs its block in one process of each host first, and then in the others, which use the cached result.

    It may take longer than the ten minutes for which torch lets processes wait for each other. They meet in a group of
    their own, which has more patience, so that steps keep torch's time. Its processes are connected on the CPU: one
    that is killed is missed at once.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    names = [secrets.token_hex(8)]
    dist.broadcast_object_list(names, 0, group)
    # Hosts may share a disk, and even their names.
    host = accelerator.process_index - accelerator.local_process_index
    start = SharedStart(name=f"{names[0]}-{host}", is_first=accelerator.is_local_main_process)
    with start.kept:
        if not start.is_first:
            dist.barrier(group)
        _under_way.append(start)
        try:
            yield
        finally:
            _under_way.remove(start)
        if start.is_first:
            dist.barrier(group)
        dist.barrier(group)
    dist.destroy_process_group(group)
