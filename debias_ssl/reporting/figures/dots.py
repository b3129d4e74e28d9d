"""Dot charts: numbers of classes, points of a plane, and reliability diagrams."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from debias_ssl.reporting.figures.canvas import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    NAMED,
    NUM_COLORS,
    PANEL,
    WIDTH,
    canvas,
    look,
    name_axis,
    percent_axis,
)
from debias_ssl.reporting.figures.curves import Series, lines


def class_dots(values: Float[np.ndarray, "V C"], names: Sequence[str], alt: str) -> str:
    """A number of each class for several variants, in the order given; many classes become curves of sorted numbers."""
    if len(names) > NAMED:
        rank = np.arange(1, len(names) + 1)
        curves = [Series(x=rank, y=np.sort(row), color=i) for i, row in enumerate(values)]
        return lines(curves, alt, x_label="class, from the lowest", top=1)
    with canvas(WIDTH, 0.6 + 0.24 * len(names), alt) as drawn:
        axes = drawn.axes
        place = np.arange(len(names))
        axes.hlines(place, np.nanmin(values, 0), np.nanmax(values, 0), color=FAINT, linewidth=3)
        for i, row in enumerate(values):
            color, _, marker = look(i)
            # Side by side, so that equal numbers do not hide each other.
            beside = place + min(0.16, 0.8 / len(values)) * (i - (len(values) - 1) / 2)
            axes.plot(row, beside, color=color, marker=marker, markersize=6, linestyle="", alpha=0.85)
        name_axis(axes, names, "y")
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        percent_axis(axes, "x")
    return drawn.svg


def class_intervals(
    share: Float[np.ndarray, " C"],
    low: Float[np.ndarray, " C"],
    high: Float[np.ndarray, " C"],
    true: Float[np.ndarray, " C"] | None,
    names: Sequence[str],
    alt: str,
) -> str:
    """A share of each class with its interval, and the true one, in the order given; many classes become curves."""
    if len(names) > NAMED:
        rank = np.arange(1, len(names) + 1)
        given = [each for each in (share, low, high, true) if each is not None]
        curves = [Series(x=rank, y=np.sort(each)[::-1], color=i) for i, each in enumerate(given)]
        return lines(curves, alt, x_label="class, by rank", top=1.08 * float(high.max()))
    with canvas(WIDTH, 0.6 + 0.24 * len(names), alt) as drawn:
        axes, place = drawn.axes, np.arange(len(names))
        axes.hlines(place, low, high, color=COLORS[0], linewidth=3, alpha=0.45)
        axes.plot(share, place, color=COLORS[0], marker=MARKERS[0], markersize=6, linestyle="")
        if true is not None:
            axes.vlines(true, place - 0.4, place + 0.4, color=COLORS[1], linewidth=2)
        name_axis(axes, names, "y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.08 * max(float(high.max()), 0 if true is None else float(true.max())))
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        percent_axis(axes, "x")
    return drawn.svg


def class_scatter(x: Num[np.ndarray, " C"], values: Float[np.ndarray, "V C"], alt: str, *, x_label: str) -> str:
    """A dot for each class in each row of `values`, all in [0, 1], over a count on a logarithmic axis."""
    with canvas(WIDTH, WIDTH * 0.72, alt) as drawn:
        axes = drawn.axes
        for i, row in enumerate(values):
            axes.scatter(
                x, row, s=30 if len(x) <= NAMED else 9, marker=MARKERS[i], color=COLORS[i], alpha=0.7, linewidths=0
            )
        axes.set_xscale("log")
        # Only powers of ten would be too few ticks on a short axis.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x.max() < 40 * x.min() else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(x_label)
        axes.grid()
        percent_axis(axes)
    return drawn.svg


def clusters(points: Float[np.ndarray, "N 2"], groups: Num[np.ndarray, " N"], alt: str) -> str:
    """Points of a plane at the same scale along both axes; each group has its own marker."""
    with canvas(PANEL, PANEL * 0.95, alt) as drawn:
        axes = drawn.axes
        for i in np.unique(groups):
            x, y = points[groups == i].T
            axes.scatter(
                x, y, s=8, marker=MARKERS[i % NUM_COLORS], color=COLORS[i % NUM_COLORS], alpha=0.6, linewidths=0
            )
        # Both axes are equally long, so that equal scales do not change the layout.
        middle, half = (points.max(0) + points.min(0)) / 2, 0.54 * np.ptp(points, axis=0).max()
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] - half, middle[1] + half)
        axes.set_aspect("equal", adjustable="box")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.grid()
    return drawn.svg


def reliability(
    confidence: Float[np.ndarray, " B"], accuracy: Float[np.ndarray, " B"], share: Float[np.ndarray, " B"], alt: str
) -> str:
    """Accuracy over mean confidence of bins; the area of a dot is the bin's share of the images."""
    with canvas(WIDTH, WIDTH * 0.72, alt) as drawn:
        axes = drawn.axes
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.vlines(confidence, accuracy, confidence, color=COLORS[1], linewidth=1.4)
        axes.plot(confidence, accuracy, color=COLORS[0], linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 260 * share, color=COLORS[0], linewidths=0, alpha=0.85, zorder=3)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.grid()
        percent_axis(axes)
        percent_axis(axes, "x")
    return drawn.svg
