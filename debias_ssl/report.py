"""`debias-ssl report`: one self-contained page of a run, or of several runs side by side."""

from pathlib import Path

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.reporting.report import write_report
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file
from debias_ssl.training.parser import Parser

NAME = "report.html"


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
    # The default file was made from the same run and is replaced; any other file may hold something else.
    check_new_file(out, "--out", parsed.overwrite or not parsed.out)
    write_report(runs, out)
    print(out)


if __name__ == "__main__":
    main()
