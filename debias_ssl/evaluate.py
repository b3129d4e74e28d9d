"""`debias-ssl evaluate`: metrics of a trained run or a matrix of predictions, before and after temperature scaling."""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from debias_ssl import __version__
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.formulas import metrics
from debias_ssl.labels.matrix.known import Evaluated, rescaled_rows, rows_of_matrix, rows_of_run
from debias_ssl.labels.matrix.predictions import column_names, read_predictions
from debias_ssl.labels.matrix.temperature import Rescaled
from debias_ssl.labels.output.summary import FEW_ROWS, interval_text
from debias_ssl.labels.tables.truth import say
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError, StoppedError, reason
from debias_ssl.system.files import check_new_file, ends_told, undisturbed, write_aside
from debias_ssl.system.locking import locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.evaluation import evaluate_rows
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser
from debias_ssl.training.saved import parse_data

# Flags that work only with --run, and flags that work only with --predictions.
OF_RUN, OF_PREDICTIONS = {"part", "batch_size", "data"}, {"kind", "classes", "columns", "truth", "tune_on"}

HELP = JobHelp(
    arguments="--run RUN | --predictions FILE --truth FILE [--SETTING VALUE]...",
    does=(
        "Prints accuracy, recall of each class and calibration of a trained run, or of a file of predictions.\n"
        "--calibrate fits a temperature; --report draws the page."
    ),
    example="debias-ssl evaluate --run runs/digits",
    guide="calibration.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("evaluate", HELP, allow_abbrev=False)
    parser.add_argument("--run", type=str, default=None, help="run folder")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images of the run")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--predictions", type=str, default=None, help="instead of a run: .npy, .csv, .json, .parquet")
    parser.add_argument("--kind", choices=["auto", "logits", "probs"], default="auto", help="what its numbers are")
    parser.add_argument("--classes", type=str, default=None, help="names of its classes: lines, or JSON; or imagenet")
    parser.add_argument("--columns", type=str, default=None, help="columns of a table that are classes: NAME,NAME,...")
    parser.add_argument("--truth", type=str, default=None, help="CSV of path,label or row,label, or .npy of numbers")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature, and print its effect")
    parser.add_argument(
        "--tune_on", type=str, default=None, help="rows to fit it on: labels in a file like --truth, or a share of it"
    )
    parser.add_argument(
        "--folds", type=int, default=None, help="instead: fit it on the evaluated rows, with this number of folds"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the rows that a share or folds are drawn of")
    parser.add_argument("--out", type=str, default=None, help="JSON file to write the figures to")
    parser.add_argument("--report", type=str, default=None, help="HTML page of reliability to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the files in --out and --report")
    sources = {argument.split("=")[0] for argument in arguments} & {"--run", "--predictions"}
    if len(sources) != 1 and not {"-h", "--help"} & {*arguments}:
        raise InputError("say what to evaluate: --run FOLDER, or --predictions FILE with --truth FILE")
    if sources == {"--predictions"}:
        parsed = parser.parse_args(arguments)
        _check(parsed, parser.parse_args(arguments, defaults=False), OF_RUN)
        # One process does the work, because processes could share nothing.
        if is_first():
            with _writing(parsed):
                _finish(_of_file(parsed), parsed)
    else:
        parsed, data = parse_data(parser, arguments)
        _check(parsed, parser.parse_args(arguments, defaults=False), OF_PREDICTIONS)
        with _writing(parsed) if is_first() else nullcontext():
            evaluated = rows_of_run(
                RunFolder(Path(parsed.run)),
                data,
                parsed.part,
                batch_size=parsed.batch_size,
                needs_held_out=parsed.calibrate and parsed.folds is None,
            )
            if evaluated is not None:
                _finish(evaluated, parsed)


@contextmanager
def _writing(parsed: Namespace) -> Iterator[None]:
    """Keeps other jobs from writing the files of this job."""
    with ExitStack() as stack:
        files = {f"--{flag}": Path(parsed[flag]) for flag in ("out", "report") if parsed[flag]}
        for flag, path in files.items():
            stack.enter_context(locked_file(path, flag))
        for flag, path in files.items():
            check_new_file(path, flag, parsed.overwrite)
        stack.enter_context(ends_told("run the same command again"))
        yield


def _of_file(parsed: Namespace) -> Evaluated:
    path = Path(parsed.predictions)
    columns = column_names(parsed.columns) if parsed.columns else None
    predictions = read_predictions(path, parsed.kind, Path(parsed.classes) if parsed.classes else None, columns)
    print(f"{path}: {predictions.told()}")
    evaluated = rows_of_matrix(predictions, path, Path(parsed.truth), parsed.tune_on, parsed.seed)
    say(evaluated.said)
    return evaluated


def _check(parsed: Namespace, given: Namespace, unknown: set[str]) -> None:
    """Raises InputError if flags do not fit together, or if a file may not be written."""
    source = "--predictions" if unknown is OF_RUN else "--run"
    wrong = sorted(unknown & {*vars(given)})
    if wrong == ["tune_on"]:
        raise InputError(
            "--tune_on works with --predictions only: the temperature of a run is fitted on its validation images"
        )
    if wrong:
        raise InputError(f"--{wrong[0]} does not go with {source}: leave it out")
    if not parsed.calibrate and (
        asked := [flag for flag in ("tune_on", "folds", "report") if parsed[flag] is not None]
    ):
        raise InputError(f"--{asked[0]} needs --calibrate: pass it too")
    if parsed.tune_on is not None and parsed.folds is not None:
        raise InputError("--tune_on and --folds are two ways to fit a temperature: pass one of them")
    if parsed.folds is not None and parsed.folds < 2:
        raise InputError(f"--folds is {parsed.folds}, must be at least 2")
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}, must be at least 0")
    inputs = {f"--{name}": parsed[name] for name in ("run", "predictions", "classes", "truth", "tune_on")}
    for flag in ("out", "report"):
        if parsed[flag]:
            check_apart(parsed[flag], f"--{flag}", inputs)
    if parsed.out and parsed.report and Path(parsed.out).resolve() == Path(parsed.report).resolve():
        raise InputError(f"--out and --report are both {parsed.out!r}: choose two files")
    if source == "--predictions":
        _check_rows(parsed)
    elif parsed.calibrate and parsed.folds is None and parsed.part == "validation":
        raise InputError(
            "the temperature is fitted on the validation images: pass --part test, or --folds 5 for "
            "cross-validation on them"
        )


def _check_rows(parsed: Namespace) -> None:
    """Raises InputError if the true labels, or the rows to fit a temperature on, are not given."""
    if parsed.truth is None:
        raise InputError("--predictions needs --truth: CSV of path,label or row,label, or .npy of class numbers")
    if parsed.calibrate and parsed.tune_on is None and parsed.folds is None:
        raise InputError(
            "--calibrate needs rows to fit a temperature on: --tune_on FILE with their labels, --tune_on 0.2 for "
            "a fifth of the rows, or --folds 5 for cross-validation"
        )


def _finish(evaluated: Evaluated, parsed: Namespace) -> None:
    """Writes the requested files, and prints the figures."""
    if not len(evaluated.rows):
        raise InputError(f"there are no {evaluated.name} whose labels are known")
    rescaled = rescaled_rows(evaluated, parsed.folds, parsed.seed) if parsed.calibrate else None
    if rescaled is not None and (warning := rescaled.warning()):
        print(f"note: {warning}", file=sys.stderr)
    figures = evaluate_rows(evaluated.rows, torch.tensor(evaluated.labeled_counts))
    result: dict[str, Any] = {"classes": evaluated.classes, **figures, **_bounds(figures, evaluated)}
    if rescaled is not None:
        result["calibration"] = rescaled.summary()
    page, undrawn = None, None
    if rescaled is not None and parsed.report:
        try:
            page = _page(rescaled, evaluated, parsed.run or parsed.predictions)
        except Exception as error:
            # The figures are written in spite of this error.
            undrawn = error
    _say(result, rescaled)
    # Both files or none, even if a signal comes in between.
    with undisturbed():
        for path, text in ((parsed.out, json.dumps(result) + "\n"), (parsed.report, page)):
            if path and text is not None:
                write_aside(Path(path), text)
                print(path)
    if undrawn is not None:
        told = f"cannot draw --report {parsed.report!r}: {type(undrawn).__name__}: {reason(undrawn)}"
        raise StoppedError(told) from undrawn


def _bounds(figures: dict[str, Any], evaluated: Evaluated) -> dict[str, Any]:
    """The number of rows behind the figures, and the intervals of accuracy and recalls."""
    confusion = torch.tensor(figures["confusion"])
    return {
        "num": len(evaluated.rows.labels),
        "num_known": len(evaluated.rows),
        "accuracy_interval": metrics.accuracy_interval(confusion),
        "recall_intervals": metrics.recall_intervals(confusion),
    }


def _say(result: dict[str, Any], rescaled: Rescaled | None) -> None:
    print(f"known         {result['num_known']} of {result['num']} rows")
    for name, value in result.items():
        if isinstance(value, float):
            few = name == "accuracy" and result["num_known"] < FEW_ROWS
            interval = f"   (95 % interval: {interval_text(result['accuracy_interval'])})" if few else ""
            print(f"{name:<14}{value:>8.4f} nats" if name == "nll" else f"{name:<14}{100 * value:>8.2f} %{interval}")
    of_class = zip(result["classes"], result["recalls"], result["recall_intervals"], strict=True)
    lowest = sorted((recall, name, bounds) for name, recall, bounds in of_class if recall is not None)[:3]
    print("lowest recall " + ", ".join(f"{name} {100 * r:.1f} % ({interval_text(b)})" for r, name, b in lowest))
    if rescaled is not None:
        print(rescaled.said())
        print(rescaled.table())


def _page(rescaled: Rescaled, evaluated: Evaluated, source: str) -> str:
    # The drawing code is slow to import, and not needed to find errors in the input.
    from debias_ssl.reporting.calibration_page import calibration_page
    from debias_ssl.reporting.page import render

    return render(calibration_page(rescaled, source, evaluated.name), __version__)


if __name__ == "__main__":
    main()
