"""`debias-ssl compare`: trains several variants of a run, each with several seeds, and compares them."""

import argparse
from pathlib import Path

from jsonargparse import Namespace

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import num_launched
from debias_ssl.reporting.report import write_report
from debias_ssl.runs.comparison import PLAN_FILE, Comparison, prepare_folder, raise_if_any_failed
from debias_ssl.runs.planned import print_status
from debias_ssl.runs.variants import ComparisonPlan, parse_with_settings, read_plan, requested_plan
from debias_ssl.system.errors import InputError, InUseError, LeftToOthers, only_warned
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import Member, joined
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp

HELP = JobHelp(
    arguments="[--config FILE]... [--SETTING VALUE]...",
    does=(
        "Trains methods, or values of a setting, on the same images over several seeds.\n"
        "The same run on the labels alone is added. Prints a table and paired differences with intervals,\n"
        "and writes report.html."
    ),
    example="debias-ssl compare --config digits --methods FixMatch,DebiasPL --seeds 0,1,2 --out runs/compare",
    guide="compare.md",
)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that compare has in addition to those of train."""
    parser.add_argument("--out", type=str, default=None, help="folder; null is runs/compare_ and the config's name")
    parser.add_argument("--methods", type=str, default=None, help="variants: methods, separated by commas")
    parser.add_argument("--variants", type=str, default=None, help="variants: a YAML file of names and their settings")
    parser.add_argument("--settings", type=str, default=None, help="a YAML file of settings for all variants to run in")
    parser.add_argument("--floor", type=bool, default=True, help="whether to add the run on the labels alone")
    parser.add_argument("--grid", type=str, default=None, help="variants: values of a field, method.strength=0,0.5,1")
    parser.add_argument("--choose_on", choices=["validation"], default=None, help="mark the best value of --grid")
    parser.add_argument("--seeds", type=str, default=None, help="seeds of splits and runs, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; several run in processes of their own")
    parser.add_argument("--wait", type=bool, default=True, help="whether to wait for runs that other processes train")
    parser.add_argument("--report", type=bool, default=True, help="whether to draw report.html at the end")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison in --out")


def _write_page(out: Path) -> None:
    """Writes the page of the finished runs; the comparison is complete without it."""
    with only_warned("no report.html"):
        write_report([out], out / "report.html")
        print(out / "report.html", flush=True)


@entry_point
def main(arguments: list[str]) -> None:
    if num_launched() > 1:
        raise InputError("compare starts its own processes: start it without accelerate launch, and set --jobs")
    parsed, settings = parse_with_settings("compare", HELP, _add_flags, arguments)
    if parsed.jobs < 1:
        raise InputError(f"--jobs is {parsed.jobs}, which must be at least 1")
    files = [Path(str(file)) for file in parsed.config or []]
    out = Path(parsed.out or f"runs/compare_{files[-1].stem if files else 'train'}")
    if parsed.overwrite:
        # A config.yaml in --out would be removed with its run; other configs are not touched.
        check_apart(out, "--out", {"--config": [file for file in files if file.name == "config.yaml"]})
    with joined(out, work="a comparison") as member:
        comparison = Comparison(_prepared(parsed, settings, member), member)
        with ends_told():
            waiting = comparison.begin()
            member.end_first_turn()
            comparison.train(waiting, parsed.jobs, wait=parsed.wait)
            others = comparison.end(_write_page if parsed.report else lambda _: None)
            num_left = sum(result.status == "pending" for result in comparison.results)
            at_work = f"still at work: {', '.join(others)}; the last process writes the final table and the page"
            if others and not num_left:
                print_status(at_work)
            raise_if_any_failed(comparison)
            if num_left:
                raise LeftToOthers(f"runs that are left to other processes: {num_left}; {at_work}")


def _prepared(parsed: Namespace, settings: list[str], member: Member) -> ComparisonPlan:
    """The plan of a command line, after its folder was prepared.

    Raises:
        InputError: a setting is wrong, or the folder may not be written to in this way.
    """
    out, others, recorded = member.folder, member.others(), read_plan(member.folder / PLAN_FILE)
    if others and parsed.overwrite:
        raise InUseError(f"{str(out)!r} is in use by {', '.join(others)}: leave out --overwrite to work on it together")
    resume = not parsed.overwrite and (parsed.resume or bool(others))
    plan, notes = requested_plan(parsed, settings, recorded if resume else None, out)
    if (
        others
        and recorded
        and not (set(plan.variants) <= set(recorded.variants) and {*plan.seeds} <= {*recorded.seeds})
    ):
        raise InUseError(
            f"{str(out)!r} is in use by {', '.join(others)} for other variants or seeds: wait for it, or choose "
            "another --out"
        )
    prepare_folder(out, plan, recorded, resume=resume, overwrite=parsed.overwrite)
    for note in notes:
        print_status(f"note: {note}")
    return plan


if __name__ == "__main__":
    main()
