"""The planned runs of a comparison, and which of them can be trained next."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias_ssl.runs.folder import RunFolder, inputs_of
from debias_ssl.runs.results import Result
from debias_ssl.runs.taught_variants import run_path, teacher_of, teachers_first, with_teacher
from debias_ssl.runs.variants import ComparisonPlan
from debias_ssl.system.files import LOCK
from debias_ssl.system.locking import holder
from debias_ssl.training.journal import last_records

# Seconds after which runs of other processes are checked again.
LOOKED_AT_EVERY = 2.0


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison: a variant with one seed."""

    title: str
    """Number, variant and seed, for messages."""
    variant: str
    seed: int
    resolved: dict[str, Any]
    """All settings, as in `config.yaml`."""
    path: Path
    """The run folder."""
    teacher: Path | None = None
    """The run of the same comparison that is the teacher, and must be finished before."""

    @property
    def folder(self) -> str:
        """The run folder, relative to the folder of the comparison."""
        return f"{self.variant}/{self.path.name}"

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of the run, without other runs of its comparison."""
        return {name: value for name, value in inputs_of(self.resolved).items() if value != str(self.teacher)}

    def is_finished(self) -> bool:
        """Whether the folder holds the finished run.

        Raises:
            InputError: the folder holds a run of other settings.
        """
        folder = RunFolder(self.path)
        folder.check(self.resolved, resume=True, overwrite=False)
        return folder.is_finished()

    def has_summary(self) -> bool:
        """Whether the folder has a finished run, without a check of its settings."""
        return RunFolder(self.path).is_finished()

    def result(self, error: str | None = None) -> Result:
        """The outcome of a run that ended.

        Args:
            error: message of the error that ended it; None if it finished.
        """
        if error is not None:
            return Result(variant=self.variant, seed=self.seed, folder=self.folder, status="failed", error=error)
        folder = RunFolder(self.path)
        summary = folder.read_summary()
        evaluations = (record["validation"]["ema"] for record in last_records(folder.metrics) if "validation" in record)
        return Result(
            variant=self.variant,
            seed=self.seed,
            folder=self.folder,
            status="finished",
            summary=summary,
            validation=next(evaluations, None),
            is_uneven=folder.is_uneven(),
        )


def planned_runs(plan: ComparisonPlan, out: Path) -> list[PlannedRun]:
    """All runs in order: all variants of a seed before the next seed, so that a stopped comparison can be compared.

    A teacher comes before its students.
    """
    runs = [(name, seed) for seed in plan.seeds for name in teachers_first(plan.variants)]
    teachers = {name: teacher_of(name, resolved) for name, resolved in plan.variants.items()}
    return [
        PlannedRun(
            title=f"[{number}/{len(runs)}] {name} seed {seed}",
            variant=name,
            seed=seed,
            resolved=with_teacher(name, plan.variants[name], seed, out),
            path=run_path(out, name, seed),
            teacher=run_path(out, teacher, seed) if (teacher := teachers[name]) else None,
        )
        for number, (name, seed) in enumerate(runs, start=1)
    ]


def print_status(text: str) -> None:
    """Prints to stderr: stdout is for tables."""
    print(text, file=sys.stderr, flush=True)


class Waiting:
    """Runs that are not known to be finished; other processes may train some of them.

    Args:
        runs: the runs in the order of training.
    """

    def __init__(self, runs: Iterable[PlannedRun]):
        self.left = [*runs]
        self._told: set[Path] = set()
        self._next_look = 0.0

    def next(self, running: Sequence[PlannedRun] = ()) -> PlannedRun | None:
        """The first run that no process trains, or that another process has finished; None if there is none now.

        A run that has a teacher waits for it, even if another process trains the teacher.

        Args:
            running: runs that this process trains now.
        """
        if time.monotonic() < self._next_look:
            return None
        unfinished = {each.path for each in (*self.left, *running)}
        for run in self.left:
            if run.teacher in unfinished:
                continue
            owner = None if run.has_summary() else holder(run.path / LOCK)
            if owner is None:
                self.left.remove(run)
                return run
            if run.path not in self._told:
                print_status(f"{run.title}: {owner} trains it")
                self._told.add(run.path)
        self._next_look = time.monotonic() + LOOKED_AT_EVERY
        return None

    def put_back(self, run: PlannedRun) -> None:
        """Puts a run back, because another process was faster."""
        self.left.insert(0, run)

    def look_again(self) -> None:
        """Makes `next` check all runs immediately, because a run of this process has ended."""
        self._next_look = 0.0

    def pause(self) -> None:
        """Waits until `next` checks all runs again."""
        time.sleep(max(0.0, self._next_look - time.monotonic()))
