"""The start of several processes: one of each host goes first, for as long as it takes."""

import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from launched import CONTEXT, run_ranks

from debias_ssl.data.sources.listing import FileNames, shared_listing
from debias_ssl.distributed.start_up import first_of_each_host_first, shared_start

# Far below the ten minutes of torch, and below what the first process takes here.
TIMEOUT, SLOW = timedelta(seconds=1), 2.5


def meet(rank: int, port: int) -> Accelerator:
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    # What torch gives to groups for which nothing else is asked.
    dist.distributed_c10d._get_default_timeout = lambda _: TIMEOUT
    return Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)])


def list_slowly(rank: int, port: int, folder: Path) -> None:
    accelerator = meet(rank, port)

    def find() -> tuple[FileNames, list[str]]:
        assert rank == 0
        time.sleep(SLOW)
        return FileNames.of([("a.png", 1, 2, False), ("b.png", 3, 4, True)]), ["x", "y"]

    for word in ("once", "twice"):
        with first_of_each_host_first(accelerator):
            names, texts = shared_listing(word, str(folder), find)
            # The other is slow too.
            time.sleep(rank * SLOW / 2)
        assert (*names.stats(), *texts) == (("a.png", 1, 2), ("b.png", 3, 4), "x", "y")
    assert shared_start() is None
    dist.barrier()
    assert list(folder.iterdir()) == []


def test_a_slow_first_process_is_waited_for_and_read_from(free_port, tmp_path):
    run_ranks(list_slowly, free_port, tmp_path)


def list_until_killed(rank: int, port: int, ready: Any) -> None:
    accelerator = meet(rank, port)
    with first_of_each_host_first(accelerator):
        ready.release()
        time.sleep(600)


def test_a_first_process_that_is_killed_is_not_waited_for(free_port):
    ready = CONTEXT.Semaphore(0)
    processes = [CONTEXT.Process(target=list_until_killed, args=(rank, free_port, ready)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        assert ready.acquire(timeout=120)
        # The other is not yet inside.
        assert not ready.acquire(timeout=1)
        processes[0].kill()
        processes[1].join(30)
        assert [process.exitcode for process in processes] == [-signal.SIGKILL, 1]
    finally:
        for process in processes:
            process.kill()


def test_a_process_alone_shares_nothing():
    with first_of_each_host_first(Accelerator(cpu=True)):
        assert shared_start() is None


def fail_first(rank: int, port: int) -> None:
    accelerator = meet(rank, port)
    with pytest.raises(ZeroDivisionError if rank == 0 else RuntimeError), first_of_each_host_first(accelerator):
        raise ZeroDivisionError
    assert shared_start() is None


def test_an_error_of_the_first_process_ends_the_start(free_port):
    run_ranks(fail_first, free_port)
