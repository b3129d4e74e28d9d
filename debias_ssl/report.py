"""`debias-ssl report`: one self-contained page of a run, or of several side by side."""

from pathlib import Path

from debias_ssl import __version__
from debias_ssl.config import Parser
from debias_ssl.errors import InputError
from debias_ssl.files import check_new_file, write_aside
from debias_ssl.reporting.comparison_page import comparison_page, holds_comparison, read_comparison, read_variants
from debias_ssl.reporting.inspection import read_run
from debias_ssl.reporting.page import render
from debias_ssl.reporting.run_page import run_page
from debias_ssl.runtime import entry_point

NAME = "report.html"


def write_report(runs: list[Path], out: Path) -> None:
    """Writes the page of a run, of several runs, or of the folder of a comparison.

    Raises:
        InputError: a folder holds no finished run, or its files do not fit together.
    """
    if len(runs) == 1 and holds_comparison(runs[0]):
        page = comparison_page(read_comparison(runs[0]), str(runs[0]))
    elif len(runs) == 1:
        page = run_page(read_run(runs[0]))
    else:
        page = comparison_page(read_variants(runs), f"{len(runs)} runs")
    try:
        write_aside(out, render(page, __version__))
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror}") from error


@entry_point
def main(arguments: list[str]) -> None:
    parser = Parser(prog="debias-ssl report", description="A page of a run, of several runs, or of a comparison.")
    parser.add_argument("runs", type=str, nargs="+", help="run folders, or the folder of a comparison")
    parser.add_argument("--out", type=str, default=None, help="the page; null is report.html in the one folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parsed = parser.parse_args(arguments)
    runs = [Path(run) for run in parsed.runs]
    if parsed.out is None and len(runs) > 1:
        raise InputError("several runs make one page: say where with --out FILE")
    out = Path(parsed.out) if parsed.out else runs[0] / NAME
    # A page beside its run is made anew from it; any other file may be somebody's.
    check_new_file(out, "--out", parsed.overwrite or not parsed.out)
    write_report(runs, out)
    print(out)


if __name__ == "__main__":
    main()
