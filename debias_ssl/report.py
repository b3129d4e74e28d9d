"""`debias-ssl report`: writes one self-contained HTML page of a run, or of several runs side by side."""

from pathlib import Path

from jsonargparse import Namespace

from debias_ssl.data.config import DataConfig
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.reporting.report import NAME, is_own_page, outputs_of, write_report
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file, ends_told
from debias_ssl.system.locking import locked, locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser
from debias_ssl.training.saved import no_run_told, parse_data

HELP = JobHelp(
    arguments="RUN... [--out FILE] [--SETTING VALUE]...",
    does=(
        "Draws one page of a run, of several runs, or of a comparison. The page needs no network.\n"
        "It is report.html in the folder of the run, unless --out names another file."
    ),
    example="debias-ssl report runs/digits",
    guide="read-a-run.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("report", HELP)
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or the folder of a comparison")
    parser.add_argument("--out", type=str, default=None, help="the page; null is report.html in the one folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    if any(argument.startswith("--data.") for argument in arguments):
        parsed, data = parse_data(parser, arguments, _only_run)
    else:
        parser.add_class_arguments(DataConfig, "data")
        parsed, data = parser.parse_args(arguments), None
    runs = [Path(run) for run in parsed.runs]
    for run in runs:
        # Before the lock, which would make the folder.
        if not run.is_dir():
            raise InputError(no_run_told(run))
    if parsed.out is None and len(runs) > 1:
        raise InputError("several runs make one page: say where with --out FILE")
    out = Path(parsed.out or runs[0] / NAME)
    is_own = is_own_page(runs, out)
    if not is_own:
        check_apart(out, "--out", {"the run": runs})
    # The page in a run's own folder is one of the run's files.
    with locked(runs[0]) if is_own else locked_file(out, "--out"), ends_told("run the same command again"):
        if is_own:
            # An earlier page of the same run is replaced; any other file is kept.
            outputs_of(runs[0]).check_foreign([NAME])
        check_new_file(out, "--out", is_own or parsed.overwrite)
        write_report(runs, out, data)
    print(out)


def _only_run(parsed: Namespace) -> str:
    if len(parsed.runs) > 1:
        raise InputError("--data flags say where the images of one run are: name that run alone")
    return parsed.runs[0]


if __name__ == "__main__":
    main()
