"""The summary of a run in words: what it reached, its weakest class, and the class bias of its pseudo-labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from debias_ssl.formulas.metrics import accuracy_interval
from debias_ssl.reporting.figures import printable
from debias_ssl.reporting.page import Section, between, percent
from debias_ssl.reporting.reading.run import FinishedRun
from debias_ssl.reporting.sections.pseudo_labels import pseudo_label_shares

# Pseudo-labels are even while their class shares are at most this far from the true ones (total variation).
EVEN = 0.05
# Pseudo-labels for each class, on average, from which a line of the log tells the class shares: fewer are chance.
ENOUGH = 10
# Classes that a sentence names.
SPOKEN = 3


def summary_in_words(run: FinishedRun, counts: Sequence[int] | None) -> Section:
    """Three sentences about a run, from its own figures.

    Args:
        run: the run.
        counts: unlabeled images of each true class; None if unknown.
    """
    confusion = torch.tensor(run.metrics["confusion"])
    recalls = np.array([np.nan if recall is None else recall for recall in run.metrics["recalls"]], dtype=float)
    true = None if counts is None else np.array(counts) / sum(counts)
    stage, before = (", fine-tuned,", "Before fine-tuning: ") if run.finetuned else ("", "")
    reached = (
        f"{run.method}{stage} reached {percent(run.metrics['accuracy'], 1)} accuracy with "
        f"{labels_in_words(run.labeled_counts)}, on {int(confusion.sum()):,} test images (95 % interval "
        f"{between(accuracy_interval(confusion))})."
    )
    points = [
        reached,
        weakest_in_words(recalls, confusion.sum(1).numpy(), run.classes),
        before + pseudo_labels_in_words(run.logs, true, run.classes),
    ]
    return Section(title="Summary", points=points)


def labels_in_words(counts: Sequence[int]) -> str:
    """How many labels each class has, such as "4 labels a class"."""
    low, high = min(counts), max(counts)
    if low == high:
        return f"{high:,} label{'s' * (high > 1)} a class"
    return f"{sum(counts):,} labels ({low:,} to {high:,} a class)"


def weakest_in_words(recalls: Float[np.ndarray, " C"], tested: Int[np.ndarray, " C"], names: Sequence[str]) -> str:
    """The classes with the lowest recall.

    Args:
        recalls: recall of each class; nan if a class has no test images.
        tested: test images of each class.
        names: names of the classes.
    """
    present = np.flatnonzero(~np.isnan(recalls)).tolist()
    low, mean = np.nanmin(recalls), percent(float(np.nanmean(recalls)), 1)
    weakest = [k for k in present if recalls[k] == low]
    if len(present) == 1:
        return f"Only class {printable(names[present[0]])} has test images."
    if len(weakest) == len(present):
        return f"All classes have the same recall, {mean}."
    right = f"{percent(float(low), 1)} of {{}} test images are right; the mean recall over classes is {mean}."
    if len(weakest) == 1:
        number = tested[weakest[0]]
        return f"Class {printable(names[weakest[0]])} is the weakest: {right.format(f'its {number:,}')}"
    spoken = ", ".join(printable(names[k]) for k in weakest[:SPOKEN])
    more = f" and {len(weakest) - SPOKEN:,} more" if len(weakest) > SPOKEN else ""
    return f"Classes {spoken}{more} are the weakest: {right.format('their')}"


def pseudo_labels_in_words(
    logs: Sequence[dict[str, Any]], true: Float[np.ndarray, " C"] | None, names: Sequence[str]
) -> str:
    """Which class the pseudo-labels favored most, and whether and when their class shares became even.

    Args:
        logs: lines of the log of a run.
        true: class shares of the unlabeled images; None if unknown.
        names: names of the classes.
    """
    numbers = [float(np.dot(log["pseudo_counts"], log["pseudo_weights"])) for log in logs]
    if not any(numbers):
        return "No pseudo-label counted in training."
    counting = [log for log, number in zip(logs, numbers, strict=True) if number >= ENOUGH * len(names)]
    if not counting:
        return f"Only {sum(numbers):,.0f} pseudo-labels counted in training: too few to tell which classes they favor."
    steps, shares = [log["step"] for log in counting], np.stack([pseudo_label_shares(log)[0] for log in counting])
    if true is None:
        where = int(shares.max(1).argmax())
        most, last = int(shares[where].argmax()), int(shares[-1].argmax())
        return (
            f"The most frequent pseudo-label at step {steps[where]:,} was {printable(names[most])} "
            f"({percent(float(shares[where, most]), 1)}), at step {steps[-1]:,} {printable(names[last])} "
            f"({percent(float(shares[-1, last]), 1)}); the true class shares are unknown."
        )
    away = np.abs(shares - true).sum(1) / 2
    where = int(away.argmax())
    if away[where] <= EVEN:
        return (
            f"Pseudo-labels stayed close to the true class shares: {percent(float(away[where]), 1)} away from them at "
            f"most, at step {steps[where]:,}."
        )
    most = int((shares[where] - true).argmax())
    favored = (
        f"Pseudo-labels favored class {printable(names[most])} most at step {steps[where]:,} "
        f"({percent(float(shares[where, most]), 1)} of them, true share {percent(float(true[most]), 1)})"
    )
    if away[-1] > EVEN:
        return (
            f"{favored}; at step {steps[-1]:,} their class shares were {percent(float(away[-1]), 1)} away from the "
            "true ones."
        )
    even = steps[int(np.flatnonzero(away > EVEN)[-1]) + 1]
    return (
        f"{favored}, and evened out by step {even:,}: from there on, their class shares were at most "
        f"{percent(EVEN, 0)} away from the true ones."
    )
