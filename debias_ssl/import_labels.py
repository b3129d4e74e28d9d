"""`debias-ssl import-labels`: merges corrections by people or tools into labels, and records who said what."""

from pathlib import Path
from typing import get_args

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.labels.annotation.corrections import Issues, read_statements
from debias_ssl.labels.annotation.labeled_rows import read_labeled_rows
from debias_ssl.labels.annotation.merging import Conflicts, merge, outputs_in, told, write_merged
from debias_ssl.labels.tables.truth import say
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HELP = JobHelp(
    arguments="LABELS --corrections FILE... --out FOLDER [--SETTING VALUE]...",
    does=(
        "Merges corrections, which people or tools made, into labels.\n"
        "Writes a label file with the source of each label."
    ),
    example="debias-ssl import-labels labels --corrections export.json --out corrected",
    guide="annotation.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("import-labels", HELP)
    parser.add_argument("labels", type=str, help="folder of label, debias, vote or import-labels, or a table of labels")
    parser.add_argument(
        "--corrections", type=str, nargs="+", required=True, help="exports of tools, or tables of path and label"
    )
    parser.add_argument("--field", type=str, default=None, help="name of the choices, field or column of the labels")
    parser.add_argument(
        "--conflicts", choices=get_args(Conflicts), default="stop", help="where an image has several labels"
    )
    parser.add_argument(
        "--issues", choices=get_args(Issues), default="relabel", help="a label that cleanlab holds to be wrong"
    )
    parser.add_argument("--new_classes", action="store_true", help="take labels that are no classes yet for new ones")
    parser.add_argument("--out", type=str, required=True, help="folder of labels.csv, corrections.csv and classes.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the merged labels in --out")
    parsed = parser.parse_args(arguments)
    labels, out = Path(parsed.labels), Path(parsed.out)
    check_apart(out, "--out", {"LABELS": labels, "--corrections": parsed.corrections})
    with locked(out), ends_told("run the same command again"):
        outputs_in(out).check_replaceable(parsed.overwrite)
        rows = read_labeled_rows(labels)
        say(f"note: {note}" for note in rows.notes)
        several = [read_statements(Path(each), rows, parsed.field, parsed.issues) for each in parsed.corrections]
        merged = merge(rows, several, parsed.conflicts, parsed.new_classes)
        write_merged(merged, out)
    say(f"note: {note}" for note in merged.notes)
    say(told(merged, several))
    print(out)


if __name__ == "__main__":
    main()
