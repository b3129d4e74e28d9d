"""Zero-shot labels: images and class names become rows of logits by CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.images import left_out_notes
from debias_ssl.features.embedding import FeatureCache, Logits
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.preference import Reference
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.names.class_list import Classes, ClassList, given_classes
from debias_ssl.labels.names.class_names import class_list, negatives_of
from debias_ssl.labels.names.hierarchy import hierarchy_of
from debias_ssl.labels.tables.truth import read_labels, read_target
from debias_ssl.labels.zero_shot.class_vectors import (
    SHOWN,
    check_different,
    own_vectors,
    read_class_vectors,
    tokens_read,
    vectors_of_prompts,
)
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.labels.zero_shot.prompts import Templates, read_templates
from debias_ssl.models.clip import ClassVectors, Clip, blank_features
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Request:
    """The images and classes of a labeling job, checked against each other before any model is loaded."""

    files: Sequence[str]
    root: Path
    """The folder that they lie below."""
    class_list: ClassList
    templates: Templates
    target: Float[Tensor, " C"] | None
    """As in `Rows`."""
    truth: Int64[np.ndarray, " N"]
    """Of all files, negative where unknown."""
    tuning: Int64[np.ndarray, " N"] | None
    negative_list: ClassList | None = None
    """Things that are none of the classes."""
    said: tuple[str, ...] = ()
    """What is to be said of the files that this is known from, line by line."""
    vectors: Float[np.ndarray, "C D"] | None = None
    """Vectors of the classes in place of those of prompts."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.class_list.names

    @property
    def negatives(self) -> tuple[str, ...]:
        return () if self.negative_list is None else self.negative_list.names

    @property
    def names(self) -> Sequence[str]:
        """Of the files, relative to the root."""
        return names_below(self.files, self.root)


def read_request(
    images: str | Sequence[str | Path],
    classes: str | Classes,
    templates: str | Sequence[str],
    config: DebiasConfig,
    root: str | None = None,
    vectors: str | np.ndarray | None = None,
    negatives: str | Classes | None = None,
) -> Request:
    """What settings name: files are read, but no image.

    Args:
        images: folder, list, CSV file or tar files; or paths.
        classes: a file of names, or `imagenet`; or names, or names with their prompts.
        templates: a name of open_clip's, or a file; or sentences with {}.
        config: names the files of the truth, of the images to tune on and of the target.
        root: the folder that paths of a list are relative to; None is that of the list.
        vectors: a file of vectors of the classes, which take the place of prompts; or an array.
        negatives: a file of names that are none of the classes, or such names, with their prompts.

    Raises:
        InputError: something is missing, or does not fit.
    """
    listed = class_list(classes) if isinstance(classes, str) else given_classes(classes)
    names = listed.names
    if len(names) < 2:
        source = classes if isinstance(classes, str) else "classes"
        raise InputError(f"{source} names one class, {''.join(names)!r}; at least two classes are needed")
    if vectors is not None and templates != "simple":
        raise InputError("--class_vectors replaces prompts, so --templates has no effect: leave one of them out")
    others = None if negatives is None else negatives_of(negatives, listed)
    sentences = read_templates(templates)
    target = read_target(config.target_prior, names, has_reference=config.reference is not None)
    found, folder = images_to_label(images, names, root)
    relative = names_below(found.names, folder)
    known = [read_labels(Path(file), relative, names) if file else None for file in (config.truth, config.tune_on)]
    truth, tuning = (each and each.labels for each in known)
    return Request(
        files=found.names,
        root=folder,
        class_list=listed,
        templates=sentences,
        target=target,
        truth=found.labels if truth is None else truth,
        tuning=tuning,
        negative_list=others,
        said=(
            *listed.said,
            *(f"note: {note}" for note in (*left_out_notes(found), *found.notes)),
            *(line for each in known if each for line in each.said),
        ),
        vectors=None if vectors is None else read_class_vectors(vectors, len(names)),
    )


def check_several(clip: Clip, multi_label: float | None) -> None:
    """Raises InputError where several labels of an image are asked for as the model or the threshold does not allow."""
    if multi_label is None:
        return
    if not 0 < multi_label < 1:
        raise InputError(f"--multi_label is {multi_label}, must be above 0 and below 1")
    if clip.logit_bias is None:
        raise InputError(
            "--multi_label needs a model that was trained with sigmoids and has a logit bias, such as SigLIP and "
            "SigLIP 2: the probabilities of this model tell which class fits best, but not whether a class fits at all"
        )


def vectors_of_classes(clip: Clip, request: Request, *, progress: bool = False) -> ClassVectors:
    """The vectors that images are compared with; made before images are looked at, as they may be refused.

    Raises:
        InputError: two classes have the same prompts or vectors, so that the second one could not be predicted, or
            vectors that were given are not of this model.
    """
    if request.vectors is not None:
        return own_vectors(clip, request.vectors, request.class_list)
    vectors = vectors_of_prompts(clip, request.class_list.prompts, request.templates, progress=progress)
    check_different(clip, vectors, request.class_list)
    return vectors


def zero_shot_rows(
    clip: Clip,
    cache: FeatureCache,
    request: Request,
    vectors: ClassVectors,
    reference: Reference | None = None,
    multi_label: float | None = None,
) -> Rows:
    """The logits of the images that have features: logit scale times cosine similarities to the classes' prompts.

    Args:
        clip: the model.
        cache: the features.
        request: the classes, and what is known of the images.
        vectors: of the classes.
        reference: what the prior is measured on, if not on these images.
        multi_label: as in `Rows`.
    """
    weights = clip.logit_scale * vectors.weights
    negatives = None
    if request.negative_list is not None:
        others = vectors_of_prompts(clip, request.negative_list.prompts, request.templates).weights
        negatives = Logits(cache=cache, weights=clip.logit_scale * others)
    notes = []
    if vectors.not_kept:
        notes.append(f"the vectors of the prompts could not be cached: {vectors.not_kept}")
    if vectors.cut:
        first = shorten(repr(vectors.cut[0]), SHOWN, placeholder=" ...'")
        notes.append(
            f"{len(vectors.cut):,} of {vectors.num_prompts:,} prompts are cut, because the model reads only "
            f"{tokens_read(clip)} tokens; the first one is {first}"
        )
    if vectors.same:
        pairs = ", ".join(f"{request.classes[k]!r} (as {request.classes[first]!r})" for first, k in vectors.same[:5])
        notes.append(
            f"the prompts of {len(vectors.same):,} classes equal those of other classes, so these are never "
            f"predicted: {pairs}"
        )
    return Rows(
        chunks=Logits(cache=cache, weights=weights),
        names=cache.names,
        classes=request.classes,
        target=request.target,
        truth=request.truth[cache.places],
        tuning=None if request.tuning is None else request.tuning[cache.places],
        blank=(blank_features(clip) @ weights).cpu(),
        reference=reference,
        negatives=negatives,
        notes=tuple(notes),
        hierarchy=hierarchy_of(request.classes, request.class_list.parents),
        logit_bias=clip.logit_bias,
        multi_label=multi_label,
        features=cache.chunks,
        anchors=vectors.weights.T.cpu(),
    )
