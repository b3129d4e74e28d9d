"""The Python functions `debias` and `label`: they return as arrays what the jobs write to a folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.sources.listing import picked
from debias_ssl.distributed.device import Precision, chosen_device, computes_in_bf16
from debias_ssl.features.embedding import embed
from debias_ssl.features.store import FolderStore, MemoryStore
from debias_ssl.labels.arguments import DebiasSettings, Settings, array, flags_are_arguments, named, text
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.refinement import check_given, refined, vectors_of
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Labeling, RowLabels, Rows, label_rows, labeling_of, score_name
from debias_ssl.labels.matrix.predictions import check_shape, logits_of_blank, predictions_of
from debias_ssl.labels.matrix.reference import matrix_reference, rows_reference
from debias_ssl.labels.names.class_list import Classes, given_classes
from debias_ssl.labels.names.hierarchy import hierarchy_of
from debias_ssl.labels.output.summary import summary_of
from debias_ssl.labels.zero_shot.reference import Given, features_of, image_reference, measured
from debias_ssl.labels.zero_shot.rows import Request, check_several, read_request, vectors_of_classes, zero_shot_rows
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
    classes: Classes | None = None,
    names: Sequence[str] | None = None,
    features: np.ndarray | Tensor | None = None,
    anchors: np.ndarray | Tensor | None = None,
    blank: np.ndarray | Tensor | None = None,
    **settings: Unpack[DebiasSettings],
) -> DebiasedLabels:
    """Labels the rows of a matrix without the classifier's preference for classes, as `debias-ssl debias` does.

    Args:
        logits: N x C, a row for each image; or probabilities.
        kind: what the numbers are; `auto` takes rows in [0, 1] that sum to 1 for probabilities, also where they are
            rounded to a few decimals, or in percent: rows are divided by their sums. All others are logits, also
            numbers in [0, 1] whose rows do not sum to 1, such as sigmoids and cosines: say `probs` if they are not.
        classes: names of the columns, or a mapping whose keys are NAME < PARENT < ...; None numbers them.
        names: of the rows; None numbers them.
        blank: K x C, such numbers of images that show nothing, for the prior `content_free`.
        prior: what the classifier prefers, as the settings of the job describe it.
        strength: tau, how much of it is removed; None is 1, or is chosen on `tune_on`, and less of a prior that is
            estimated from fewer than ten rows a class: `notes` and `supported` of the result say so.
        temperature: logits are divided by it first; None is 1, or is fitted on `tune_on` together with the strength.
        target_prior: shares of the classes that the rows truly have: `uniform`, `em` to estimate them, `present` for
            equal shares of those that are found, C weights, or a file of class and weight; `auto` is `em` with a
            reference, else `uniform` as far as the rows look like it.
        momentum: of the prior `momentum`, for each batch of 64 rows.
        truth: N class numbers for the figures of `summary()` alone, or a file of them; negative where unknown.
        tune_on: N class numbers, negative for all rows but a few, to choose strength and temperature; or a file.
        reference: M x C, such numbers of other images, of all classes about equally many, to measure the prior on; or a
            preference.json.
        floor: each row gets the deepest name whose probability is at least this, in `name` and `name_confidence`.
        refine: `mixture` lets rows that lie close to each other, by their features, agree on their classes.
        features: N x D, a vector of each row, for `refine` alone; of any length.
        anchors: C x D, a vector of each class in the same space: of a text encoder, or a mean of labeled features.

    Raises:
        InputError: an argument is wrong.
    """
    given = Settings(given=settings)
    with flags_are_arguments():
        rows = _matrix_rows(array(logits), kind, classes, names, None if blank is None else array(blank), given)
        return _debiased(_with_vectors(rows, given.config(), features, anchors), given.config())


def label_images(
    images: str | Path | Sequence[str | Path],
    classes: str | Path | Classes,
    *,
    model: str,
    pretrained: str | None = None,
    templates: str | Path | Sequence[str] = "simple",
    class_vectors: str | Path | np.ndarray | Tensor | None = None,
    root: str | Path | None = None,
    features: str | Path | None = None,
    negatives: str | Path | Classes | None = None,
    flip: bool = False,
    multi_label: float | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    bits: int | None = None,
    max_pixels: int | None = None,
    background: str = "white",
    batch_size: int = 256,
    workers: int = 0,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    **settings: Unpack[DebiasSettings],
) -> DebiasedLabels:
    """Labels images with CLIP without its preference for classes, as `debias-ssl label` does; `names` are their paths.

    Args:
        images: a folder of any depth, an image, a list or CSV file of paths, or tar files; or paths one by one.
        classes: names; or a mapping of NAME < PARENT < ... to one or more prompts; or a file of them; or `imagenet`.
        model, pretrained: a name of open_clip's and a tag of it or a file of weights; local-dir:FOLDER or hf-hub:NAME.
        templates, class_vectors: `simple`, `openai`, sentences with {} or a file; C x D in their place, or a .npy file.
        root: folder that paths of a list are relative to, below which they must lie; None is that of the list.
        features: folder that keeps features of images for the next time; None keeps them in memory.
        negatives: names that are none of the classes, in the same forms, against which the score is.
        flip, multi_label: as the flags of the job; `several` has what the latter gives.
        on_error: `stop` at an image that cannot be read, or `skip` it: `unreadable` then has it, and `names` has not.
        bits, max_pixels, background: how files become pixels, as in the settings of `data` of a run.
        batch_size, workers: images of a forward pass, and processes that decode; of 0, this one does.
        precision, device: of the network; `auto` is bf16 where the device has it, None the accelerator, else the CPU.
        settings: those of `debias_matrix`; a reference is images or a preference.json. Without `truth`, folders that
            are named like classes say it.

    Raises:
        InputError: an argument is wrong, or an image cannot be read.
    """
    given = Settings(given=settings)
    with flags_are_arguments():
        names = text(classes), text(negatives)
        request = _request(text(images), names, text(templates), text(root), class_vectors, given)
        config, clip = given.config(), load_clip(model, pretrained, chosen_device(device), flip=flip)
        decoding = Decoding(bits=bits, max_pixels=max_pixels, background=background)
        others = settings.get("reference")
        reference = None if others is None else image_reference(_paths(others), request, MemoryStore())
        return _label(
            request, reference, config, clip, features, on_error, decoding, batch_size, workers, precision, multi_label
        )


def _paths(images: Any) -> str | Sequence[str | Path]:
    if isinstance(images, np.ndarray | Tensor):
        raise InputError("reference must be images or a preference.json, not an array")
    return text(images)


def _matrix_rows(
    values: np.ndarray,
    kind: Literal["auto", "logits", "probs"],
    classes: Classes | None,
    names: Sequence[str] | None,
    blank: np.ndarray | None,
    settings: Settings,
) -> Rows:
    check_shape(values, "logits")
    number, of_blank, parents = values.shape[1], None, {}
    columns = tuple(map(str, range(number)))
    if classes is not None:
        listed = given_classes(classes)
        columns, parents = listed.names, listed.parents
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
    others: Any = settings.given.get("reference")
    reference = None
    if isinstance(others, str | Path):
        reference, _ = matrix_reference(Path(others), predictions, kind, None, None)
    elif others is not None:
        others = array(others)
        check_shape(others, "reference")
        with named("reference"):
            predicted = predictions_of(others, kind, tuple(map(str, range(others.shape[1]))), None, "the matrix")
        reference = rows_reference(predicted, predictions, "reference", "logits", is_quiet=True)
    return Rows(
        chunks=predictions,
        names=predictions.names,
        classes=columns,
        target=settings.target(columns),
        truth=truth,
        tuning=tuning,
        blank=of_blank,
        reference=reference,
        hierarchy=hierarchy_of(columns, parents),
    )


def _with_vectors(
    rows: Rows, config: DebiasConfig, features: np.ndarray | Tensor | None, anchors: np.ndarray | Tensor | None
) -> Rows:
    check_given(config, features is not None, anchors is not None)
    if features is None or anchors is None:
        return rows
    vectors = vectors_of(array(features), array(anchors), len(rows.names), rows.classes, ("features", "anchors"))
    return replace(rows, features=vectors.chunks, anchors=vectors.anchors)


def _request(
    images: str | Sequence[str | Path],
    names: tuple[str | Classes, str | Classes | None],
    templates: str | Sequence[str],
    root: str | None,
    vectors: str | Path | np.ndarray | Tensor | None,
    settings: Settings,
) -> Request:
    """The labeling request, with the truth, the rows to tune on and the target as arrays or files."""
    own = str(vectors) if isinstance(vectors, str | Path) else None if vectors is None else array(vectors)
    classes, negatives = names
    request = read_request(images, classes, templates, DebiasConfig(), root, own, negatives)
    truth, tuning = settings.labels(request.names, request.classes)
    truth = request.truth if truth is None else truth
    return replace(request, target=settings.target(request.classes), truth=truth, tuning=tuning)


def _label(
    request: Request,
    given: Given | None,
    config: DebiasConfig,
    clip: Clip,
    features: str | Path | None,
    on_error: Literal["stop", "skip"],
    decoding: Decoding,
    batch_size: int,
    workers: int,
    precision: Precision,
    multi_label: float | None,
) -> DebiasedLabels:
    check_several(clip, multi_label)
    decoding.check("")
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} is {value}, must be at least {least}")
    vectors = vectors_of_classes(clip, request)
    if precision == "auto":
        precision = "bf16" if computes_in_bf16(clip.device) else "fp32"
    embedded = partial(
        embed,
        clip,
        place=Place(device=clip.device),
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        decoding=decoding,
        precision=precision,
        autocast=_autocast(precision, clip.device),
    )
    reference = measured(given, features_of(given, clip, request, embedded), clip, request, vectors, is_quiet=True)
    store = MemoryStore() if features is None else FolderStore(folder=Path(features))
    cache = embedded(files=request.files, root=request.root, store=store)
    names = [*picked(request.files, cache.places)]
    unreadable = {request.files[i]: why for i, why in cache.unreadable.items()}
    rows = zero_shot_rows(clip, cache, request, vectors, reference, multi_label)
    return _debiased(replace(rows, names=names), config, unreadable)


def _debiased(rows: Rows, config: DebiasConfig, unreadable: Mapping[str, str] | None = None) -> DebiasedLabels:
    rows, removal = refined(rows, config, find_removal(rows, config, is_quiet=True), is_quiet=True)
    probs = np.empty((len(rows.names), len(rows.classes)), dtype=np.float32)

    def parts() -> Iterator[RowLabels]:
        first = 0
        for part, of_part in label_rows(rows, removal, score_name(rows, config), floor=config.floor, is_quiet=True):
            probs[first : first + len(of_part)] = of_part.numpy()
            first += len(of_part)
            yield part

    labeling = labeling_of(rows, config, removal, parts())
    return DebiasedLabels(**vars(labeling), probs=probs, unreadable=unreadable or {})


def _autocast(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager]:
    """The precision that the network runs in."""
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU: take bf16 or fp32")
    if precision == "fp32":
        return nullcontext
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return lambda: torch.autocast(device.type, dtype=dtype)
