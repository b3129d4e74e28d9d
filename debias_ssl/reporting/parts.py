"""What pages of runs and of labels have in common: confusion, reliability, and sheets of example images."""

from collections.abc import Callable, Sequence
from pathlib import PurePath

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from debias_ssl.formulas.calibration import expected_calibration_error, reliability_bins
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, plain
from debias_ssl.reporting.page import Figure, Picture, Sheet, percent, picture

PICTURES = 12

# Images of some rows; None where there is none.
Pictures = Callable[[Sequence[int]], Sequence[UInt8[np.ndarray, "H W K"] | None]]


def confusion_figure(confusion: Int[np.ndarray, "C C"], names: Sequence[str], title: str, what: str) -> Figure:
    """Rows of a confusion matrix as shares of their true class."""
    rows = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(rows, 1)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    mistakes = ", ".join(
        f"{plain(names[r])} taken for {plain(names[k])} ({wrong[r, k]:,})" for r, k in worst if wrong[r, k]
    )
    accuracy = percent(np.trace(confusion) / max(1, confusion.sum()))
    alt = f"Confusion matrix of {what}: {accuracy} of {confusion.sum():,} right; most frequent mistakes: "
    svg = figures.heat_map(
        # By the square root, so that few mistakes are seen too.
        np.sqrt(shares),
        names,
        alt + (mistakes or "none") + ".",
        texts=[[f"{count:,}" if count else "" for count in row] for row in confusion[:NAMED]],
    )
    return Figure(
        title=title,
        svg=svg,
        caption=f"{accuracy} of {confusion.sum():,} right. Rows are true classes. {mistakes or 'No mistakes'}.",
    )


def reliability_figure(
    confidence: Float[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], title: str
) -> Figure:
    """Accuracy over confidence in bins; images whose truth is unknown (negative) are left out."""
    known = truth >= 0
    sure, correct = torch.from_numpy(confidence[known]), torch.from_numpy(predicted[known] == truth[known])
    share, mean_confidence, accuracy = reliability_bins(sure, correct).numpy()
    filled = share > 0
    ece = expected_calibration_error(sure, correct).item()
    means = sure.double().mean().item(), correct.double().mean().item()
    gap = means[0] - means[1]
    direction = "overconfident" if gap > 0 else "underconfident"
    return Figure(
        title=f"{title}: ECE {percent(ece)}",
        svg=figures.reliability(
            mean_confidence[filled],
            accuracy[filled],
            share[filled],
            f"{title}: accuracy over confidence in {filled.sum()} bins; expected calibration error {percent(ece)}; "
            f"mean confidence {percent(means[0])}, accuracy {percent(means[1])}.",
        ),
        legend=[("mark-0", "bin; its area is its share of the images"), ("line-1", "gap"), ("level", "perfect")],
        caption=f"Points below the dotted line are overconfident. On average the model is {direction}, "
        f"by {percent(abs(gap))}.",
    )


def wrong_sheet(
    predicted: Int[np.ndarray, " N"],
    confidence: Float[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    classes: Sequence[str],
    names: Sequence[str],
    images: Pictures,
    what: str,
) -> Sheet:
    """The most confident of the wrong predictions; images whose truth is unknown (negative) are left out."""
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
    return Sheet(title="Confident and wrong", pictures=pictures, caption=caption)


def changed_sheet(
    before: Int[np.ndarray, " N"],
    after: Int[np.ndarray, " N"],
    confidence: Float[np.ndarray, " N"],
    truth: Int[np.ndarray, " N"],
    classes: Sequence[str],
    names: Sequence[str],
    images: Pictures,
) -> Sheet:
    """Images of the most frequent changes, in turn, the most confident of each first; truth is negative if unknown."""
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
    return Sheet(title="Most often changed by debiasing", pictures=pictures, caption=caption)


def changes_in_turn(
    before: Int[np.ndarray, " N"], after: Int[np.ndarray, " N"], confidence: Float[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, " changed"], list[tuple[int, int, int]]]:
    """Rows whose label changes, and the changes as (before, after, number), most frequent first.

    The rows are the most confident one of each change, the most frequent change first, then the second ones, and so on.
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
    """The end of a path: the file and its folder."""
    return "/".join(PurePath(name).parts[-2:])
