"""The runs of a comparison: here one after the other, or several at a time in processes."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from debias_ssl.distributed.signals import asked_to_stop
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.results import Result, differences_between, differences_text, table, write_results
from debias_ssl.runs.run import train
from debias_ssl.runs.variants import Comparison
from debias_ssl.system.errors import InputError, Interrupted, StoppedError, reason
from debias_ssl.system.files import write_aside
from debias_ssl.training.journal import read_journal
from debias_ssl.training.saved import config_from

RECORD = "compare.yaml"
FILES = (RECORD, "compare.csv", "compare.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that a comparison consists of."""

    title: str
    variant: str
    seed: int
    resolved: dict[str, Any]
    path: Path

    @property
    def folder(self) -> str:
        """The run folder, seen from the comparison's."""
        return f"{self.variant}/{self.path.name}"

    def is_finished(self) -> bool:
        """Whether the run need not be run.

        Raises:
            InputError: the folder holds a run of other settings.
        """
        folder = RunFolder(self.path)
        folder.check(self.resolved, resume=True, overwrite=False)
        return folder.is_finished()

    def result(self, error: str | None = None) -> Result:
        """What became of the run, given its error if it had one."""
        if error is not None:
            return Result(variant=self.variant, seed=self.seed, folder=self.folder, status="failed", error=error)
        run = RunFolder(self.path)
        evaluations = [record["validation"]["ema"] for record in read_journal(run.metrics) if "validation" in record]
        return Result(
            variant=self.variant,
            seed=self.seed,
            folder=self.folder,
            status="finished",
            summary=run.read_summary(),
            validation=evaluations[-1] if evaluations else None,
        )


def jobs_of(comparison: Comparison, out: Path) -> list[Job]:
    """All runs; those of a seed follow each other, so that a stopped comparison has variants to compare."""
    runs = [(name, seed) for seed in comparison.seeds for name in comparison.variants]
    return [
        Job(
            title=f"[{number}/{len(runs)}] {name} seed {seed}",
            variant=name,
            seed=seed,
            resolved={**comparison.variants[name], "seed": seed},
            path=out / name / f"seed-{seed}",
        )
        for number, (name, seed) in enumerate(runs, start=1)
    ]


def check_folder(out: Path, jobs: Sequence[Job], recorded: Comparison | None, parsed: Any) -> None:
    """Raises InputError where the folder may not be written to."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file")
    if RunFolder(out).holds_run():
        raise InputError(f"{str(out)!r} holds a run, not a comparison: choose another --out")
    held = [out] if recorded else [job.path for job in jobs if RunFolder(job.path).holds_run()]
    if held and not (parsed.resume or parsed.overwrite):
        kind = "comparison" if recorded else "run"
        raise InputError(f"{str(held[0])!r} holds a {kind}: pass --resume to go on with it, --overwrite to replace it")


def clear(out: Path, jobs: Sequence[Job]) -> None:
    """Removes what a comparison writes, and nothing else."""
    for job in jobs:
        RunFolder(job.path).clear()
        # A folder in which someone keeps something stays.
        with suppress(OSError):
            job.path.rmdir()
            job.path.parent.rmdir()
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def run_here(jobs: Sequence[Job]) -> Generator[tuple[Job, str | None], None, None]:
    """Runs one after the other in this process; gives each with its error, if it failed."""
    for job in jobs:
        say(f"{job.title} ...")
        error = None
        try:
            train(config_from(job.resolved), job.resolved, job.path, resume=True, quiet=True)
        except (InputError, StoppedError) as stopped:
            error = " ".join(str(stopped).split())
        except Exception as unexpected:
            traceback.print_exc()
            error = f"{type(unexpected).__name__}: {reason(unexpected)}"
        yield job, error


def run_apart(jobs: Sequence[Job], at_once: int) -> Generator[tuple[Job, str | None], None, None]:
    """The same in processes, so many at once; where there are several GPUs, each process has one of them."""
    devices = _devices()
    waiting = deque(jobs)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    with tempfile.TemporaryDirectory() as aside, asked_to_stop() as asked:
        try:
            while waiting or running:
                if asked.number:
                    name = signal.Signals(asked.number).name
                    raise Interrupted(f"{name}: stopped; --resume goes on with the comparison", asked.number)
                for slot in range(at_once):
                    if slot not in running and waiting:
                        job = waiting.popleft()
                        say(f"{job.title} ...")
                        device = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
                        running[slot] = job, _start(job, Path(aside) / str(slot), device | _threads(at_once))
                time.sleep(0.05)
                for slot, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[slot]
                        yield job, _error_of(process.returncode, Path(aside) / str(slot))
        finally:
            # Each finishes its step and keeps where it is.
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()


def _devices() -> list[str]:
    num, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",")[:num] if visible else [str(number) for number in range(num)]
    return devices if num > 1 else []


def _threads(at_once: int) -> dict[str, str]:
    """A part of the cores for each process, unless somebody has said how many threads there are to be."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // at_once))}


def _start(job: Job, aside: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    config = aside.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(job.resolved, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "debias_ssl.train", "--config", str(config), "--out", str(job.path), "--resume"]
    with aside.open("wb") as log:
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=log)


def _error_of(status: int, log: Path) -> str | None:
    """The message of a process that failed; what it wrote is shown where that says more."""
    if status == 0:
        return None
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()] or [f"ended with status {status}"]
    told = [line for line in lines if line.startswith("error: ")]
    if told:
        return told[-1].removeprefix("error: ")
    say(text)
    return lines[-1] if status > 0 else f"killed by signal {-status}"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _say_result(job: Job, result: Result) -> None:
    if result.summary is None:
        say(f"{job.title} failed: {result.error}")
    else:
        say(f"{job.title}: accuracy {result.summary['ema']['last']['accuracy']:.2%}")


def compare(comparison: Comparison, out: Path, at_once: int) -> list[tuple[Job, Result]]:
    """Runs what is not finished, and writes the results after each run."""
    jobs = jobs_of(comparison, out)
    results = [Result(variant=job.variant, seed=job.seed, folder=job.folder) for job in jobs]
    waiting = []
    for i, job in enumerate(jobs):
        try:
            if not job.is_finished():
                waiting.append(job)
                continue
            results[i] = job.result()
        except InputError as error:
            results[i] = job.result(str(error))
        _say_result(job, results[i])
    differences = differences_between(comparison.variants)
    print(differences_text(differences, [*comparison.variants]), flush=True)
    write_aside(out / RECORD, yaml.safe_dump(asdict(comparison), sort_keys=False))
    lines = write_results(out, results, differences, comparison.choose_among)
    with closing(run_here(waiting) if at_once == 1 else run_apart(waiting, at_once)) as ended:
        for job, error in ended:
            result = results[jobs.index(job)] = job.result(error)
            lines = write_results(out, results, differences, comparison.choose_among)
            _say_result(job, result)
    print(f"{table(lines)}\n{out}", flush=True)
    return list(zip(jobs, results, strict=True))


def raise_failures(results: Sequence[tuple[Job, Result]]) -> None:
    """Raises StoppedError where a run has failed, after each of these is told."""
    failed = [(job, result) for job, result in results if result.status == "failed"]
    for job, result in failed:
        print(f"{job.title} failed: {result.error}", flush=True)
    if failed:
        raise StoppedError(f"{len(failed)} of {len(results)} runs failed; --resume tries them again")
