"""Example images: confident mistakes, and labels that debiasing changes."""

from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
from jaxtyping import Float, Int, UInt8

from debias_ssl.reporting.page import Picture, Sheet, percent, picture

# Images on a sheet.
PICTURES = 12

Pictures = Callable[[Sequence[int]], Sequence[UInt8[np.ndarray, "H W K"] | None]]
"""From numbers of rows to their images; None for an image that cannot be read."""


def wrong_sheet(
    predicted: Int[np.ndarray, " N"],
    confidence: Float[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    classes: Sequence[str],
    names: Sequence[str],
    images: Pictures,
    what: str,
) -> Sheet:
    """The most confident mistakes.

    Args:
        predicted: class numbers.
        confidence: confidence of the predictions.
        truth: class numbers, negative if unknown; those rows are left out.
        classes: names of the classes.
        names: paths of the images.
        images: reads the images of some rows.
        what: the rows in words, for the caption.
    """
    wrong = np.flatnonzero((predicted != truth) & (truth >= 0))
    shown: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")][:PICTURES].tolist()
    pictures: list[Picture] = []
    for i, image in zip(shown, images(shown) if shown else (), strict=True):
        said, is_, sure = classes[predicted[i]], classes[truth[i]], percent(float(confidence[i]), 1)
        if image is not None:
            alt = f"{names[i]}: {said} with confidence {sure}, is {is_}"
            pictures.append(picture(image, alt, [f"says {said}, {sure}", f"is {is_}", short_name(names[i])]))
    caption = (
        f"The {len(pictures)} most confident of {len(wrong):,} wrong predictions on {(truth >= 0).sum():,} {what}."
    )
    return Sheet(title="Confident mistakes", pictures=pictures, caption=caption)


def changed_sheet(
    before: Int[np.ndarray, " N"],
    after: Int[np.ndarray, " N"],
    confidence: Float[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    classes: Sequence[str],
    names: Sequence[str],
    images: Pictures,
) -> Sheet:
    """Images whose label debiasing changes: frequent changes take turns, and confident images are first.

    Args:
        before: class numbers before debiasing.
        after: class numbers after it.
        confidence: confidence of the rows; the images of one change are sorted by it.
        truth: class numbers, negative if unknown.
        classes: names of the classes.
        names: paths of the images.
        images: reads the images of some rows.
    """
    where, frequent = changes_in_turn(before, after, confidence)
    shown: list[int] = where[:PICTURES].tolist()
    pictures: list[Picture] = []
    for i, image in zip(shown, images(shown) if shown else (), strict=True):
        old, new = classes[before[i]], classes[after[i]]
        is_ = f"is {classes[truth[i]]}" if truth[i] >= 0 else "true class unknown"
        if image is not None:
            alt = f"{names[i]}: {old} before debiasing, {new} after it, {is_}"
            pictures.append(picture(image, alt, [f"{old} → {new}", is_, short_name(names[i])]))
    often = ", ".join(f"{classes[a]} → {classes[b]} ({number:,})" for a, b, number in frequent[:5])
    gained, lost = ((labels[where] == truth[where]).sum() for labels in (after, before))
    known = f" {gained:,} became right, {lost:,} became wrong." if (truth >= 0).any() else ""
    caption = f"{len(where):,} of {len(before):,} labels changed, most often {often}.{known}"
    return Sheet(title="Labels that debiasing changes", pictures=pictures, caption=caption)


def changes_in_turn(
    before: Int[np.ndarray, " N"], after: Int[np.ndarray, " N"], confidence: Float[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " changed"], list[tuple[int, int, int]]]:
    """Rows whose label changes, and the changes as (before, after, number of rows), the most frequent first.

    The changes take turns, the most frequent one first: first the most confident row of each, then the second ones, ...
    """
    where = np.flatnonzero(before != after)
    where = where[np.argsort(-confidence[where], kind="stable")]
    base = max(int(after.max()), int(before.max())) + 1
    kinds, kind, number = np.unique(before[where] * base + after[where], return_inverse=True, return_counts=True)
    turn = np.empty_like(where)
    turn[np.argsort(kind, kind="stable")] = np.arange(len(where)) - np.repeat(np.cumsum(number) - number, number)
    order = np.argsort(-number, kind="stable")
    frequent = [(int(kinds[j] // base), int(kinds[j] % base), int(number[j])) for j in order]
    return where[np.lexsort((-number[kind], turn))], frequent


def short_name(name: str) -> str:
    """The last two parts of a path: a file and its folder."""
    return "/".join(PurePath(name).parts[-2:])
