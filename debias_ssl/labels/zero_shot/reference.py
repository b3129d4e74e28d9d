"""A reference for `label`: images, a preference.json, or the folder of an earlier `label`."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from debias_ssl.data.sources.images import UNKNOWN, left_out_notes
from debias_ssl.features.embedding import FeatureCache
from debias_ssl.features.store import FeatureStore, FolderStore
from debias_ssl.labels.debiasing.preference import Preference, Reference, is_preference, read_preference, summary_with
from debias_ssl.labels.debiasing.reference import read_reference
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.labels.zero_shot.rows import Request, zero_shot_rows
from debias_ssl.models.clip import ClassVectors, Clip


@dataclass(frozen=True, kw_only=True)
class ReferenceImages:
    """Images to measure a preference on."""

    request: Request
    """As which classes they are looked at."""
    store: FeatureStore
    """Where their features are kept."""


Given = Preference | ReferenceImages


def image_reference(where: str | Sequence[str | Path], request: Request, store: FeatureStore) -> Given:
    """What `--reference` names; no image is read.

    Args:
        where: a preference.json, the folder of an earlier `label`, or images as in `images_to_label`.
        request: the images that it is for.
        store: where features of its images are kept, if it is not an earlier folder that has them.

    Raises:
        InputError: there are no images, or the folder does not say which they were.
    """
    root = None
    if isinstance(where, str):
        path = Path(where)
        if is_preference(path):
            return read_preference(path)
        if (path / "summary.json").is_file():
            where, root, store = _of_folder(path)
    found, folder = images_to_label(where, request.classes, root, "--reference")
    said = [f"note: the reference: {note}" for note in (*left_out_notes(found), *found.notes)]
    of_reference = replace(
        request,
        files=found.names,
        root=folder,
        truth=np.full(len(found.names), UNKNOWN),
        tuning=None,
        said=tuple(said),
    )
    return ReferenceImages(request=of_reference, store=store)


def _of_folder(folder: Path) -> tuple[str, str | None, FeatureStore]:
    """The images that a folder holds labels of, what they are relative to, and their features."""
    summary = summary_with(folder, "images", "label", "images")
    kept = folder / "features" if (folder / "features").is_dir() else Path(summary.get("features") or folder)
    return summary["images"], summary.get("root"), FolderStore(folder=kept)


def features_of(
    given: Given | None, clip: Clip, request: Request, embedded: Callable[..., FeatureCache]
) -> FeatureCache | None:
    """The features of the images of a reference, where it has any; each process takes part.

    Args:
        given: the reference.
        clip: the model.
        request: the images that it is for.
        embedded: `embed` of files below a root, in a store.

    Raises:
        InputError: a preference that was measured before does not fit; no image is read then.
    """
    if isinstance(given, Preference):
        given.checked(request.classes, made_with(clip, request), "the preference")
    if not isinstance(given, ReferenceImages):
        return None
    return embedded(files=given.request.files, root=given.request.root, store=given.store)


def measured(
    given: Given | None,
    cache: FeatureCache | None,
    clip: Clip,
    request: Request,
    vectors: ClassVectors,
    *,
    is_quiet: bool,
) -> Reference | None:
    """The reference for the images of a request.

    Args:
        given: what it is.
        cache: the features of its images.
        clip: the model.
        request: the images that it is for.
        vectors: of the classes.
        is_quiet: no progress bar.

    Raises:
        InputError: a preference that was measured before is of other classes, prompts or another model.
    """
    if isinstance(given, Preference):
        return given.checked(request.classes, made_with(clip, request), "the preference")
    if given is None or cache is None:
        return None
    rows = zero_shot_rows(clip, cache, given.request, vectors)
    return read_reference(rows, made_with(clip, given.request), is_quiet)


def made_with(clip: Clip, request: Request) -> Mapping[str, str]:
    """As in `Preference`: what the logits of classes depend on, as hashes."""
    templates = [str(template("{}") if callable(template) else template) for template in request.templates]
    vectors = None if request.vectors is None else request.vectors.tolist()
    prompts = [templates, request.class_list.prompts, vectors]
    return {"weights of the model": _hash(clip.description), "prompts": _hash(prompts)}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
