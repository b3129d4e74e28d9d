"""Predictions with known labels, from a run or a file, for metrics and to fit a temperature."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.sources.images import fingerprint, left_out_notes
from debias_ssl.data.sources.load import load_test
from debias_ssl.data.task import Part, make_task
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.labels.matrix.known_rows import KnownRows, LogitFile
from debias_ssl.labels.matrix.predictions import Predictions
from debias_ssl.labels.matrix.temperature import Rescaled, rescale, rescale_in_folds
from debias_ssl.labels.tables.truth import read_labels
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError
from debias_ssl.training.evaluation import gathered_batches

if TYPE_CHECKING:
    import accelerate


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Rows with known labels to evaluate, and other rows to fit a temperature on."""

    rows: KnownRows
    name: str
    """Of the rows, in words."""
    classes: tuple[str, ...]
    labeled_counts: tuple[int, ...]
    held_out: KnownRows | None = None
    held_out_name: str = ""
    said: tuple[str, ...] = ()
    """What is to be said of the files of labels, line by line."""


def rows_of_run(
    folder: RunFolder, data: DataConfig, part: Part, *, batch_size: int, needs_held_out: bool
) -> Evaluated | None:
    """What a run's model says of images; None but in the main process.

    Args:
        folder: the run.
        data: the data setting that the images are of.
        part: which images.
        batch_size: images that pass through the network at a time.
        needs_held_out: whether its validation images are predicted too, to fit a temperature on.

    Raises:
        InputError: the run is not finished, or has not the images that are asked for.
    """
    accelerator = make_accelerator("fp32")
    run = load_trained(folder, accelerator.device)
    held_out = None
    if needs_held_out:
        hint = ", or pass --folds 5 for cross-validation of the temperature on test images"
        held_out = _predict(run, folder, data, "validation", batch_size, accelerator, hint)
    rows = _predict(run, folder, data, part, batch_size, accelerator)
    if not accelerator.is_main_process:
        return None
    return Evaluated(
        rows=rows,
        name=f"{part} images",
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
    accelerator: "accelerate.Accelerator",
    hint: str = "",
) -> KnownRows:
    """Images whose labels are known, predicted into a file; in processes other than the main one it stays empty.

    The hint is for runs without validation images.
    """
    place = place_of(accelerator)
    with first_of_each_host_first(accelerator):
        if part == "test":
            images = load_test(data, run.classes)
            reader = make_reader(images, data, place.device, accelerator.is_local_main_process)
            index, labels = np.arange(len(images)), images.labels
        else:
            task = make_task(data, seed=run.config.seed, place=place, split_file=folder.split)
            if not len(task.split.validation):
                raise InputError(f"the run has no validation images: train with --data.validation_per_class{hint}")
            reader, index = task.readers["train"], task.split.validation
            images, labels = task.data.train, task.data.train.labels[index]
    for note in (*left_out_notes(images), *images.notes) if accelerator.is_main_process else ():
        print(f"note: {note}", file=sys.stderr)
    check_agreement(
        lambda: {
            "the hash of --run": folder.hash_of_model(),
            "the hash of the images": fingerprint(images),
            f"the list of {part} images": sha256(index.tobytes()).hexdigest(),
        }
    )
    stream = run.stream(reader, index, place, batch_size=batch_size)
    matrix = LogitFile(len(run.classes))
    for first, logits in gathered_batches(run.predictor, stream, len(run.classes)):
        if accelerator.is_main_process:
            matrix.write(first, logits)
    return KnownRows(matrix=matrix, labels=torch.from_numpy(labels))


def rows_of_matrix(
    predictions: Predictions, source: Path, truth_file: Path, tune_on: str | None, seed: int
) -> Evaluated:
    """The rows of a matrix; those to fit a temperature on are in no figure.

    Args:
        predictions: the matrix.
        source: its file, for people.
        truth_file: labels of rows, as `read_labels` takes them.
        tune_on: such a file of the rows to fit on, or a share of the rows with labels, as text; None is none.
        seed: of the rows that a share is drawn of.

    Raises:
        InputError: a file does not fit the matrix, or no row is left to fit on or to judge.
    """
    classes, names = predictions.classes, predictions.names
    known = read_labels(truth_file, names, classes)
    truth, said = torch.from_numpy(known.labels), known.said
    if not (truth >= 0).any():
        raise InputError(f"{truth_file} labels none of the rows")
    held_out, held_out_name = None, ""
    if tune_on is not None:
        tuning, held_out_name, more = _tuning_labels(tune_on, seed, truth, names, classes)
        said += more
        truth = torch.where(tuning >= 0, -1, truth)
        if not (truth >= 0).any():
            raise InputError(f"--tune_on {tune_on} leaves no row with a label in {truth_file} to evaluate on")
        held_out = KnownRows(matrix=predictions, labels=tuning)
    return Evaluated(
        rows=KnownRows(matrix=predictions, labels=truth),
        name=f"rows of {source}",
        classes=classes,
        labeled_counts=(1,) * len(classes),
        held_out=held_out,
        held_out_name=held_out_name,
        said=said,
    )


def _tuning_labels(
    tune_on: str, seed: int, truth: Int[Tensor, " N"], names: Sequence[str], classes: tuple[str, ...]
) -> tuple[Int[Tensor, " N"], str, tuple[str, ...]]:
    """Labels of the rows to fit on, negative elsewhere, what these rows are (of a file, or drawn), and what is said."""
    if Path(tune_on).is_file():
        found = read_labels(Path(tune_on), names, classes)
        if not (found.labels >= 0).any():
            raise InputError(f"--tune_on {tune_on} labels none of the rows")
        return torch.from_numpy(found.labels), f"rows of {tune_on}", found.said
    try:
        share = float(tune_on)
    except ValueError:
        raise InputError(
            f"--tune_on {tune_on!r} is neither an existing file nor a share of the rows, such as 0.2"
        ) from None
    known = (truth >= 0).nonzero().squeeze(1)
    number = round(share * len(known)) if 0 < share < 1 else 0
    if not 0 < number < len(known):
        raise InputError(f"--tune_on {tune_on} of {len(known)} rows leaves no row to fit on, or no row to evaluate on")
    drawn = known[permutation(seed, Purpose.TUNING, 0, len(known))[:number]]
    return torch.full_like(truth, -1).index_copy(0, drawn, truth[drawn]), "other rows, drawn at random", ()


def rescaled_rows(evaluated: Evaluated, folds: int | None, seed: int) -> Rescaled:
    """What a temperature does: fitted on the rows that are held out for it, or in turns on the evaluated ones.

    Args:
        evaluated: the rows.
        folds: number of turns, where no rows are held out.
        seed: of the rows of each fold.

    Raises:
        InputError: there are fewer rows than folds.
    """
    if evaluated.held_out is not None:
        return rescale(evaluated.rows, evaluated.held_out, evaluated.held_out_name)
    number = len(evaluated.rows)
    assert folds is not None
    if folds > number:
        raise InputError(f"--folds is {folds}, but there are {number} {evaluated.name}")
    fold_of = permutation(seed, Purpose.TUNING, 0, number) % folds
    return rescale_in_folds(evaluated.rows, fold_of, evaluated.name)
