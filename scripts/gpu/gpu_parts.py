"""Parts of GPU evidence: each in a process of its own, with a time limit, and a line of JSON when it has ended.

This module imports nothing but Python's own library, as `gpu_evidence.py` does.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_missing import ROOT, environment

PR_SET_PDEATHSIG = 1


@dataclass(kw_only=True)
class Evidence:
    """The folder of the results, and what is left of the time."""

    out: Path
    device: str
    ends: float
    """Of `time.monotonic`."""
    minutes: float
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The lines that say `done`, by their part."""

    def __post_init__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        self.file = self.out / "evidence.jsonl"
        self.done |= {line["part"]: line for line in self._lines() if line["status"] == "done"}

    def _lines(self) -> Iterator[dict[str, Any]]:
        for text in self.file.read_text().splitlines() if self.file.exists() else []:
            try:
                yield json.loads(text)
            except ValueError:
                print(f"a line of {self.file} was cut: {text[:60]}", flush=True)

    def write(self, part: str, status: str, **figures: Any) -> None:
        """Adds a line; a kill leaves at most the last one cut."""
        line = {"part": part, "status": status, **figures}
        cut = self.file.exists() and not self.file.read_bytes().endswith(b"\n")
        with self.file.open("a") as file:
            file.write("\n" * (cut and self.file.stat().st_size > 0) + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if status == "done":
            self.done[part] = line
        said = ", ".join(f"{name} {value}" for name, value in figures.items() if not isinstance(value, list | dict))
        print(f"{part}: {status}{', ' * bool(said)}{said}", flush=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def limit(self, share: float) -> float:
        """Seconds for a part that gets a share of the minutes: at least two of them, at most half of what is left."""
        return min(self.left / 2, 60 * max(2.0, share * self.minutes))

    def run(
        self,
        part: str,
        command: list[str],
        limit: float,
        figures: Callable[[str], dict[str, Any]],
        *,
        on_cpu: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs a part in a process of its own, unless it is done, and writes its line.

        Args:
            part: its name.
            command: arguments of Python.
            limit: seconds.
            figures: of its line, from what it printed.
            on_cpu: whether it is for the CPU on any device.
            meanwhile: called a few times a second, and once at the end.
        """
        if part in self.done:
            print(f"{part}: was done before", flush=True)
            return
        if limit < 1:
            self.write(part, "no time left")
            return
        log = self.out / f"{re.sub(r'[^a-z0-9]+', '_', part.lower())}.log"
        own = environment("cpu" if on_cpu else self.device)
        started = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=file, env=own, cwd=ROOT, preexec_fn=_end_with_us
            )
            try:
                while process.poll() is None and time.monotonic() < started + limit:
                    time.sleep(0.2)
                    meanwhile()
                is_late = process.poll() is None
            finally:
                _end(process)
        meanwhile()
        seconds = round(time.monotonic() - started, 1)
        printed = log.read_text(errors="replace")
        if is_late:
            self.write(part, "out of time", seconds=seconds, limit=round(limit, 1))
        elif process.returncode:
            self.write(part, "failed", seconds=seconds, log=str(log), error=(printed.strip() or "-").splitlines()[-1])
        else:
            self.write(part, "done", seconds=seconds, **figures(printed))


def _end_with_us() -> None:
    """In a new process: it is killed with this one, so that after a new start no old run continues."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Has a process save what it has."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
