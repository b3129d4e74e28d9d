"""Line charts: curves over training steps, or over ranks of classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num
from matplotlib.ticker import MaxNLocator

from debias_ssl.reporting.figures.canvas import (
    COLORS,
    DASHES,
    FAINT,
    FULL,
    INK,
    NAMED,
    PANEL,
    WIDTH,
    canvas,
    look,
    percent_axis,
    truncated,
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, and a band around it if it is the mean of several runs.

    Args:
        x: steps, or ranks of classes.
        y: heights; nan leaves a gap.
        spread: how far the band reaches above and below the line.
        color: number of its color, dash pattern and marker.
        marker: whether each point has a marker.
    """

    x: Num[np.ndarray, " T"]
    y: Num[np.ndarray, " T"]
    spread: Num[np.ndarray, " T"] | None = None
    color: int = 0
    marker: bool = False


def lines(
    series: Sequence[Series],
    alt: str,
    *,
    x_label: str = "step",
    percent: bool = True,
    top: float | None = None,
    level: float | Sequence[float] | None = None,
    small: bool = False,
    whole: bool = True,
) -> str:
    """Lines over steps or ranks, or over any other number.

    Args:
        series: the lines.
        alt: description of the figure.
        x_label: label of the x axis.
        percent: whether the heights are written as percent.
        top: end of the y axis; None fits it to the lines.
        level: heights of dotted lines of reference.
        small: whether several figures are side by side.
        whole: whether only whole numbers are written along the x axis.
    """
    with canvas(PANEL if small else WIDTH, 2.1 if small else 2.9, alt) as drawn:
        axes = drawn.axes
        for line in series:
            color, dash, marker = look(line.color)
            marker = marker if line.marker else ""
            axes.plot(line.x, line.y, color=color, linestyle=dash, marker=marker, markersize=3.5)
            if line.spread is not None:
                low, high = line.y - line.spread, line.y + line.spread
                axes.fill_between(line.x, low, high, color=color, alpha=0.18, linewidth=0)
        for height in () if level is None else np.atleast_1d(level):
            axes.axhline(height, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=whole, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(4 if small else 5))
        axes.set_ylim(bottom=0 if not percent or small else None, top=top)
        axes.grid(axis="y")
        if percent:
            percent_axis(axes)
    return drawn.svg


def marginals(
    steps: Num[np.ndarray, " T"],
    marginal: Float[np.ndarray, "T C"],
    names: Sequence[str],
    shown: Sequence[int],
    alt: str,
    *,
    is_wide: bool = False,
) -> str:
    """The marginal of each class over steps: a band over all classes, and a faint line for each class if there are few.

    Args:
        steps: the steps.
        marginal: probabilities at these steps.
        names: of the classes.
        shown: classes that get a colored line and their name.
        alt: description of the figure.
        is_wide: whether the figure fills a wide page.
    """
    num_classes = marginal.shape[1]
    with canvas(FULL if is_wide else WIDTH, 3.2, alt) as drawn:
        axes = drawn.axes
        axes.fill_between(steps, marginal.min(1), marginal.max(1), color=FAINT, alpha=0.5, linewidth=0)
        if num_classes <= NAMED:
            axes.plot(steps, marginal, color=INK, alpha=0.35, linewidth=0.8)
        for i, k in enumerate(shown):
            axes.plot(steps, marginal[:, k], color=COLORS[i], linestyle=DASHES[i])
        axes.axhline(1 / num_classes, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        # Names are at the ends of the lines, at a distance from each other.
        low, high = axes.get_ylim()
        place = low
        for k in sorted(shown, key=lambda k: marginal[-1, k]):
            place = max(place + 0.065 * (high - low), marginal[-1, k])
            text = truncated(names[k])
            color = COLORS[list(shown).index(k)]
            axes.annotate(
                text,
                (1.01 if is_wide else 1.02, place),
                xycoords=("axes fraction", "data"),
                va="center",
                color=color,
                annotation_clip=False,
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(10 if is_wide else 5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.set_ylim(low, high)
        axes.grid(axis="y")
        percent_axis(axes)
    return drawn.svg
