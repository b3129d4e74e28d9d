"""Workers: processes that decode images in advance, and how their errors are reported to the user."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from debias_ssl.data.reading.reader import Reader
from debias_ssl.distributed.signals import ignore_signals
from debias_ssl.system.errors import InputError, StoppedError, reason

# Seconds in which the signal of a dead process arrives.
SIGNAL_SECONDS = 1.0


@contextmanager
def dead_workers_told(flag: str = "--data.workers", mend: str = "start again with --resume") -> Iterator[None]:
    """Turns the error of a dead decoding process into a message for users. torch may raise it anywhere in the block.

    Args:
        flag: the flag that sets the number of processes.
        mend: how to continue the job.

    Raises:
        StoppedError: a process has died.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):
            # The connection to a dead process may end before torch hears of its end; torch then raises its own error.
            time.sleep(SIGNAL_SECONDS)
            raise
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise StoppedError(
            f"a process that decodes images has died ({reason(error)}): "
            f"if memory was short, take fewer by {flag}; {mend}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Caught(Dataset):
    """A data set that returns its exceptions: if a worker raised them, its traceback would be part of the message."""

    dataset: Dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except (InputError, StoppedError) as error:
            return error


def raising(items: Iterable) -> Iterator:
    """Raises what a `Caught` data set has returned instead."""
    for item in items:
        if isinstance(item, InputError | StoppedError):
            raise item
        yield item


def read_ahead(dataset: Dataset, numbers: range, reader: Reader, device: torch.device) -> Iterator[tuple[int, Any]]:
    """Items of a data set with their numbers. If files must be decoded, workers do it in advance."""
    if reader.is_resident:
        yield from ((number, dataset[number]) for number in numbers)
    else:
        # More decoding processes than cores would only slow each other down.
        workers, pinned = min(reader.config.workers, os.cpu_count() or 1), device.type == "cuda"
        caught = Caught(dataset=dataset)
        loader = DataLoader(
            caught,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=pinned,
            worker_init_fn=ignore_signals,
        )
        yield from zip(numbers, raising(loader), strict=True)
