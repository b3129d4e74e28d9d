"""`debias-ssl trial`: tests on halves of the labels whether unlabeled images help, then trains the better choice."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from debias_ssl.contract import Place
from debias_ssl.data.last_task import LastTask
from debias_ssl.data.splits import save_split
from debias_ssl.data.task import Task
from debias_ssl.distributed.device import chosen_device
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import num_launched
from debias_ssl.runs.comparison import PlannedRun, planned_runs, print_status, train_in_processes, train_in_this_process
from debias_ssl.runs.folder import TRIAL, RunFolder
from debias_ssl.runs.halves import Verdict, agreement, halved, judged_images
from debias_ssl.runs.pairing import blocks_of
from debias_ssl.runs.summary import summary_table
from debias_ssl.runs.tables import aligned
from debias_ssl.runs.taught_variants import teacher_of
from debias_ssl.runs.variants import ComparisonPlan, parse_with_settings, requested_plan
from debias_ssl.system.errors import InputError, StoppedError
from debias_ssl.system.files import ends_told, write_aside, writes
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import Outputs, check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import named_class
from debias_ssl.training.saved import config_from

HALVES = "halves"

HELP = JobHelp(
    arguments="[--config FILE]... [--SETTING VALUE]...",
    does=(
        "Finds out whether unlabeled images help, by runs on halves of the labels. It reads no test image.\n"
        "Then trains the variant that helps, or on the labels alone where none does."
    ),
    example="debias-ssl trial --config digits --methods DebiasPL,FixMatch --out runs/trial",
    guide="trial.md",
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that trial has in addition to those of train."""
    parser.add_argument("--out", type=str, required=True, help="folder of all runs; the same command goes on in it")
    parser.add_argument("--methods", type=str, default=None, help="methods to try, separated by commas; else --method")
    parser.add_argument("--variants", type=str, default=None, help="to try: a YAML file of names and their settings")
    parser.add_argument("--divisions", type=int, default=2, help="of the labels into halves; more are more reliable")
    parser.add_argument("--margin", type=float, default=0.05, help="gain in agreement from which unlabeled images help")
    parser.add_argument("--judged", type=int, default=5000, help="unlabeled images on which agreement is measured")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; several run in processes of their own")
    parser.add_argument("--train", type=bool, default=True, help="whether to train what was chosen on all labels")


@dataclass(frozen=True, kw_only=True)
class _Half:
    """One half of the labels, and the runs on it."""

    name: str
    split: Path
    runs: Sequence[PlannedRun]

    def run(self, variant: str) -> Path:
        return next(run.path for run in self.runs if run.variant == variant)


@entry_point
def main(arguments: list[str]) -> None:
    if num_launched() > 1:
        raise InputError("trial starts its own processes: start it without accelerate launch, and set --jobs")
    parsed, settings = parse_with_settings("trial", HELP, _add_flags, arguments)
    for name, least in (("divisions", 1), ("judged", 1), ("jobs", 1)):
        if parsed[name] < least:
            raise InputError(f"--{name} is {parsed[name]}, must be at least {least}")
    if not 0 <= parsed.margin < 1:
        raise InputError(f"--margin is {parsed.margin}, must be in [0, 1)")
    if not parsed.methods and not parsed.variants:
        chosen = named_class(parsed.method)
        parsed.methods = chosen and chosen.__name__
    out = Path(parsed.out)
    with locked(out):
        plan = _plan(parsed, settings, out)
        Outputs(folder=out, kind="a trial", names=(TRIAL, HALVES, "runs")).claim(TRIAL, HALVES, "runs")
        last, place = LastTask(), Place(device=chosen_device(None))
        with ends_told("the same command goes on"):
            verdict = _verdict(parsed, plan, out, last, place)
            write_aside(out / TRIAL, json.dumps(verdict.record(), indent=1) + "\n")
            print(f"{aligned(verdict.lines())}\nmean agreement over classes, percent; * chosen\n{verdict.why}")
            if parsed.train:
                _train_chosen(verdict, plan, out)


def _plan(parsed: Any, settings: list[str], out: Path) -> ComparisonPlan:
    """The variants, and the labels-only runs that they must exceed.

    Raises:
        InputError: the variants do not have the same images and labels.
    """
    compared = {"grid": None, "settings": None, "choose_on": None, "seeds": None, "floor": True}
    for name, value in compared.items():
        parsed[name] = value
    plan, notes = requested_plan(parsed, settings, None, out)
    if not plan.floors:
        raise InputError("there is nothing to try: all variants are trained on the labels alone")
    if len(blocks_of(plan.variants, plan.floors)) > 1:
        raise InputError("the variants have different images or labels: compare them with debias-ssl compare")
    for run in planned_runs(plan, out):
        check_apart(out, "--out", run.inputs)
    for note in notes:
        print_status(f"note: {note}")
    return plan


def _verdict(parsed: Any, plan: ComparisonPlan, out: Path, last: LastTask, place: Place) -> Verdict:
    """Trains on all halves, and measures their agreement."""
    seed = plan.seeds[0]

    def task_of(variant: str) -> Task:
        return last.make(config_from({**plan.variants[variant], "seed": seed}).data, seed=seed, place=place)

    task = task_of(next(iter(plan.floors.values())))
    images = judged_images(task.split, seed, parsed.judged)
    if not len(images):
        raise InputError("all unlabeled images have labels: the trial needs unlabeled images without labels")
    halves = [*_halves(parsed.divisions, plan, out, task)]
    runs = [run for half in halves for run in half.runs]
    titled = [replace(run, title=f"[{i}/{len(runs)}] {run.title}") for i, run in enumerate(runs, start=1)]
    _train(titled, parsed.jobs)
    pairs = [*zip(halves[::2], halves[1::2], strict=True)]
    agreements = {
        name: np.array([agreement(a.run(name), b.run(name), task_of(name), images, place) for a, b in pairs])
        for name in plan.variants
    }
    return Verdict(agreements=agreements, floors=plan.floors, margin=parsed.margin)


def _halves(divisions: int, plan: ComparisonPlan, out: Path, task: Task) -> Iterator[_Half]:
    """The halves of each division; writes their splits."""
    classes = task.training_labels[task.split.labeled]
    folder = out / HALVES
    with writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(divisions):
        for letter, split in zip("ab", halved(task.split, classes, plan.seeds[0], number), strict=True):
            name = f"{number + 1}{letter}"
            file = folder / f"{name}.json"
            save_split(file, split, task.data.classes, task.fingerprint)
            variants = {
                variant: {**own, "data": {**own["data"], "split": str(file)}} for variant, own in plan.variants.items()
            }
            runs = planned_runs(replace(plan, variants=variants), folder / name)
            yield _Half(name=name, split=file, runs=[replace(run, title=f"{run.variant}, half {name}") for run in runs])


def _train(runs: Sequence[PlannedRun], jobs: int) -> None:
    """Trains the runs that are not finished.

    Raises:
        InputError: a folder holds a run of other settings.
        StoppedError: a run failed.
    """
    waiting = [run for run in runs if not run.is_finished()]
    with closing(train_in_this_process(waiting) if jobs == 1 else train_in_processes(waiting, jobs)) as ended:
        for run, error in ended:
            if error is not None:
                raise StoppedError(f"{run.title} failed: {error}")


def _train_chosen(verdict: Verdict, plan: ComparisonPlan, out: Path) -> None:
    """Trains the chosen variant on all labels, after its teacher if it has one; its folder has the reason."""
    chosen = verdict.chosen
    teacher = teacher_of(chosen, plan.variants[chosen])
    kept = {name: plan.variants[name] for name in (teacher, chosen) if name is not None}
    runs = planned_runs(replace(plan, variants=kept), out / "runs")
    _train(runs, 1)
    folder = RunFolder(runs[-1].path)
    folder.write_json(TRIAL, verdict.record())
    print(f"{summary_table(folder.read_summary())}\n{folder.path}; a page of it: debias-ssl report {folder.path}")


if __name__ == "__main__":
    main()
