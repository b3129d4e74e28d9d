"""Predictions whose labels are known, of a run or of a file, to judge them and to fit a temperature."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from jsonargparse import Namespace
from torch import Tensor

from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.sources.load import load_test
from debias_ssl.data.task import Part, make_task
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.labels.matrix import read_predictions
from debias_ssl.labels.temperature import Rescaled, rescale, rescale_in_folds
from debias_ssl.labels.truth import read_labels
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_run
from debias_ssl.system.errors import InputError
from debias_ssl.training.evaluation import predict_logits


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


def rows_of_run(parsed: Namespace, data: DataConfig) -> Evaluated | None:
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


def rows_of_file(parsed: Namespace) -> Evaluated:
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


def rescaled_rows(evaluated: Evaluated, parsed: Namespace) -> Rescaled:
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
