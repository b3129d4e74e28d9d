"""Heat maps: a matrix over classes, and the similarity of classes to their nearest classes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from debias_ssl.reporting.figures.canvas import HEAT, INK, NAMED, WIDTH, canvas, name_axis, truncated

# A color for the light and the dark theme, because the pixels of an image do not change with the theme.
RASTER = (0.22, 0.55, 0.80)
# Largest number of rows and columns of an image, as a page cannot show more. A pixel shows the largest value of a block
# of classes.
MOST_CELLS = 250


def heat_map(
    shares: Float[np.ndarray, "R K"],
    names: Sequence[str],
    alt: str,
    *,
    labels: Sequence[str] = ("predicted", "true"),
    texts: Sequence[Sequence[str]] = (),
    border: int | None = None,
) -> str:
    """A matrix: the larger the value of a cell in [0, 1], the more opaque it is. Many classes become one image.

    Args:
        shares: the matrix.
        names: of the classes.
        alt: description of the figure.
        labels: labels of the x and the y axis.
        texts: texts of the cells, if there are few cells.
        border: number of the row and column before which a line is drawn.
    """
    num = len(shares)
    with canvas(WIDTH, WIDTH * 0.9, alt) as drawn:
        axes = drawn.axes
        if num > NAMED:
            side = -(-num // MOST_CELLS)
            shares = np.pad(shares.clip(0, 1), (0, -num % side))
            shares = shares.reshape(len(shares) // side, side, -1, side).max((1, 3))
            raster = np.empty((*shares.shape, 4))
            raster[..., :3], raster[..., 3] = RASTER, shares
            end = len(shares) * side - 0.5
            axes.imshow(raster, interpolation="none", extent=(-0.5, end, end, -0.5))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        else:
            _cells(axes, shares, texts if num <= 12 else ())
            for axis in ("x", "y"):
                name_axis(axes, names, axis, 9 if num <= 15 else 7)
        if border is not None:
            for draw in (axes.axhline, axes.axvline):
                draw(border - 0.5, color=INK, linewidth=1)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(True)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    return drawn.svg


def _cells(axes: Axes, shares: Float[np.ndarray, "R K"], texts: Sequence[Sequence[str]]) -> None:
    """Draws cells with texts; their value in [0, 1] is their opacity."""
    rows, columns = shares.shape
    cells = [Rectangle((k - 0.5, r - 0.5), 1, 1) for r in range(rows) for k in range(columns)]
    alphas = shares.clip(0, 1).ravel()
    seen = [(cell, alpha) for cell, alpha in zip(cells, alphas, strict=True) if alpha > 0.005]
    for cell, alpha in seen:
        cell.set_alpha(alpha)
    collection = PatchCollection([cell for cell, _ in seen], facecolor=HEAT, linewidth=0)
    collection.set_alpha([alpha for _, alpha in seen])
    axes.add_collection(collection)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    for r, row in enumerate(texts):
        for k, text in enumerate(row):
            axes.text(k, r, text, ha="center", va="center", fontsize=8)


def neighbors(
    shares: Float[np.ndarray, "R K"],
    names: Sequence[str],
    nearest: Sequence[str],
    texts: Sequence[Sequence[str]],
    alt: str,
) -> str:
    """The similarity of classes to their nearest, second nearest ... class, with the name of the nearest one."""
    num, num_neighbors = shares.shape
    with canvas(WIDTH, 0.9 + 0.26 * num, alt) as drawn:
        axes = drawn.axes
        _cells(axes, shares, texts)
        name_axis(axes, names, "y")
        name_axis(axes, [str(rank) for rank in range(1, num_neighbors + 1)], "x")
        axes.set_xlabel("neighbor, nearest first (its name on the right)")
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(num), [truncated(name, 12) for name in nearest], fontsize=9)
        right.tick_params(length=0)
        axes.spines[:].set_visible(True)
    return drawn.svg
