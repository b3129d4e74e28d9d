"""`debias-ssl compare`: runs of several variants and seeds, which differ in what is said and in nothing else."""

import argparse
from pathlib import Path
from typing import Any

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import num_launched
from debias_ssl.reporting.report import write_report
from debias_ssl.runs.comparison import RECORD, check_folder, clear, compare, jobs_of, raise_failures, say
from debias_ssl.runs.variants import asked_comparison, naming_methods, read_record
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import writing
from debias_ssl.system.locking import locked
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this job beside those of train."""
    parser.add_argument("--out", type=str, default=None, help="folder; null is runs/compare_ and the config's name")
    parser.add_argument("--methods", type=str, default=None, help="variants: methods, with commas between")
    parser.add_argument("--variants", type=str, default=None, help="variants: a YAML file of names and their settings")
    parser.add_argument("--grid", type=str, default=None, help="variants: values of a field, method.strength=0,.5,1")
    parser.add_argument("--choose_on", choices=["validation"], default=None, help="mark the best value of --grid")
    parser.add_argument("--seeds", type=str, default=None, help="seeds of splits and runs, with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each a process of its own if several")
    parser.add_argument("--report", type=bool, default=True, help="whether to draw report.html at the end")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the comparison in --out")


def _parse(arguments: list[str]) -> tuple[Any, list[str]]:
    """The values of this job's flags, and the other arguments, which are train's."""
    parser, own = make_parser("compare", Config), argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_flags(parser)
    _add_flags(own)
    with naming_methods():
        parsed = parser.read_arguments(arguments)
    return parsed, own.parse_known_args(arguments)[1]


def _draw(out: Path) -> None:
    """The page of what is finished; the comparison is whole without it."""
    try:
        write_report([out], out / "report.html")
        print(out / "report.html", flush=True)
    except InputError as error:
        say(f"note: no report.html: {error}")


@entry_point
def main(arguments: list[str]) -> None:
    if num_launched() > 1:
        raise InputError("compare starts its own processes: run it without accelerate launch, with --jobs")
    parsed, settings = _parse(arguments)
    if parsed.jobs < 1:
        raise InputError(f"--jobs is {parsed.jobs}, which must be at least 1")
    files = [Path(str(file)) for file in parsed.config or []]
    out = Path(parsed.out or f"runs/compare_{files[-1].stem if files else 'train'}")
    with locked(out):
        recorded = read_record(out / RECORD)
        comparison, notes = asked_comparison(
            parsed, settings, recorded if parsed.resume and not parsed.overwrite else None, out
        )
        jobs = jobs_of(comparison, out)
        check_folder(out, jobs, recorded, parsed)
        if parsed.overwrite:
            clear(out, [*jobs, *(jobs_of(recorded, out) if recorded else [])])
        for note in notes:
            say(f"note: {note}")
        with writing(out):
            results = compare(comparison, out, parsed.jobs)
            if parsed.report:
                _draw(out)
            raise_failures(results)


if __name__ == "__main__":
    main()
