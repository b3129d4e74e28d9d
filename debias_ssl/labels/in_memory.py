"""Labels of arrays and images for programs: what `debias` and `label` write to a folder, as arrays in memory."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import Decoding
from debias_ssl.distributed.accelerator import Precision, chosen_device, computes_in_bf16
from debias_ssl.labels.abstention import ALL_ROWS, AbstentionConfig
from debias_ssl.labels.arguments import LabelsOfRows, Settings, TargetPrior, array, flags_are_arguments, named, text
from debias_ssl.labels.class_names import distinct
from debias_ssl.labels.debiasing import DebiasConfig, Labeling, PriorName, Rows, label_rows, labeling_of, score_name
from debias_ssl.labels.embedding import embed
from debias_ssl.labels.feature_store import FolderStore, MemoryStore
from debias_ssl.labels.matrix import check_shape, logits_of_blank, predictions_of
from debias_ssl.labels.output import summary_of
from debias_ssl.labels.removal import find_removal
from debias_ssl.labels.zero_shot import Request, read_request, vectors_of_classes, zero_shot_rows
from debias_ssl.models.clip import Clip, load_clip
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DebiasedLabels(Labeling):
    """Labels of rows before (`plain`) and after (`label`) a class prior is removed, and the debiased probabilities."""

    probs: Float32[np.ndarray, "N C"]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Images that were left out because they cannot be read, with the reason."""

    def summary(self) -> dict[str, Any]:
        """The figures that `debias-ssl debias` writes to summary.json; accuracy and recall where the truth is known."""
        return summary_of(self)


def debias_matrix(
    logits: np.ndarray | Tensor,
    *,
    kind: Literal["auto", "logits", "probs"] = "auto",
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    prior: PriorName = "stationary",
    strength: float | None = None,
    temperature: float | None = None,
    target_prior: TargetPrior = "uniform",
    momentum: float = 0.99,
    truth: LabelsOfRows | None = None,
    tune_on: LabelsOfRows | None = None,
    abstention: AbstentionConfig = ALL_ROWS,
    blank: np.ndarray | Tensor | None = None,
) -> DebiasedLabels:
    """Labels the rows of a matrix without the classifier's preference for classes, as `debias-ssl debias` does.

    Args:
        logits: N x C, a row for each image; or probabilities.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 for probabilities, also where they are
            rounded to a few decimals, or in percent: rows are divided by their sums. All others are logits, also
            numbers in [0, 1] whose rows do not sum to 1, such as sigmoids and cosines: say `probs` if they are not.
        classes: names of the columns; None numbers them.
        names: of the rows; None numbers them.
        prior: what the classifier prefers, as the settings of the job describe it.
        strength: tau, how much of it is removed; None is 1, or is chosen on `tune_on`, and less of a prior that is
            estimated from fewer than ten rows a class: `notes` and `supported` of the result say so.
        temperature: logits are divided by it first; None is 1, or is fitted on `tune_on` together with the strength.
        target_prior: shares of the classes that the rows truly have: `uniform`, `em` to estimate them, C weights, or a
            file of class and weight.
        momentum: of the prior `momentum`, for each batch of 64 rows.
        truth: N class numbers for the figures of `summary()` alone, or a file of them; negative where unknown.
        tune_on: N class numbers, negative for all rows but a few, to choose strength and temperature; or a file.
        abstention: which rows get a label; the others are true in `abstained`, and keep in `label` what it would be.
        blank: K x C, such numbers of images that show nothing, for the prior `content_free`.

    Raises:
        InputError: an argument is wrong.
    """
    with flags_are_arguments():
        settings = Settings(
            prior=prior,
            strength=strength,
            temperature=temperature,
            target_prior=target_prior,
            momentum=momentum,
            truth=truth,
            tune_on=tune_on,
            abstention=abstention,
        )
        rows = _matrix_rows(array(logits), kind, classes, names, None if blank is None else array(blank), settings)
        return _debiased(rows, settings.config())


def label_images(
    images: str | Path | Sequence[str | Path],
    classes: str | Path | Sequence[str],
    *,
    model: str,
    pretrained: str | None = None,
    templates: str | Path | Sequence[str] = "simple",
    root: str | Path | None = None,
    features: str | Path | None = None,
    negatives: str | Path | Sequence[str] | None = None,
    prior: PriorName = "stationary",
    strength: float | None = None,
    temperature: float | None = None,
    target_prior: TargetPrior = "uniform",
    momentum: float = 0.99,
    truth: LabelsOfRows | None = None,
    tune_on: LabelsOfRows | None = None,
    abstention: AbstentionConfig = ALL_ROWS,
    on_error: Literal["stop", "skip"] = "stop",
    bits: int | None = None,
    max_pixels: int | None = None,
    background: str = "white",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
) -> DebiasedLabels:
    """Labels images with CLIP without its preference for classes, as `debias-ssl label` does; `names` are their paths.

    Args:
        images: a folder of any depth, an image, a list or CSV file of paths, or tar files; or paths one by one.
        classes, negatives: names, or a file of NAME or NAME<tab>PROMPT NAME a line; negatives are none of the classes.
        model, pretrained: a name of open_clip's and a tag of it or a file of weights; local-dir:FOLDER or hf-hub:NAME.
        templates: `simple`, `openai`, a file of sentences with {}, or such sentences.
        root: folder that paths of a list are relative to, below which they must lie; None is that of the list.
        features: folder that keeps features of images for the next time; None keeps them in memory.
        prior, ..., abstention: as in `debias_matrix`; without `truth`, folders that are named like classes say it.
        on_error: `stop` at an image that cannot be read, or `skip` it: `unreadable` then has it, and `names` has not.
        bits, max_pixels, background: how files become pixels, as the settings of these names in `data` of a run.
        batch_size, workers: images of a forward pass, and processes that decode; of 0, this one does.
        precision, device: of the network; `auto` is bf16 where the device has it, None the accelerator, else the CPU.

    Raises:
        InputError: an argument is wrong, or an image cannot be read.
    """
    with flags_are_arguments():
        settings = Settings(
            prior=prior,
            strength=strength,
            temperature=temperature,
            target_prior=target_prior,
            momentum=momentum,
            truth=truth,
            tune_on=tune_on,
            abstention=abstention,
        )
        request = _request(text(images), text(classes), text(templates), text(root), text(negatives), settings)
        config, clip = settings.config(), load_clip(model, pretrained, chosen_device(device))
        decoding = Decoding(bits=bits, max_pixels=max_pixels, background=background)
        return _label(request, config, clip, features, on_error, decoding, batch_size, workers, precision)


def _matrix_rows(
    values: np.ndarray,
    kind: Literal["auto", "logits", "probs"],
    classes: Sequence[str] | None,
    names: Sequence[str] | None,
    blank: np.ndarray | None,
    settings: Settings,
) -> Rows:
    check_shape(values, "logits")
    number, of_blank = values.shape[1], None
    columns = tuple(map(str, range(number)))
    if classes is not None:
        columns, _ = distinct([(name, name) for name in classes], "classes")
        if len(columns) != number:
            raise InputError(f"classes names {len(columns)}, but logits have {number} columns")
    if names is not None and len(names) != len(values):
        raise InputError(f"names has {len(names)}, but logits have {len(values)} rows")
    with named("logits"):
        predictions = predictions_of(values, kind, columns, names, "the matrix")
    settings.config().check_kind(predictions.kind)
    if blank is not None:
        check_shape(blank, "blank")
        with named("blank"):
            blanks = predictions_of(blank, kind, tuple(map(str, range(blank.shape[1]))), None, "the matrix")
        of_blank = logits_of_blank(blanks, predictions, "blank", "logits")
    truth, tuning = settings.labels(predictions.names, columns)
    return Rows(
        chunks=predictions,
        names=predictions.names,
        classes=columns,
        target=settings.target(columns),
        truth=truth,
        tuning=tuning,
        blank=of_blank,
    )


def _request(
    images: str | Sequence[str | Path],
    classes: str | Sequence[str],
    templates: str | Sequence[str],
    root: str | None,
    negatives: str | Sequence[str] | None,
    settings: Settings,
) -> Request:
    """What is to be labeled, with the truth, the rows to tune on and the target that are given as arrays or files."""
    request = read_request(images, classes, templates, DebiasConfig(), root, negatives)
    truth, tuning = settings.labels(request.names, request.classes)
    truth = request.truth if truth is None else truth
    return replace(request, target=settings.target(request.classes), truth=truth, tuning=tuning)


def _label(
    request: Request,
    config: DebiasConfig,
    clip: Clip,
    features: str | Path | None,
    on_error: Literal["stop", "skip"],
    decoding: Decoding,
    batch_size: int,
    workers: int,
    precision: Precision,
) -> DebiasedLabels:
    decoding.check("")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} is {value}, must be at least {least}")
    vectors = vectors_of_classes(clip, request)
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(clip.device) else "fp32"
    cache = embed(
        clip,
        request.files,
        request.root,
        MemoryStore() if features is None else FolderStore(folder=Path(features)),
        Place(device=clip.device),
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        decoding=decoding,
        precision=precision,
        autocast=_autocast(precision, clip.device),
    )
    names = [request.files[i] for i in cache.places.tolist()]
    unreadable = {request.files[i]: why for i, why in cache.unreadable.items()}
    return _debiased(replace(zero_shot_rows(clip, cache, request, vectors), names=names), config, unreadable)


def _debiased(rows: Rows, config: DebiasConfig, unreadable: Mapping[str, str] | None = None) -> DebiasedLabels:
    removal = find_removal(rows, config, is_quiet=True)
    probs, parts, first = np.empty((len(rows.names), len(rows.classes)), dtype=np.float32), [], 0
    for part, of_part in label_rows(rows, removal, score_name(rows, config), is_quiet=True):
        probs[first : first + len(of_part)] = of_part.numpy()
        parts.append(part)
        first += len(of_part)
    labeling = labeling_of(rows, config, removal, parts)
    return DebiasedLabels(**vars(labeling), probs=probs, unreadable=unreadable or {})


def _autocast(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager]:
    """The precision that the network runs in."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU: take bf16 or fp32")
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype)
