"""Trains the runs of a comparison, one after the other or several at a time, and writes their results."""

import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from debias_ssl.data.last_task import LastTask
from debias_ssl.distributed.signals import asked_to_stop
from debias_ssl.runs.folder import RunFolder, inputs_of
from debias_ssl.runs.pairing import blocks_of
from debias_ssl.runs.results import Result, differences_between, write_results
from debias_ssl.runs.run import train
from debias_ssl.runs.tables import differences_text, table
from debias_ssl.runs.taught_variants import run_path, teacher_of, teachers_first, with_teacher
from debias_ssl.runs.variants import ComparisonPlan
from debias_ssl.runs.workers import Worker, thread_limit, visible_gpus
from debias_ssl.system.errors import InputError, Interrupted, StoppedError, reason
from debias_ssl.system.files import write_aside
from debias_ssl.system.locking import remove_stale_lock
from debias_ssl.system.outputs import Outputs, check_apart
from debias_ssl.training.journal import last_records
from debias_ssl.training.saved import config_from

PLAN_FILE = "compare.yaml"
# In the order in which they are removed: the plan, which names the runs, goes last.
WRITTEN_FILES = ("compare.json", "compare.csv", "report.html", PLAN_FILE)


def comparison_outputs(out: Path) -> Outputs:
    """What a comparison writes into its folder, beside those of its runs."""
    return Outputs(folder=out, kind="a comparison", names=WRITTEN_FILES)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison: a variant with one seed."""

    title: str
    """Number, variant and seed, for messages."""
    variant: str
    seed: int
    resolved: dict[str, Any]
    """All settings, as `config.yaml` holds them."""
    path: Path
    """The run folder."""
    teacher: Path | None = None
    """The run of the same comparison that has to be finished before, as it is the teacher."""

    @property
    def folder(self) -> str:
        """The run folder, relative to the folder of the comparison."""
        return f"{self.variant}/{self.path.name}"

    @property
    def inputs(self) -> dict[str, Any]:
        """What the run reads beside other runs of its comparison."""
        return {name: value for name, value in inputs_of(self.resolved).items() if value != str(self.teacher)}

    def is_finished(self) -> bool:
        """Whether the folder holds the finished run.

        Raises:
            InputError: the folder holds a run of other settings.
        """
        folder = RunFolder(self.path)
        folder.check(self.resolved, resume=True, overwrite=False)
        return folder.is_finished()

    def result(self, error: str | None = None) -> Result:
        """The outcome of a run that ended.

        Args:
            error: message of the error that ended it; None where it finished.
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

    A teacher comes before those that it teaches.
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


def prepare_folder(
    out: Path, plan: ComparisonPlan, recorded: ComparisonPlan | None, *, resume: bool, overwrite: bool
) -> None:
    """Checks that a comparison may write to a folder, and removes an earlier one where it is to be overwritten.

    Args:
        out: the folder.
        plan: the comparison that is to be run.
        recorded: the comparison that the folder holds already.
        resume: whether to go on with it.
        overwrite: whether to replace it.

    Raises:
        InputError: the folder holds something else, or neither flag is given.
    """
    runs = planned_runs(plan, out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file")
    if RunFolder(out).holds_run():
        raise InputError(f"{str(out)!r} holds a run, not a comparison: choose another --out")
    comparison = comparison_outputs(out)
    comparison.check_foreign()
    for run in runs:
        check_apart(out, "--out", run.inputs)
    if overwrite:
        for run in runs:
            RunFolder(run.path).outputs.check_foreign()
        _remove_comparison(comparison, [*runs, *(planned_runs(recorded, out) if recorded else [])])
        return
    comparison.check_complete()
    held = [out] if recorded else [run.path for run in runs if RunFolder(run.path).outputs.held()]
    if held and not resume:
        kind = "comparison" if recorded else "run"
        raise InputError(f"{str(held[0])!r} holds a {kind}: pass --resume to go on with it, --overwrite to replace it")
    if not resume:
        for run in runs:
            RunFolder(run.path).outputs.check_foreign()


def _remove_comparison(comparison: Outputs, runs: Sequence[PlannedRun]) -> None:
    """Removes the files and run folders of a comparison, and nothing else."""
    if comparison.held():
        comparison.mark_incomplete()
    for run in runs:
        RunFolder(run.path).clear()
        # A folder with other files in it stays.
        with suppress(OSError):
            for path in (run.path, *run.path.parents[: len(Path(run.folder).parts) - 1]):
                path.rmdir()
    comparison.clear()


def train_in_this_process(runs: Sequence[PlannedRun]) -> Generator[tuple[PlannedRun, str | None], None, None]:
    """Trains one run after the other; yields each with the message of its error, or None."""
    last = LastTask()
    for run in runs:
        print_status(f"{run.title} ...")
        error = None
        try:
            train(config_from(run.resolved), run.resolved, run.path, resume=True, quiet=True, last=last)
        except (InputError, StoppedError) as stopped:
            error = " ".join(str(stopped).split())
        except Exception as unexpected:
            traceback.print_exc()
            error = f"{type(unexpected).__name__}: {reason(unexpected)}"
        yield run, error


def train_in_processes(
    runs: Sequence[PlannedRun], at_once: int
) -> Generator[tuple[PlannedRun, str | None], None, None]:
    """Trains `at_once` runs at a time in as many processes; yields each with the message of its error, or None.

    A process trains one run after the other. One whose run fails ends with it, and another takes its place. With
    several GPUs, each process gets one of them. A run that has a teacher waits for it.
    """
    devices, limit = visible_gpus(), thread_limit(at_once)
    waiting = [*runs]
    workers: dict[int, Worker] = {}
    running: dict[int, PlannedRun] = {}
    with tempfile.TemporaryDirectory() as aside, asked_to_stop() as asked:
        try:
            while waiting or running:
                if asked.number:
                    name = signal.Signals(asked.number).name
                    raise Interrupted(f"{name}: stopped; --resume goes on with the comparison", asked.number)
                for slot in range(at_once):
                    unfinished = {each.path for each in (*waiting, *running.values())}
                    run = next((each for each in waiting if each.teacher not in unfinished), None)
                    if slot in running or run is None:
                        continue
                    waiting.remove(run)
                    if slot not in workers:
                        device = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
                        workers[slot] = Worker(Path(aside) / str(slot), device | limit)
                    running[slot] = run
                    print_status(f"{run.title} ...")
                    workers[slot].begin(run.resolved, run.path)
                time.sleep(0.02)
                for slot, run in list(running.items()):
                    if workers[slot].has_finished():
                        del running[slot]
                        yield run, None
                    elif workers[slot].has_ended():
                        del running[slot]
                        yield run, workers.pop(slot).error()
                if not waiting:
                    for slot in workers.keys() - running.keys():
                        workers[slot].leave()
        finally:
            for slot, worker in workers.items():
                worker.stop() if slot in running else worker.leave()
            for worker in workers.values():
                worker.wait()


def print_status(text: str) -> None:
    """Prints to stderr: stdout is for tables."""
    print(text, file=sys.stderr, flush=True)


def _print_outcome(run: PlannedRun, result: Result) -> None:
    if result.summary is None:
        print_status(f"{run.title} failed: {result.error}")
    else:
        print_status(f"{run.title}: accuracy {result.summary['ema']['last']['accuracy']:.2%}")


def run_comparison(plan: ComparisonPlan, out: Path, at_once: int) -> list[tuple[PlannedRun, Result]]:
    """Trains the runs that are not finished, and writes the results after each run.

    Args:
        plan: variants and seeds.
        out: folder of the comparison.
        at_once: number of runs at a time.
    """
    runs = planned_runs(plan, out)
    results = [Result(variant=run.variant, seed=run.seed, folder=run.folder) for run in runs]
    waiting = []
    for i, run in enumerate(runs):
        try:
            if not run.is_finished():
                waiting.append(run)
                continue
            results[i] = run.result()
            remove_stale_lock(run.path)
        except InputError as error:
            results[i] = run.result(str(error))
        _print_outcome(run, results[i])
    differences, blocks = differences_between(plan.variants), blocks_of(plan.variants, plan.floors)
    print(differences_text(differences, blocks), flush=True)
    comparison_outputs(out).claim(PLAN_FILE, "compare.csv", "compare.json")
    write_aside(out / PLAN_FILE, yaml.safe_dump(asdict(plan), sort_keys=False))

    def written() -> list[dict[str, Any]]:
        return write_results(out, results, differences, plan.choose_among, blocks)

    lines = written()
    with closing(train_in_this_process(waiting) if at_once == 1 else train_in_processes(waiting, at_once)) as ended:
        for run, error in ended:
            result = results[runs.index(run)] = run.result(error)
            lines = written()
            _print_outcome(run, result)
    print(f"{table(lines)}\n{out}", flush=True)
    return list(zip(runs, results, strict=True))


def raise_if_any_failed(results: Sequence[tuple[PlannedRun, Result]]) -> None:
    """Prints the runs that failed.

    Raises:
        StoppedError: at least one run failed.
    """
    failed = [(run, result) for run, result in results if result.status == "failed"]
    for run, result in failed:
        print(f"{run.title} failed: {result.error}", flush=True)
    if failed:
        raise StoppedError(f"{len(failed)} of {len(results)} runs failed; --resume tries them again")
