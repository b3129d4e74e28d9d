"""`debias-ssl evaluate`: the figures of a trained run, or of a matrix of predictions, and what a temperature does."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from jsonargparse import Namespace
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.config import Parser, parse_data
from debias_ssl.data.datasets import DataConfig, load_test
from debias_ssl.data.keyed import Purpose, permutation
from debias_ssl.data.reading import make_reader
from debias_ssl.data.task import Part, make_task
from debias_ssl.errors import InputError
from debias_ssl.evaluation import evaluate_logits, predict_logits
from debias_ssl.files import check_new_file, write_aside
from debias_ssl.predictions import read_predictions
from debias_ssl.processes import is_first
from debias_ssl.rescaling import Rescaled, rescale, rescale_in_folds
from debias_ssl.row_labels import read_labels
from debias_ssl.run_folder import RunFolder, TrainedRun, load_run
from debias_ssl.runtime import entry_point, make_accelerator, place_of

# Flags that one of --run and --predictions does not know.
OF_RUN, OF_PREDICTIONS = {"part", "batch_size", "data"}, {"kind", "classes", "truth", "tune_on"}


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Rows whose labels are known, to be judged, and others that a temperature may be fitted on."""

    logits: Float[Tensor, "N C"]
    labels: Int[Tensor, " N"]
    name: str
    """Of the rows, in words."""
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    held_out: tuple[Float[Tensor, "M C"], Int[Tensor, " M"]] | None = None
    held_out_name: str = ""


@entry_point
def main(arguments: list[str]) -> None:
    parser = Parser(
        prog="debias-ssl evaluate",
        description="Figures of a trained run on test or validation images, or of a file of predictions.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=str, default=None, help="run folder")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images of the run")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--predictions", type=str, default=None, help="instead of a run: .npy, .npz, .csv or .parquet")
    parser.add_argument("--kind", choices=["auto", "logits", "probs"], default="auto", help="what its numbers are")
    parser.add_argument("--classes", type=str, default=None, help="names of its columns: one a line, or a JSON list")
    parser.add_argument("--truth", type=str, default=None, help="CSV of path,label or row,label, or .npy of numbers")
    parser.add_argument("--calibrate", action="store_true", help="fit a temperature, and say what it does")
    parser.add_argument(
        "--tune_on", type=str, default=None, help="rows to fit it on: labels in a file like --truth, or a share of it"
    )
    parser.add_argument(
        "--folds", type=int, default=None, help="instead: fit it on the evaluated rows, in turns of so many folds"
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
        # There is nothing that processes could share.
        if is_first():
            _finish(_of_predictions(parsed), parsed)
    else:
        parsed, data = parse_data(parser, arguments)
        _check(parsed, parser.parse_args(arguments, defaults=False), OF_PREDICTIONS)
        evaluated = _of_run(parsed, data)
        if evaluated is not None:
            _finish(evaluated, parsed)


def _check(parsed: Namespace, given: Namespace, unknown: set[str]) -> None:
    """Raises InputError where flags do not go together, or a file may not be written."""
    source = "--predictions" if unknown is OF_RUN else "--run"
    wrong = sorted(unknown & {*vars(given)})
    if wrong == ["tune_on"]:
        raise InputError("--tune_on is for --predictions: a run's temperature is fitted on its validation images")
    if wrong:
        raise InputError(f"--{wrong[0]} does not go with {source}: leave it out")
    if not parsed.calibrate and (
        asked := [flag for flag in ("tune_on", "folds", "report") if parsed[flag] is not None]
    ):
        raise InputError(f"--{asked[0]} is for calibration: pass --calibrate too")
    if parsed.tune_on is not None and parsed.folds is not None:
        raise InputError("--tune_on and --folds are two ways to fit a temperature: pass one of them")
    if parsed.folds is not None and parsed.folds < 2:
        raise InputError(f"--folds is {parsed.folds}, must be at least 2")
    if parsed.seed < 0:
        raise InputError(f"--seed is {parsed.seed}, must be at least 0")
    for flag in ("out", "report"):
        if parsed[flag]:
            check_new_file(Path(parsed[flag]), f"--{flag}", parsed.overwrite)


def _of_run(parsed: Namespace, data: DataConfig) -> Evaluated | None:
    """What a run's model says of images; None but in the main process."""
    accelerator = make_accelerator("fp32")
    folder = RunFolder(Path(parsed.run))
    run = load_run(folder, accelerator.device)
    needs_held_out = parsed.calibrate and parsed.folds is None
    if needs_held_out and parsed.part == "validation":
        raise InputError(
            "validation images are what the temperature is fitted on: take --part test, or --folds 5 to fit and judge "
            "it on them in turns"
        )
    held_out = None
    if needs_held_out:
        hint = ", or pass --folds 5 to fit and judge the temperature on test images in turns"
        held_out = _predict(run, folder, data, "validation", parsed.batch_size, accelerator, hint)
    logits, labels = _predict(run, folder, data, parsed.part, parsed.batch_size, accelerator)
    if not accelerator.is_main_process:
        return None
    return Evaluated(
        logits=logits,
        labels=labels,
        name=f"{parsed.part} images",
        classes=run.classes,
        labeled_counts=run.labeled_counts,
        held_out=held_out,
        held_out_name="validation images",
    )


def _predict(
    run: TrainedRun,
    folder: RunFolder,
    data: DataConfig,
    part: Part,
    batch_size: int,
    accelerator: Accelerator,
    hint: str = "",
) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    """Logits and labels of the images whose labels are known; the hint is for runs without validation images."""
    place = place_of(accelerator)
    with accelerator.local_main_process_first():
        if part == "test":
            images = load_test(data, run.classes)
            reader = make_reader(images, data, place.device, accelerator.is_local_main_process)
            index, labels = np.arange(len(images)), images.labels
        else:
            task = make_task(data, seed=run.config.seed, place=place, split_file=folder.split)
            if not len(task.split.validation):
                raise InputError(f"the run has no validation images: train with --data.validation_per_class{hint}")
            reader, index = task.readers["train"], task.split.validation
            labels = task.data.train.labels[index]
    stream = run.stream(reader, index, place, batch_size=batch_size)
    logits, truth = predict_logits(run.predictor, stream, len(run.classes)), torch.from_numpy(labels)
    return logits[truth >= 0], truth[truth >= 0]


def _of_predictions(parsed: Namespace) -> Evaluated:
    """The rows of a file; those to fit a temperature on are in no figure."""
    if parsed.truth is None:
        raise InputError("--predictions needs --truth: CSV of path,label or row,label, or .npy of class numbers")
    if parsed.calibrate and parsed.tune_on is None and parsed.folds is None:
        raise InputError(
            "--calibrate needs rows to fit a temperature on: --tune_on FILE of their labels, --tune_on .2 for a fifth "
            "of the rows, or --folds 5 to fit and judge it in turns"
        )
    path = Path(parsed.predictions)
    predictions = read_predictions(path, parsed.kind, Path(parsed.classes) if parsed.classes else None)
    classes, num_rows = predictions.classes, len(predictions.values)
    print(f"{path}: {num_rows} x {len(classes)}, {predictions.kind} ({predictions.found})")
    names = predictions.names
    truth = torch.from_numpy(read_labels(Path(parsed.truth), names, classes))
    if not (truth >= 0).any():
        raise InputError(f"{parsed.truth} labels none of the rows")
    logits = torch.cat([*predictions])
    held_out, held_out_name = None, ""
    if parsed.tune_on is not None:
        tuning, held_out_name = _tuning_labels(parsed, truth, names, classes)
        truth = torch.where(tuning >= 0, -1, truth)
        if not (truth >= 0).any():
            raise InputError(f"--tune_on {parsed.tune_on} leaves no row with a label in {parsed.truth} to judge it on")
        held_out = logits[tuning >= 0], tuning[tuning >= 0]
    return Evaluated(
        logits=logits[truth >= 0],
        labels=truth[truth >= 0],
        name=f"rows of {path}",
        classes=classes,
        labeled_counts=(1,) * len(classes),
        held_out=held_out,
        held_out_name=held_out_name,
    )


def _tuning_labels(
    parsed: Namespace, truth: Int[Tensor, " N"], names: Sequence[str], classes: tuple[str, ...]
) -> tuple[Int[Tensor, " N"], str]:
    """Labels of the rows to fit on, negative elsewhere, and what these rows are: those of a file, or drawn ones."""
    if Path(parsed.tune_on).is_file():
        tuning = torch.from_numpy(read_labels(Path(parsed.tune_on), names, classes))
        if not (tuning >= 0).any():
            raise InputError(f"--tune_on {parsed.tune_on} labels none of the rows")
        return tuning, f"rows of {parsed.tune_on}"
    try:
        share = float(parsed.tune_on)
    except ValueError:
        raise InputError(
            f"there is no file {parsed.tune_on!r}, and it is not a share of the rows, such as .2"
        ) from None
    known = (truth >= 0).nonzero().squeeze(1)
    number = round(share * len(known)) if 0 < share < 1 else 0
    if not 0 < number < len(known):
        raise InputError(
            f"--tune_on {parsed.tune_on} of {len(known)} rows leaves none to fit on, or none to judge it on"
        )
    drawn = known[permutation(parsed.seed, Purpose.TUNING, 0, len(known))[:number]]
    return torch.full_like(truth, -1).index_copy(0, drawn, truth[drawn]), "other rows, drawn at random"


def _rescaled(evaluated: Evaluated, parsed: Namespace) -> Rescaled:
    if evaluated.held_out is not None:
        rescaled = rescale(evaluated.logits, evaluated.labels, evaluated.held_out, evaluated.held_out_name)
    else:
        number = len(evaluated.labels)
        if parsed.folds > number:
            raise InputError(f"--folds is {parsed.folds}, but there are {number} {evaluated.name}")
        folds = permutation(parsed.seed, Purpose.TUNING, 0, number) % parsed.folds
        rescaled = rescale_in_folds(evaluated.logits, evaluated.labels, folds, evaluated.name)
    if rescaled.bound:
        print(
            f"note: a temperature is at {rescaled.bound:g}, the limit of the search: the {rescaled.num_tuned_on} "
            f"{rescaled.tuned_on} that it is fitted on are all right, or no better than chance; fit it on more",
            file=sys.stderr,
        )
    return rescaled


def _finish(evaluated: Evaluated, parsed: Namespace) -> None:
    """Says the figures, and writes what was asked for."""
    if not len(evaluated.labels):
        raise InputError(f"there are no {evaluated.name} whose labels are known")
    rescaled = _rescaled(evaluated, parsed) if parsed.calibrate else None
    figures = evaluate_logits(evaluated.logits, evaluated.labels, torch.tensor(evaluated.labeled_counts))
    for name, value in figures.items():
        if isinstance(value, float):
            print(f"{name:<14}{value:>8.4f} nats" if name == "nll" else f"{name:<14}{100 * value:>8.2f} %")
    recalls = sorted(
        (recall, name) for recall, name in zip(figures["recalls"], evaluated.classes, strict=True) if recall is not None
    )
    print("lowest recall " + ", ".join(f"{name} {100 * recall:.1f} %" for recall, name in recalls[:3]))
    result: dict[str, Any] = {"classes": evaluated.classes, **figures}
    if rescaled is not None:
        print(rescaled.said())
        print(rescaled.table())
        result["calibration"] = rescaled.summary()
        if parsed.report:
            _write(parsed.report, _page(rescaled, evaluated, parsed.run or parsed.predictions))
    if parsed.out:
        _write(parsed.out, json.dumps(result) + "\n")


def _write(path: str, text: str) -> None:
    try:
        write_aside(Path(path), text)
    except OSError as error:
        raise InputError(f"cannot write {path!r}: {error.strerror}") from error
    print(path)


def _page(rescaled: Rescaled, evaluated: Evaluated, source: str) -> str:
    # What draws is slow to import, and not needed to find what is wrong with the input.
    from debias_ssl.reporting.calibration_page import calibration_page
    from debias_ssl.reporting.page import render

    return render(calibration_page(rescaled, source, evaluated.name), __version__)


if __name__ == "__main__":
    main()
