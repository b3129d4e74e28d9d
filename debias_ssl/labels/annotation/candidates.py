"""The candidates of `debias-ssl suggest`: unlabeled images with class probabilities and features."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.features import feature_notes, locate, shard_path
from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.data.sources.images import Images, left_out_notes
from debias_ssl.data.sources.listing import picked
from debias_ssl.labels.tables.row_names import match
from debias_ssl.labels.voting.members import Matrix, Run, read_member
from debias_ssl.system.errors import InputError

FeaturesOf = Callable[[Int64[np.ndarray, " R"]], Float[Tensor, "R D"]]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images that may be suggested, with their predictions and features."""

    names: Sequence[str]
    """Their paths below a folder."""
    root: Path
    """That folder."""
    classes: tuple[str, ...]
    """Empty if there are no predictions."""
    logits: Iterable[Float[Tensor, "_ C"]]
    """Of all images in their order, in chunks."""
    features: FeaturesOf
    """Of some of them; the row of an image that could not be read is NaN."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags that name the candidates."""

    labels: str | None
    images: str | None
    root: str | None
    features: Sequence[str]
    batch_size: int
    workers: int


def read_candidates(asked: Asked, place: Place) -> Candidates:
    """The images that something is said of; without labels all images.

    Args:
        asked: what `labels` names is a run, which looks at the images, or predictions of them. Images and features of a
            folder of labels are by default those that its summary.json names.
        place: where a run's network goes.

    Raises:
        InputError: images, predictions or features are missing, or do not belong together.
    """
    member = None if asked.labels is None else read_member(asked.labels, asked.features, place.device, "--labels")
    known = _summary(asked.labels) if isinstance(member, Matrix) else {}
    where = asked.images or known.get("images")
    if where is None:
        raise InputError(f"pass --images: {_why_images(asked.labels)}")
    root = asked.root if asked.images else known.get("root")
    images = find_files(where, "--images", root)
    folder = folder_of(where, images, root)
    names = names_below(images.names, folder)
    notes = [*left_out_notes(images), *images.notes]
    if isinstance(member, Run):
        reader = member.reader(images, place, asked.workers)
        logits = member.logits(reader, member.classes, place, asked.batch_size)
        notes += feature_notes(member.features) if member.features else []

        def seen(rows: Int64[np.ndarray, " R"]) -> Float[Tensor, "R D"]:
            return member.vectors(reader, rows, place, asked.batch_size).float()

        return Candidates(
            names=names, root=folder, classes=member.classes, logits=logits, features=seen, notes=tuple(notes)
        )
    logits: Iterable[Float[Tensor, "_ C"]] = ()
    if member is not None:
        rows, said = _rows_of(member, names)
        kept = np.flatnonzero(rows >= 0)
        images, logits = images.part(kept), _Matched(matrix=member, rows=rows[kept])
        names, notes = names_below(images.names, folder), [*notes, *said]
    folders = [*asked.features] or _own_features(asked.labels, known)
    return Candidates(
        names=names,
        root=folder,
        classes=() if member is None else member.classes,
        logits=logits,
        features=_kept_features(folders, images),
        notes=(*notes, *feature_notes(folders)),
    )


def _why_images(labels: str | None) -> str:
    if labels is None:
        return "without --labels, the images are unknown"
    return f"--labels {labels!r} does not say which images it belongs to, or what its paths are relative to"


def _summary(labels: str | None) -> dict[str, Any]:
    """The images and features that a folder of labels of `label` or `vote` was computed from."""
    try:
        known = json.loads((Path(labels or "") / "summary.json").read_text(encoding="utf-8"))
        return {key: known[key] for key in ("images", "root", "features") if known.get(key)}
    except (OSError, ValueError, AttributeError):
        return {}


def _own_features(labels: str | None, known: dict[str, Any]) -> list[str]:
    """The folder of features that a folder of labels was made of."""
    places = [known.get("features"), labels and os.path.join(labels, "features")]
    found = next((place for place in places if place and os.path.isdir(place)), None)
    if found is None:
        raise InputError("pass --features: a folder of debias-ssl features or label that has features of the images")
    return [found]


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """The logits of rows of a matrix, again and again."""

    matrix: Matrix
    rows: Int64[np.ndarray, " N"]

    def __iter__(self):
        return self.matrix.predictions.at(self.rows)


def _rows_of(member: Matrix, names: Sequence[str]) -> tuple[Int64[np.ndarray, " N"], list[str]]:
    """The row of each image, -1 where there is none, and what is to be said of how they were found."""
    found = match(member.predictions.names, names)
    if not found.num_matched:
        first = member.predictions.names[0]
        raise InputError(
            f"--labels {member.name!r} has rows such as {first!r}, which are not among the images, such as "
            f"{names[0]!r}: pass the --images that it was computed from"
        )
    if found.doubled is not None:
        raise InputError(f"--labels {member.name!r}: rows {found.doubled} (from 0) are of the same image")
    notes, lacking = [*found.notes], int((found.entry_of < 0).sum())
    if lacking:
        notes.append(f"{lacking:,} of {len(names):,} images have no row in {member.name!r}: they cannot be suggested")
    return found.entry_of, notes


def _kept_features(folders: Sequence[str], images: Images) -> FeaturesOf:
    """Finds features of some images in folders."""

    def features(rows: Int64[np.ndarray, " R"]) -> Float[Tensor, "R D"]:
        found = locate(folders, picked(images.names, rows))
        values = np.empty((len(rows), found[0].kept.manifest["dim"]), dtype=np.float16)
        for each in found:
            each.kept.read(shard_path, each.rows, values, each.positions)
        return torch.from_numpy(values).float()

    return features
