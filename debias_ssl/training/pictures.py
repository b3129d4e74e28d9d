"""Pictures of a run for its trackers: functions of arrays that return pixels."""

import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

Picture = UInt8[np.ndarray, "height width 3"]
# Up to this number of classes, an axis shows their names.
NAMED = 30
# This many of the classes with the largest marginal, and with the smallest one, have their own lines.
EXTREME = 3
STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 9, "axes.titlesize": 8}


@dataclass(kw_only=True)
class _Drawing:
    figure: Any
    pixels: Any = None


@contextmanager
def _drawn(width: float, height: float) -> Any:
    """An empty figure of a size in inches. Its pixels are available after the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        drawing = _Drawing(figure=Figure(figsize=(width, height), layout="constrained"))
        yield drawing
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()
        drawing.pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shown(name: str, length: int = 14) -> str:
    """The name of a class for a picture: at most `length` letters, and question marks for unprintable ones."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name.encode("utf-8", "replace").decode())
    return name if len(name) <= length else name[: length - 1] + "…"


def confusion_picture(confusion: Int[np.ndarray, "C C"], classes: Sequence[str]) -> Picture:
    """A confusion matrix: rows are true classes, and the color is the square root of the share of the row.

    Args:
        confusion: counts by (true class, predicted class).
        classes: names of the classes.
    """
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    with _drawn(6, 5.4) as drawing:
        axes = drawing.figure.add_subplot()
        axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if len(classes) <= NAMED:
            names = [shown(name) for name in classes]
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return drawing.pixels


def marginal_picture(
    steps: Int[np.ndarray, " T"], marginals: Float[np.ndarray, "T C"], classes: Sequence[str]
) -> Picture:
    """The marginal over time: a band over all classes, and lines for the classes that end highest and lowest.

    Args:
        steps: numbers of steps.
        marginals: running mean of the predictions on unlabeled images, without debiasing, at these steps.
        classes: names of the classes.
    """
    order: list[int] = np.argsort(-marginals[-1], kind="stable").tolist()
    named = order if len(order) <= 2 * EXTREME else [*order[:EXTREME], *order[-EXTREME:]]
    with _drawn(6, 3.6) as drawing:
        axes = drawing.figure.add_subplot()
        axes.fill_between(steps, marginals.min(1), marginals.max(1), color="0.85", linewidth=0)
        for k in named:
            # The space is needed: the legend leaves out names that begin with an underscore.
            axes.plot(steps, marginals[:, k], marker="." if len(steps) < 3 else "", label=f" {shown(classes[k])}")
        axes.axhline(1 / len(classes), color="0.4", linewidth=0.9, linestyle="--")
        axes.set_xlabel("step")
        axes.set_ylabel("marginal")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return drawing.pixels


def examples_picture(images: Float[np.ndarray, "N H W K"], titles: Sequence[str]) -> Picture:
    """Images in rows of eight, each with a title.

    Args:
        images: values in [0, 1], with three channels or one.
        titles: one or two lines for each image.
    """
    rows = -(-len(images) // 8)
    with _drawn(12, 1.9 * rows) as drawing:
        for i, (image, title) in enumerate(zip(images, titles, strict=True)):
            axes = drawing.figure.add_subplot(rows, 8, i + 1)
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axes.set_title(title)
            axes.set_axis_off()
    return drawing.pixels
