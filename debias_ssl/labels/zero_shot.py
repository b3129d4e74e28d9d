"""Images and names of classes for CLIP, and the rows of logits that it makes of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.data.sources.images import left_out_notes
from debias_ssl.labels.debiasing import DebiasConfig, Rows
from debias_ssl.labels.embedding import FeatureCache, Logits
from debias_ssl.labels.images import images_to_label
from debias_ssl.labels.prompts import Templates, class_names, read_templates
from debias_ssl.labels.truth import read_labels, read_target
from debias_ssl.models.clip import Clip, blank_features, zero_shot_weights


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
    notes: Sequence[str]
    """What people should know of the images, such as what is left out of their folder."""

    @property
    def names(self) -> list[str]:
        """Of the files, relative to the root."""
        return [os.path.relpath(file, self.root) for file in self.files]


def read_request(
    images: str | Sequence[str | Path],
    classes: str | Sequence[str],
    templates: str | Sequence[str],
    config: DebiasConfig,
) -> Request:
    """What settings name: files are read, but no image.

    Args:
        images: folder, list, CSV file or tar files; or paths.
        classes: a file of names, or `imagenet`; or names.
        templates: a name of open_clip's, or a file; or sentences with {}.
        config: names the files of the truth, of the images to tune on and of the target.

    Raises:
        InputError: something is missing, or does not fit.
    """
    names, prompt_names = class_names(classes)
    sentences = read_templates(templates)
    target = read_target(config.target_prior, names)
    found, root = images_to_label(images, names)
    relative = [os.path.relpath(file, root) for file in found.names]
    truth, tuning = (
        read_labels(Path(file), relative, names) if file else None for file in (config.truth, config.tune_on)
    )
    return Request(
        files=found.names,
        root=root,
        classes=names,
        prompt_names=prompt_names,
        templates=sentences,
        target=target,
        truth=found.labels if truth is None else truth,
        tuning=tuning,
        notes=left_out_notes(found),
    )


def zero_shot_rows(clip: Clip, cache: FeatureCache, request: Request) -> Rows:
    """The logits of the images that have features: logit scale times cosine similarities to the classes' prompts."""
    weights = clip.logit_scale * zero_shot_weights(clip, request.prompt_names, request.templates)
    return Rows(
        chunks=Logits(cache=cache, weights=weights),
        names=cache.names,
        classes=request.classes,
        target=request.target,
        truth=request.truth[cache.places],
        tuning=None if request.tuning is None else request.tuning[cache.places],
        blank=(blank_features(clip) @ weights).cpu(),
    )
