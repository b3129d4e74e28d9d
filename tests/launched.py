"""Jobs in processes of their own, alone or several as torchrun starts them."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes

DIGITS = Path(__file__).parent.parent / "configs" / "digits.yaml"
SHORT = ["--steps", "12", "--log_every", "2", "--eval_every", "6", "--checkpoint_every", "4"]

# Processes are forked, where that is possible, from one that has imported everything: imports take longer than runs.
CONTEXT = multiprocessing.get_context("forkserver" if os.name != "nt" else "spawn")
CONTEXT.set_forkserver_preload(
    [f"debias_ssl.{job}" for job in ("train", "compare", "distill", "label", "finetune.__main__", "features.__main__")]
    + [f"debias_ssl.reporting.{page}_page" for page in ("labels", "run", "comparison", "calibration")]
    + ["accelerate", "open_clip", "scipy.optimize", "timm", "torchvision.transforms.v2"]
)


def start_ranks(work: Callable[..., None], *arguments: Any, num_processes: int = 2) -> ProcessContext:
    """Starts `work(rank, *arguments)` in so many processes; `join()` of what is returned raises what one raised."""
    method = CONTEXT.get_start_method()
    context = start_processes(work, arguments, nprocs=num_processes, join=False, start_method=method)
    assert context is not None
    return context


def run_ranks(work: Callable[..., None], *arguments: Any, num_processes: int = 2) -> None:
    context = start_ranks(work, *arguments, num_processes=num_processes)
    while not context.join():
        pass


def _work(job: str, arguments: list[str], environment: dict[str, str], log: Path, start_method: str) -> None:
    # A job starts the processes that decode for it as without tests, and not by a server of its own.
    multiprocessing.set_start_method(start_method, force=True)
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    # A shell that has put the tests in the background has Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.import_module(f"debias_ssl.{job}").main(arguments)


class Job:
    """One process with a job."""

    def __init__(self, job: str, arguments: Sequence[str], log: Path, **environment: str):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        start_method = multiprocessing.get_start_method()
        self.process = CONTEXT.Process(target=_work, args=(job, [*arguments], environment, log, start_method))
        self.process.start()

    def is_running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """The exit status, negative after a signal; a process that has not ended by then is killed."""
        self.process.join(seconds)
        self.kill()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        if self.is_running():
            self.send(signal.SIGKILL)
        self.process.join()


class Launched:
    """A run of several processes, which write to one log; `of_rank` gives further flags to some of them."""

    def __init__(
        self,
        num_processes: int,
        out: Path,
        *flags: str,
        base: Sequence[str] = ("--config", str(DIGITS), *SHORT, "--steps", "40"),
        of_rank: Callable[[int], Sequence[str]] = lambda rank: (),
        job: str = "train",
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        self.log = out.with_suffix(".log")
        self.log.unlink(missing_ok=True)
        self.processes = [
            Job(
                job,
                [*base, "--out", str(out), *flags, *of_rank(rank)],
                self.log,
                **shared,
                RANK=str(rank),
                LOCAL_RANK=str(rank),
            )
            for rank in range(num_processes)
        ]

    def statuses(self, seconds: float = 300) -> list[int]:
        """Exit statuses, waited for so long; what has not ended by then is killed."""
        try:
            return [process.wait(seconds) for process in self.processes]
        finally:
            self.kill()

    def finish(self) -> None:
        assert self.statuses() == [0] * len(self.processes), self.log.read_text()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
