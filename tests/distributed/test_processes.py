"""An error of one process ends all of them, with one message."""

import os
import re
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from launched import CONTEXT, DIGITS, SHORT, Launched
from PIL import Image

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import Companions
from debias_ssl.system.locking import locked

# Far less than the half hour for which processes wait for each other.
SECONDS = 120
# Batches that two and three processes can share.
THIRDS = ("--batch_size", "6", "--unlabeled_ratio", "1")


def told(log: str) -> list[str]:
    assert "Traceback" not in log and "frame #" not in log, log
    return [line for line in log.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("rank", [0, 1])
def test_before_the_processes_have_met(rank, tmp_path):
    def flags(each: int) -> list[str]:
        return ["--batch_size", "0"] if each == rank else []

    launched = Launched(2, tmp_path / "a", of_rank=flags)
    assert launched.statuses(SECONDS) == [2, 2], launched.log.read_text()
    assert told(launched.log.read_text()) == ["error: batch_size is 0, must be at least 1"]
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_when_all_processes_find_the_same(tmp_path):
    launched = Launched(3, tmp_path / "a", "--model.name", "resnet1")
    assert launched.statuses(SECONDS) == [2, 2, 2]
    (message,) = told(launched.log.read_text())
    assert "resnet1" in message


def test_when_the_folder_is_in_use(tmp_path):
    with locked(tmp_path / "a"):
        launched = Launched(2, tmp_path / "a")
        assert launched.statuses(SECONDS) == [2, 2]
    (message,) = told(launched.log.read_text())
    assert "is in use by process" in message


def test_an_image_that_is_gone_in_the_middle_of_a_run(tmp_path):
    random = np.random.default_rng(0)
    for part in ("labeled", "test"):
        for name in ("ant", "bee"):
            for i in range(4):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = [f"--data.{part}={tmp_path / part}" for part in ("labeled", "test")]
    data += ["--data.name=folder", "--data.input=streaming", "--data.workers=0", "--data.labels_per_class=2"]
    base = ["--config", str(DIGITS), *SHORT, "--steps", "4000", "--batch_size", "2", "--unlabeled_ratio", "1", *data]
    launched = Launched(2, tmp_path / "a", base=base)
    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "a").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    gone = tmp_path / "labeled" / "ant" / "1.png"
    gone.unlink()
    assert launched.statuses(SECONDS) == [2, 2], launched.log.read_text()
    (message,) = told(launched.log.read_text())
    assert str(gone) in message


@pytest.mark.parametrize(("num_processes", "killed"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_when_another_process_is_killed(num_processes, killed, tmp_path):
    launched = Launched(num_processes, tmp_path / "a", *THIRDS, "--steps", "100000")
    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "a").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    launched.processes[killed].kill()
    since = time.monotonic()
    expected = [-signal.SIGKILL if rank == killed else 1 for rank in range(num_processes)]
    assert launched.statuses(SECONDS) == expected, launched.log.read_text()
    # Not the ten minutes for which torch waits; the machine may be busy.
    assert time.monotonic() - since < 30
    # A thread of torch may be in the middle of asking the lost store: what it then writes is torch's own.
    log = re.sub(r"\[rank\d\]:\[W.*?\n\n", "", launched.log.read_text(), flags=re.DOTALL)
    messages = told(log)
    # Where the process that they all meet at is gone, the others do not know of each other.
    assert 1 <= len(messages) <= (num_processes - 1 if killed == 0 else 1), messages
    assert all("another process has ended" in message and "--resume" in message for message in messages)


def wait_for_ever(rank: int, port: int, started: Any, ready: Any) -> None:
    """A process that waits for another one, whatever for, and neither sends nor gets a message."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    companions = Companions()
    started.release()
    while rank and companions._line is None:
        time.sleep(0.01)
    ready.release()
    time.sleep(10 * SECONDS)


def test_the_store_is_lost_while_a_process_waits(free_port):
    ready = CONTEXT.Semaphore(0)
    arguments = [(rank, free_port, CONTEXT.Semaphore(0), ready) for rank in range(2)]
    processes = [CONTEXT.Process(target=wait_for_ever, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            assert ready.acquire(timeout=SECONDS)
        processes[0].kill()
        processes[1].join(20)
        assert processes[1].exitcode == 1
    finally:
        for process in processes:
            process.kill()


def wait_for_a_store(port: int) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with suppress(OSError):
            return socket.create_connection(("localhost", port)).close()
        time.sleep(0.02)


def test_a_process_that_starts_early_hears_at_once_that_the_store_is_lost(free_port):
    # Torch looks for the store at longer and longer intervals, and would not find it before it is lost.
    started = CONTEXT.Semaphore(0)
    arguments = [(rank, free_port, started, CONTEXT.Semaphore(0)) for rank in range(2)]
    first, early = [CONTEXT.Process(target=wait_for_ever, args=each) for each in arguments]
    early.start()
    try:
        assert started.acquire(timeout=SECONDS)
        time.sleep(4)
        first.start()
        wait_for_a_store(free_port)
        time.sleep(2)
        first.kill()
        early.join(20)
        assert early.exitcode == 1
    finally:
        for process in (first, early):
            process.kill()


def end_and_count_threads(rank: int, port: int) -> None:
    """A job without work; its exit status is the number of threads that it leaves."""
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    before = threading.active_count()
    entry_point(lambda arguments: None)([])
    sys.exit(threading.active_count() - before)


def test_a_job_leaves_no_thread(free_port):
    # "terminate called without an active exception": Python ends while a thread waits for torch.
    processes = [CONTEXT.Process(target=end_and_count_threads, args=(rank, free_port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0, 0]


def test_processes_that_end_as_they_should_say_nothing_of_each_other(tmp_path):
    launched = Launched(3, tmp_path / "a", *THIRDS, "--steps", "4")
    launched.finish()
    assert told(launched.log.read_text()) == []
