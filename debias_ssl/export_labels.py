"""`debias-ssl export-labels`: exports labels to annotation tools, class folders or data sets."""

from dataclasses import fields
from pathlib import Path

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.labels.annotation.exports import FORMATS, ExportConfig, outputs_in, write_export
from debias_ssl.labels.annotation.labeled_rows import chosen_rows, read_labeled_rows, root_of
from debias_ssl.labels.tables.truth import say
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HELP = JobHelp(
    arguments="LABELS --to FORMAT --out FOLDER [--SETTING VALUE]...",
    does=(
        "Writes labels for an annotation tool or a library: Label Studio, FiftyOne, cleanlab,\n"
        "Hugging Face datasets, Parquet, or a folder for each class."
    ),
    example="debias-ssl export-labels labels --to label-studio --out tasks",
    guide="annotation.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("export-labels", HELP)
    parser.add_argument("labels", type=str, help="folder of label, debias, vote or import-labels, or a table of labels")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument("--root", type=str, default=None, help="what paths are relative to; null is what the job had")
    parser.add_argument("--only", type=str, default=None, help="a list of paths: these rows alone, in its order")
    parser.add_class_arguments(ExportConfig, as_group=False)
    parser.add_argument("--out", type=str, required=True, help="folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the export in --out")
    parsed = parser.parse_args(arguments)
    config = ExportConfig(**{setting.name: parsed[setting.name] for setting in fields(ExportConfig)})
    config.check(parsed.to)
    labels, out = Path(parsed.labels), Path(parsed.out)
    root = root_of(labels, parsed.root)
    check_apart(out, "--out", {"LABELS": labels, "--root": root, "--only": parsed.only, "--truth": parsed.truth})
    with locked(out), ends_told("run the same command again"):
        outputs_in(out).check_replaceable(parsed.overwrite)
        rows = read_labeled_rows(labels)
        say(f"note: {note}" for note in rows.notes)
        if parsed.only is not None:
            rows = chosen_rows(rows, Path(parsed.only))
        lines = write_export(rows, parsed.to, config, root, parsed.root, out)
        say(lines)
    print(f"{len(rows)} rows written for {parsed.to}: {out}")


if __name__ == "__main__":
    main()
