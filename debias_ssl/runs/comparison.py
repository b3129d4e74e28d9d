"""Trains the runs of a comparison, one by one or several in parallel, and writes their results."""

import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from debias_ssl.data.last_task import LastTask
from debias_ssl.distributed.signals import asked_to_stop
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.pairing import blocks_of
from debias_ssl.runs.planned import PlannedRun, Waiting, planned_runs, print_status
from debias_ssl.runs.results import Result, differences_between, write_results
from debias_ssl.runs.run import train
from debias_ssl.runs.tables import differences_text, table
from debias_ssl.runs.variants import ComparisonPlan
from debias_ssl.runs.workers import IN_USE, Worker, thread_limit, visible_gpus
from debias_ssl.system.errors import InputError, Interrupted, InUseError, StoppedError, reason
from debias_ssl.system.files import LOCK, write_aside
from debias_ssl.system.locking import Member, holder
from debias_ssl.system.outputs import Outputs, check_apart
from debias_ssl.training.saved import config_from

PLAN_FILE = "compare.yaml"
# In the order of removal. The plan is last, because it names the runs.
WRITTEN_FILES = ("compare.json", "compare.csv", "report.html", PLAN_FILE)


def comparison_outputs(out: Path) -> Outputs:
    """The files that a comparison writes into its folder, without those of its runs."""
    return Outputs(folder=out, kind="a comparison", names=WRITTEN_FILES)


def prepare_folder(
    out: Path, plan: ComparisonPlan, recorded: ComparisonPlan | None, *, resume: bool, overwrite: bool
) -> None:
    """Checks that a comparison may write to a folder, and removes an earlier one with `overwrite`.

    Args:
        out: the folder.
        plan: the comparison to run.
        recorded: the comparison in the folder.
        resume: whether to continue it.
        overwrite: whether to replace it.

    Raises:
        InputError: the folder has other files, or has a comparison and neither flag is given.
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


def train_in_this_process(
    runs: Sequence[PlannedRun], *, wait: bool = True
) -> Generator[tuple[PlannedRun, str | None], None, None]:
    """Trains one run after the other; yields each with the message of its error, or None.

    A run that another process trains is skipped. It is yielded when that process has finished it, or trained here if
    that process has ended without finishing it.

    Args:
        runs: the runs in the order of training.
        wait: whether to wait for runs that other processes train, when no other run is left.
    """
    last, waiting = LastTask(), Waiting(runs)
    while waiting.left:
        run, error = waiting.next(), None
        if run is None:
            if not wait:
                return
            waiting.pause()
            continue
        try:
            if not run.has_summary():
                print_status(f"{run.title} ...")
                train(config_from(run.resolved), run.resolved, run.path, resume=True, quiet=True, last=last)
        except InUseError:
            waiting.put_back(run)
            continue
        except (InputError, StoppedError) as stopped:
            error = " ".join(str(stopped).split())
        except Exception as unexpected:
            traceback.print_exc()
            error = f"{type(unexpected).__name__}: {reason(unexpected)}"
        yield run, error
        waiting.look_again()


def train_in_processes(
    runs: Sequence[PlannedRun], at_once: int, *, wait: bool = True
) -> Generator[tuple[PlannedRun, str | None], None, None]:
    """Trains `at_once` runs at a time in as many processes; yields each with the message of its error, or None.

    A process trains one run after the other. If a run fails, its process ends, and another one replaces it. With
    several GPUs, each process gets one of them. A run that has a teacher waits for it. Runs of other processes are
    treated as in `train_in_this_process`.
    """
    devices, limit = visible_gpus(), thread_limit(at_once)
    waiting = Waiting(runs)
    workers: dict[int, Worker] = {}
    running: dict[int, PlannedRun] = {}
    hints: set[str] = set()
    with tempfile.TemporaryDirectory() as aside, asked_to_stop() as asked:
        try:
            while waiting.left or running:
                if asked.number:
                    name = signal.Signals(asked.number).name
                    raise Interrupted(f"{name}: stopped; --resume goes on with the comparison", asked.number)
                while len(running) < at_once and (run := waiting.next([*running.values()])) is not None:
                    if run.has_summary():
                        yield run, None
                        continue
                    slot = next(slot for slot in range(at_once) if slot not in running)
                    if slot not in workers:
                        device = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
                        workers[slot] = Worker(Path(aside) / str(slot), device | limit)
                    running[slot] = run
                    print_status(f"{run.title} ...")
                    workers[slot].begin(run.resolved, run.path)
                if not running and not wait:
                    return
                time.sleep(0.02)
                for slot, run in list(running.items()):
                    said = workers[slot].said_of_run()
                    for hint in workers[slot].hints():
                        # Once: most notes are of the images, which the runs share.
                        if hint not in hints:
                            print_status(f"{run.title}: {hint}")
                        hints.add(hint)
                    if said:
                        del running[slot]
                        waiting.look_again()
                        if said == IN_USE:
                            waiting.put_back(run)
                        else:
                            yield run, None
                    elif workers[slot].has_ended():
                        del running[slot]
                        waiting.look_again()
                        yield run, workers.pop(slot).error()
                if not waiting.left:
                    for slot in workers.keys() - running.keys():
                        workers[slot].leave()
        finally:
            for slot, worker in workers.items():
                worker.stop() if slot in running else worker.leave()
            for worker in workers.values():
                worker.wait()


def _print_outcome(run: PlannedRun, result: Result) -> None:
    if result.summary is None:
        print_status(f"{run.title} failed: {result.error}")
    else:
        print_status(f"{run.title}: accuracy {result.summary['ema']['last']['accuracy']:.2%}")


class Comparison:
    """A comparison in its folder, which other processes may share.

    Args:
        plan: variants and seeds.
        member: this process among those that work in the folder.
    """

    def __init__(self, plan: ComparisonPlan, member: Member):
        self.plan, self.member, self.out = plan, member, member.folder
        self.runs = planned_runs(plan, self.out)
        self.results = [Result(variant=run.variant, seed=run.seed, folder=run.folder) for run in self.runs]
        self.differences = differences_between(plan.variants)
        self.blocks = blocks_of(plan.variants, plan.floors)

    def begin(self) -> list[PlannedRun]:
        """Prints the plan and writes it to the folder; returns the runs that are not finished.

        Call it in the first turn of this process.
        """
        waiting = []
        for i, run in enumerate(self.runs):
            try:
                if not run.is_finished():
                    waiting.append(run)
                    continue
                self.results[i] = run.result()
                holder(run.path / LOCK)  # removes the lock of a process that was killed after its work
            except InputError as error:
                self.results[i] = run.result(str(error))
            _print_outcome(run, self.results[i])
        print(differences_text(self.differences, self.blocks), flush=True)
        comparison_outputs(self.out).claim(PLAN_FILE, "compare.csv", "compare.json")
        write_aside(self.out / PLAN_FILE, yaml.safe_dump(asdict(self.plan), sort_keys=False))
        self.write()
        return waiting

    def train(self, runs: Sequence[PlannedRun], at_once: int, *, wait: bool) -> None:
        """Trains runs, and writes the results after each.

        Args:
            runs: the runs that are not finished.
            at_once: number of runs at a time.
            wait: whether to wait for runs that other processes train, when no other run is left.
        """
        ended = train_in_processes(runs, at_once, wait=wait) if at_once > 1 else train_in_this_process(runs, wait=wait)
        with closing(ended):
            for run, error in ended:
                result = self.results[self.runs.index(run)] = run.result(error)
                _print_outcome(run, result)
                self.member.check()
                with self.member.turn():
                    self.write()

    def write(self) -> list[dict[str, Any]]:
        """Writes the results, including runs of other processes; call it in a turn of this process."""
        for i, run in enumerate(self.runs):
            if self.results[i].status != "finished" and run.has_summary():
                try:
                    self.results[i] = run.result() if run.is_finished() else self.results[i]
                except InputError as error:
                    self.results[i] = run.result(str(error))
        return write_results(self.out, self.results, self.differences, self.plan.choose_among, self.blocks)

    def end(self, draw: Callable[[Path], None]) -> list[str]:
        """Writes and prints the results, and leaves the folder; returns the processes that still work in it.

        Args:
            draw: draws the page of the folder; called if this process is the last one.
        """
        with self.member.turn():
            lines, others = self.write(), self.member.others()
            print(f"{table(lines)}\n{self.out}", flush=True)
            if not others:
                draw(self.out)
            # The process with the next turn must know whether it is the last one.
            self.member.leave()
        return others


def raise_if_any_failed(comparison: Comparison) -> None:
    """Prints the runs that failed.

    Raises:
        StoppedError: at least one run failed.
    """
    ended = zip(comparison.runs, comparison.results, strict=True)
    failed = [(run, result) for run, result in ended if result.status == "failed"]
    for run, result in failed:
        print(f"{run.title} failed: {result.error}", flush=True)
    if failed:
        raise StoppedError(f"{len(failed)} of {len(comparison.runs)} runs failed; --resume tries them again")
