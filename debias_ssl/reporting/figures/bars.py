"""Bar charts: class shares and recalls. With many classes, curves replace the bars."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from debias_ssl.reporting.figures.canvas import COLORS, INK, NAMED, PANEL, WIDTH, canvas, name_axis, percent_axis
from debias_ssl.reporting.figures.curves import Series, lines


def class_shares(
    counted: Float[np.ndarray, " C"],
    every: Float[np.ndarray, " C"] | None,
    true: Float[np.ndarray, " C"] | None,
    names: Sequence[str],
    alt: str,
    *,
    top: float,
    level: float | None = None,
    small: bool = True,
) -> str:
    """Shares of classes: bars of the labels that count, outlines of all labels, ticks of the true shares.

    Many classes become curves of sorted shares.

    Args:
        counted: shares among the labels that count.
        every: shares among all labels.
        true: true shares.
        names: names of the classes.
        alt: description of the figure.
        top: end of the y axis.
        level: height of a dotted line of reference.
        small: whether several figures are side by side.
    """
    if len(counted) > NAMED:
        rank = np.arange(1, len(counted) + 1)
        given = [(i, share) for i, share in enumerate((counted, every, true)) if share is not None]
        series = [Series(x=rank, y=np.sort(share)[::-1], color=i) for i, share in given]
        return lines(series, alt, x_label="class, by rank", top=top, level=level, small=small)
    place = np.arange(len(counted))
    with canvas(PANEL if small else WIDTH, 2.1 if small else 3.2, alt) as drawn:
        axes = drawn.axes
        axes.bar(place, counted, 0.72, color=COLORS[0], alpha=0.75)
        if every is not None:
            axes.bar(place, every, 0.72, fill=False, edgecolor=INK, linewidth=0.7)
        if true is not None:
            axes.hlines(true, place - 0.45, place + 0.45, color=COLORS[1], linewidth=2)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        name_axis(axes, names, "x", 8 if small else 9)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        percent_axis(axes)
    return drawn.svg


def recall_bars(recalls: Float[np.ndarray, " C"], names: Sequence[str], alt: str) -> str:
    """Recalls as bars with their numbers, in the order given; many classes become a curve."""
    if len(recalls) > NAMED:
        rank = np.arange(1, len(recalls) + 1)
        return lines([Series(x=rank, y=recalls)], alt, x_label="class, from the lowest recall", top=1)
    with canvas(WIDTH, 0.6 + 0.22 * len(recalls), alt) as drawn:
        axes = drawn.axes
        place = np.arange(len(recalls))
        axes.barh(place, recalls, 0.7, color=COLORS[0], alpha=0.75)
        for at, recall in zip(place, recalls, strict=True):
            axes.text(recall + 0.01, float(at), f"{100 * recall:.1f} %", va="center", fontsize=8.5)
        name_axis(axes, names, "y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        percent_axis(axes, "x")
    return drawn.svg
