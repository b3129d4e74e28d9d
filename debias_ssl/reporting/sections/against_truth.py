"""Predictions against the truth: confusion matrix and reliability diagram."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from debias_ssl.formulas.calibration import expected_calibration_error, reliability_bins
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, printable
from debias_ssl.reporting.page import Figure, percent

Confusion = Int[np.ndarray, "C C"]


def confusion_counts(truth: Int[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], num_classes: int) -> Confusion:
    """Counts by (true class, predicted class); rows whose truth is unknown (negative) are left out."""
    return confusion_matrix(torch.from_numpy(truth), torch.from_numpy(predicted), num_classes).numpy()


def confusion_figure(confusion: Confusion, names: Sequence[str], title: str, what: str) -> Figure:
    """A confusion matrix, drawn as shares of each true class.

    Args:
        confusion: counts by (true class, predicted class).
        names: names of the classes.
        title: title of the figure.
        what: the predictions in words, for the description.
    """
    rows = confusion.sum(1, keepdims=True)
    shares = confusion / np.maximum(rows, 1)
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    worst = [divmod(int(i), len(names)) for i in np.argsort(-wrong, axis=None, kind="stable")[:3]]
    mistakes = ", ".join(
        f"{printable(names[r])} predicted as {printable(names[k])} ({wrong[r, k]:,})" for r, k in worst if wrong[r, k]
    )
    accuracy = percent(np.trace(confusion) / max(1, confusion.sum()))
    alt = f"Confusion matrix of {what}: {accuracy} of {confusion.sum():,} right; most frequent mistakes: "
    svg = figures.heat_map(
        # The square root makes rare mistakes visible too.
        np.sqrt(shares),
        names,
        alt + (mistakes or "none") + ".",
        texts=[[f"{count:,}" if count else "" for count in row] for row in confusion[:NAMED]],
    )
    return Figure(
        title=title,
        svg=svg,
        caption=f"{accuracy} of {confusion.sum():,} are right. Rows are true classes, columns are predicted ones. "
        f"Most frequent mistakes: {mistakes or 'none'}.",
    )


def reliability_figure(
    confidence: Float[np.ndarray, " N"], predicted: Int[np.ndarray, " N"], truth: Int[np.ndarray, " N"], title: str
) -> Figure:
    """Accuracy over confidence in bins; rows whose truth is unknown (negative) are left out."""
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
        legend=[("mark-0", "bin (area: share of the images)"), ("line-1", "gap"), ("level", "perfect calibration")],
        caption=f"Below the dotted line, confidence is higher than accuracy. On average, the model is {direction} "
        f"by {percent(abs(gap))}.",
    )
