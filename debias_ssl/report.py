"""`debias-ssl report`: one self-contained page of a run, or of several runs side by side."""

from pathlib import Path

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.reporting.report import NAME, is_own_page, outputs_of, write_report
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.parser import Parser


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
    out = Path(parsed.out or runs[0] / NAME)
    if is_own_page(runs, out):
        # What was made of the same run is replaced; what somebody else put there is not.
        outputs_of(runs[0]).check_foreign([NAME])
        check_new_file(out, "--out", overwrite=True)
    else:
        check_apart(out, "--out", {"the run": runs})
        check_new_file(out, "--out", parsed.overwrite)
    write_report(runs, out)
    print(out)


if __name__ == "__main__":
    main()
