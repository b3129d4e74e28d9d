"""`debias-ssl debias`: labels from any classifier's predictions, with its class bias removed."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import Namespace

from debias_ssl import __version__
from debias_ssl.distributed.device import keep_freed_memory
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.labels.debiasing.config import LABEL_FILES, DebiasConfig
from debias_ssl.labels.debiasing.refinement import check_given, read_vectors, vectors_of
from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.labels.matrix.predictions import column_names, read_predictions, rows_of
from debias_ssl.labels.matrix.reference import matrix_reference
from debias_ssl.labels.output.folder import OutputConfig, check_folder, write_folder
from debias_ssl.labels.tables.truth import say
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import locked
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HELP = JobHelp(
    arguments="--predictions FILE --out FOLDER [--SETTING VALUE]...",
    does=(
        "Removes a classifier's preference for some classes from its predictions: a matrix of logits or\n"
        "probabilities, with a row for each image. Writes labels.csv, probabilities and report.html."
    ),
    example="debias-ssl debias --predictions logits.npy --out labels",
    guide="debias-labels.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("debias", HELP)
    parser.add_argument(
        "--predictions", type=str, required=True, help="N x C matrix: .npy, .npz, .csv, .json, .parquet"
    )
    parser.add_argument("--kind", choices=["auto", "logits", "probs"], default="auto", help="what its numbers are")
    parser.add_argument("--classes", type=str, default=None, help="names of its classes: lines, or JSON; or imagenet")
    parser.add_argument("--columns", type=str, default=None, help="columns of a table that are classes: NAME,NAME,...")
    parser.add_argument("--blank", type=str, default=None, help="such a matrix of images that show nothing")
    parser.add_argument("--features", type=str, default=None, help="N x D .npy of the rows' vectors, to refine by")
    parser.add_argument("--anchors", type=str, default=None, help="C x D .npy of the classes' vectors, in that space")
    parser.add_class_arguments(DebiasConfig, as_group=False)
    parser.add_class_arguments(OutputConfig, as_group=False)
    parser.add_argument("--out", type=str, required=True, help="folder of labels, report.html and more")
    parser.add_argument("--overwrite", action="store_true", help="replace the labels in --out")
    parsed = parser.parse_args(arguments)
    if not is_first():
        return
    keep_freed_memory()
    config = DebiasConfig(**{setting.name: parsed[setting.name] for setting in fields(DebiasConfig)})
    out = Path(parsed.out)
    inputs = {
        f"--{name}": parsed[name] for name in ("predictions", "classes", "blank", "features", "anchors", *LABEL_FILES)
    }
    check_apart(out, "--out", inputs)
    with locked(out), ends_told("run the same command again"):
        check_folder(out, parsed.overwrite)
        _debias(parsed, config, out)


def _debias(parsed: Namespace, config: DebiasConfig, out: Path) -> None:
    check_given(config, bool(parsed.features), bool(parsed.anchors))
    path, classes = Path(parsed.predictions), Path(parsed.classes) if parsed.classes else None
    columns = column_names(parsed.columns) if parsed.columns else None
    predictions = read_predictions(path, parsed.kind, classes, columns)
    print(f"{path}: {predictions.told()}")
    blank = None
    if parsed.blank:
        blank = read_predictions(Path(parsed.blank), parsed.kind, classes, columns)
        print(f"{parsed.blank}: {blank.told()}")
    reference = None
    if config.reference:
        reference, told = matrix_reference(Path(config.reference), predictions, parsed.kind, classes, columns)
        print(told)
    rows = rows_of(predictions, config, path, blank, reference)
    if parsed.features:
        features, anchors = (read_vectors(Path(file)) for file in (parsed.features, parsed.anchors))
        vectors = vectors_of(features, anchors, len(rows.names), rows.classes, (parsed.features, parsed.anchors))
        rows = replace(rows, features=vectors.chunks, anchors=vectors.anchors)
    say(rows.said)
    facts = [f"{len(predictions.values):,} rows of {path}", f"{predictions.kind}: {predictions.found.words}"]
    files = OutputConfig(probs=parsed.probs, table=parsed.table)

    def page(labeling: Labeling) -> str:
        return _page(labeling, facts)

    further = {"kind": predictions.kind, "predictions": os.path.abspath(path)}
    print(write_folder(rows, config, out, page, further, files=files))


def _page(labeling: Labeling, facts: Sequence[str]) -> str:
    # The drawing code is slow to import, and not needed to find errors in the input.
    from debias_ssl.reporting.labels_page import labels_page
    from debias_ssl.reporting.page import render

    return render(labels_page(labeling, facts=facts, features=None, pictures=None), __version__)


if __name__ == "__main__":
    main()
