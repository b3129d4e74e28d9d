"""Images and names of classes for CLIP, and the rows of logits that it makes of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.images import left_out_notes
from debias_ssl.labels.debiasing import DebiasConfig, Rows
from debias_ssl.labels.embedding import FeatureCache, Logits
from debias_ssl.labels.images import images_to_label
from debias_ssl.labels.prompts import Templates, class_names, negative_names, read_templates
from debias_ssl.labels.truth import read_labels, read_target
from debias_ssl.models.clip import ClassVectors, Clip, blank_features, class_vectors
from debias_ssl.system.errors import InputError

# Characters of a prompt or of a name in messages.
SHOWN = 100


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be labeled as what; it fits together, and no model is loaded for it."""

    files: Sequence[str]
    root: Path
    """The folder that they lie below."""
    classes: tuple[str, ...]
    prompt_names: tuple[str, ...]
    """What prompts call the classes."""
    templates: Templates
    target: Float[Tensor, " C"] | None
    """As in `Rows`."""
    truth: Int64[np.ndarray, " N"]
    """Of all files, negative where unknown."""
    tuning: Int64[np.ndarray, " N"] | None
    negatives: tuple[str, ...] = ()
    """What prompts call things that are none of the classes."""
    said: tuple[str, ...] = ()
    """What is to be said of the files that this is known from, line by line."""
    repeats: bool = False
    """Whether some classes may have the same prompts: open_clip's names of ImageNet call two pairs of classes alike."""

    @property
    def names(self) -> list[str]:
        """Of the files, relative to the root."""
        return [os.path.relpath(file, self.root) for file in self.files]


def read_request(
    images: str | Sequence[str | Path],
    classes: str | Sequence[str],
    templates: str | Sequence[str],
    config: DebiasConfig,
    root: str | None = None,
    negatives: str | Sequence[str] | None = None,
) -> Request:
    """What settings name: files are read, but no image.

    Args:
        images: folder, list, CSV file or tar files; or paths.
        classes: a file of names, or `imagenet`; or names.
        templates: a name of open_clip's, or a file; or sentences with {}.
        config: names the files of the truth, of the images to tune on and of the target.
        root: the folder that paths of a list are relative to; None is that of the list.
        negatives: a file of names that are none of the classes, or such names.

    Raises:
        InputError: something is missing, or does not fit.
    """
    names, prompt_names = class_names(classes)
    others = () if negatives is None else negative_names(negatives, (*names, *prompt_names))
    sentences = read_templates(templates)
    target = read_target(config.target_prior, names)
    found, folder = images_to_label(images, names, root)
    relative = [os.path.relpath(file, folder) for file in found.names]
    known = [read_labels(Path(file), relative, names) if file else None for file in (config.truth, config.tune_on)]
    truth, tuning = (each and each.labels for each in known)
    return Request(
        files=found.names,
        root=folder,
        classes=names,
        prompt_names=prompt_names,
        templates=sentences,
        target=target,
        truth=found.labels if truth is None else truth,
        tuning=tuning,
        negatives=others,
        said=(
            *(f"note: {note}" for note in (*left_out_notes(found), *found.notes)),
            *(line for each in known if each for line in each.said),
        ),
        repeats=classes == "imagenet",
    )


def vectors_of_classes(clip: Clip, request: Request) -> ClassVectors:
    """The vectors that images are compared with; made before images are looked at, as they may be refused.

    Raises:
        InputError: two classes have the same prompts, so that the second one could not be predicted.
    """
    vectors = class_vectors(clip, request.prompt_names, request.templates)
    if vectors.same and not request.repeats:
        first, second = vectors.same[0]
        one, other = (shorten(repr(request.classes[k]), SHOWN, placeholder=" ...'") for k in (first, second))
        names = [" ".join(request.prompt_names[k].split()) for k in (first, second)]
        if names[0] == names[1]:
            why = "their names in prompts are the same"
        elif vectors.cut and names[0].lower() != names[1].lower():
            why = f"the model reads {_tokens_read(clip)} tokens, and up to there they are the same"
        else:
            why = "the model's tokenizer does not tell their names apart, as it may take capital letters for small ones"
        raise InputError(
            f"the classes {one} and {other} have the same prompts, and the second would never be predicted: {why}; "
            "give one of them another name for prompts, behind a tab in --classes"
        )
    return vectors


def _tokens_read(clip: Clip) -> int:
    return clip.tokenizer(["a"]).shape[1]


def zero_shot_rows(clip: Clip, cache: FeatureCache, request: Request, vectors: ClassVectors) -> Rows:
    """The logits of the images that have features: logit scale times cosine similarities to the classes' prompts."""
    weights = clip.logit_scale * vectors.weights
    others = class_vectors(clip, request.negatives, request.templates).weights if request.negatives else None
    notes = []
    if vectors.cut:
        first = shorten(repr(vectors.cut[0]), SHOWN, placeholder=" ...'")
        notes.append(
            f"{len(vectors.cut):,} of {vectors.num_prompts:,} prompts are cut, as the model reads {_tokens_read(clip)} "
            f"tokens; the first one is {first}"
        )
    if vectors.same:
        pairs = ", ".join(f"{request.classes[k]!r} (as {request.classes[first]!r})" for first, k in vectors.same[:5])
        notes.append(f"the prompts of {len(vectors.same):,} classes are those of others; never predicted: {pairs}")
    return Rows(
        chunks=Logits(cache=cache, weights=weights),
        names=cache.names,
        classes=request.classes,
        target=request.target,
        truth=request.truth[cache.places],
        tuning=None if request.tuning is None else request.tuning[cache.places],
        blank=(blank_features(clip) @ weights).cpu(),
        negatives=Logits(cache=cache, weights=clip.logit_scale * others) if others is not None else None,
        notes=tuple(notes),
    )
