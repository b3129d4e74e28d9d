"""Starts and watches the worker processes of `compare --jobs`. `worker.py` is their program."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

# The replies of a process about a run: it is finished, or another process trains it.
FINISHED, IN_USE = "finished", "in use"


class Worker:
    """A process that trains one run after the other, until one of them fails.

    Args:
        aside: the file for its output; the settings of a run are beside it.
        environment: its additional environment variables.
    """

    def __init__(self, aside: Path, environment: dict[str, str]):
        self.log = aside
        with aside.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "debias_ssl.runs.worker"],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.asked, self.said = self.process.stdin, self.process.stdout
        os.set_blocking(self.said.fileno(), False)
        self._read = 0

    def begin(self, resolved: dict[str, Any], out: Path) -> None:
        """Starts a run; the worker must have no run."""
        os.truncate(self.log, 0)
        self._read = 0
        settings = self.log.with_suffix(".json")
        settings.write_text(json.dumps({"resolved": resolved, "out": str(out)}))
        # `has_ended` reports a process that died meanwhile.
        with suppress(BrokenPipeError):
            self.asked.write(f"{settings}\n".encode())

    def said_of_run(self) -> str | None:
        """`FINISHED` or `IN_USE`, once for each run, when it waits for the next one; None before."""
        return (self.said.read(1024) or b"").decode().strip() or None

    def hints(self) -> list[str]:
        """The notes and warnings of its run that this function has not returned yet."""
        if self.log.stat().st_size == self._read:
            return []
        with self.log.open("rb") as log:
            log.seek(self._read)
            whole, end, _ = log.read().rpartition(b"\n")
        self._read += len(whole) + len(end)
        # A progress bar may stand before a warning, on the same line.
        lines = whole.decode(errors="replace").replace("\r", "\n").split("\n")
        return [line for line in lines if line.startswith(("note: ", "warning: "))]

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def error(self) -> str:
        """The message of a process that has ended; if it has no message for users, its whole output is printed."""
        self._close()
        status, text = self.process.returncode, self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()] or [f"ended with status {status}"]
        told = [line for line in lines if line.startswith("error: ")]
        if told:
            return told[-1].removeprefix("error: ")
        print(text, file=sys.stderr, flush=True)
        return lines[-1] if status >= 0 else f"killed by signal {-status}"

    def stop(self) -> None:
        """Makes it finish its step, save a checkpoint and end."""
        self.process.terminate()

    def leave(self) -> None:
        """Makes it end, because no run is left for it."""
        self.asked.close()

    def wait(self) -> None:
        """Waits until it has ended."""
        self.process.wait()
        self._close()

    def _close(self) -> None:
        self.asked.close()
        self.said.close()


def visible_gpus() -> list[str]:
    """Names of the GPUs for `CUDA_VISIBLE_DEVICES`; empty if there is at most one."""
    num, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",")[:num] if visible else [str(number) for number in range(num)]
    return devices if num > 1 else []


def thread_limit(at_once: int) -> dict[str, str]:
    """An equal part of the threads for each process, unless the user has set their number."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once))}
