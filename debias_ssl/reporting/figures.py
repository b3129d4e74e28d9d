"""Figures as SVG text: pure functions of arrays. Colors are the page's, so that a figure fits light and dark pages."""

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

NUM_COLORS = 6
# Colors that matplotlib writes, and what stands for them on the page.
INK, FAINT, HEAT = "#010101", "#020202", "#030303"
COLORS = tuple(f"#04040{i}" for i in range(NUM_COLORS))
PAGE_COLORS = {INK: "currentColor", FAINT: "var(--faint)", HEAT: "var(--heat)"}
PAGE_COLORS |= {color: f"var(--c{i})" for i, color in enumerate(COLORS)}
# A raster cannot follow the page, so it has a hue between both themes' and shows its values by opacity.
RASTER = (0.22, 0.55, 0.80)
DASHES: tuple[tuple[float, tuple[float, ...] | None], ...] = ((0, None), (0, (5, 2)), (0, (1.5, 1.5)))
DASHES += ((0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv*"
# At most so many classes are named along an axis, or drawn as cells of their own.
NAMED = 30
# Of a raster: a page shows no more, and largest values of blocks of classes are seen where single ones would not be.
MOST_CELLS = 250
# A figure is as wide as a phone's page, so that its letters keep their size there.
WIDTH, PANEL = 5.0, 2.75
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.7,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, and where it is the mean of several the band of their spread."""

    x: Num[np.ndarray, " T"]
    y: Num[np.ndarray, " T"]
    spread: Num[np.ndarray, " T"] | None = None
    color: int = 0
    marker: bool = False


def plain(text: str) -> str:
    """A name as it can be shown: bytes that are no text, and control characters, become question marks."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() or letter == "\u00a0" else "?" for letter in text)


def shortened(text: str, length: int = 14) -> str:
    text = plain(text)
    return text if len(text) <= length else text[: length - 1] + "…"


@contextmanager
def _figure(width: float, height: float, svg: list[str], alt: str) -> Iterator[tuple[Figure, Axes]]:
    """A figure to draw on, whose SVG is then added to `svg`."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plain(alt)}), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are drawn by the reader's.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        yield figure, figure.add_subplot()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg.append(_for_page(buffer.getvalue(), alt))


def _for_page(svg: str, alt: str) -> str:
    """The SVG without what refers to anything outside of it, with the page's colors and letters."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    label = html.escape(plain(alt))
    opening = f'<svg {size[0]} role="img" aria-label="{label}"><title>{label}</title>'
    body = svg[svg.index(">") + 1 :]
    # Ids of groups are the same in every figure, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"(<(?:use|image) [^>]*)xlink:href=", r"\1href=", body)
    body = re.sub(r'style="[^"]*"', lambda style: _page_style(style[0]), body)
    # Hundredths of a pixel are enough for what is seen, and shorten a page by a third.
    body = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _page_style(style: str) -> str:
    """A style attribute with the page's colors, and no font but its size."""
    style = re.sub(r"font: (?:[a-z0-9]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", style)
    style = re.sub(r"font-family: [^;\"]*;? ?", "", style)
    for color, on_page in PAGE_COLORS.items():
        style = style.replace(color, on_page)
    return style


def _percent(axes: Axes, which: str = "y") -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


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
    """Lines over steps or ranks, or over what is not a whole number; `level` is a line of reference, or several."""
    svg: list[str] = []
    with _figure(PANEL if small else WIDTH, 2.1 if small else 2.9, svg, alt) as (_, axes):
        for line in series:
            color, dash = COLORS[line.color % NUM_COLORS], DASHES[line.color % NUM_COLORS]
            marker = MARKERS[line.color % NUM_COLORS] if line.marker else ""
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
            _percent(axes)
    return svg[0]


def marginals(
    steps: Num[np.ndarray, " T"],
    marginal: Float[np.ndarray, "T C"],
    names: Sequence[str],
    shown: Sequence[int],
    alt: str,
) -> str:
    """The marginal of each class over steps: all as a band and, where they are few, as faint lines; some by name."""
    svg: list[str] = []
    num_classes = marginal.shape[1]
    with _figure(WIDTH, 3.2, svg, alt) as (_, axes):
        axes.fill_between(steps, marginal.min(1), marginal.max(1), color=FAINT, alpha=0.5, linewidth=0)
        if num_classes <= NAMED:
            axes.plot(steps, marginal, color=INK, alpha=0.35, linewidth=0.8)
        for i, k in enumerate(shown):
            axes.plot(steps, marginal[:, k], color=COLORS[i], linestyle=DASHES[i])
        axes.axhline(1 / num_classes, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        # Names beside the ends of the lines, apart from each other.
        low, high = axes.get_ylim()
        place = low
        for k in sorted(shown, key=lambda k: marginal[-1, k]):
            place = max(place + 0.065 * (high - low), marginal[-1, k])
            text = shortened(names[k])
            color = COLORS[list(shown).index(k)]
            axes.annotate(
                text, (1.02, place), xycoords=("axes fraction", "data"), va="center", color=color, annotation_clip=False
            )
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.set_ylim(low, high)
        axes.grid(axis="y")
        _percent(axes)
    return svg[0]


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
    """Shares of classes: bars of the labels that count, outlines of all, ticks of the true ones.

    With many classes, curves of the sorted shares. `level` is a line of reference.
    """
    if len(counted) > NAMED:
        rank = np.arange(1, len(counted) + 1)
        given = [(i, share) for i, share in enumerate((counted, every, true)) if share is not None]
        series = [Series(x=rank, y=np.sort(share)[::-1], color=i) for i, share in given]
        return lines(series, alt, x_label="class, by rank", top=top, level=level, small=small)
    svg: list[str] = []
    place = np.arange(len(counted))
    with _figure(PANEL if small else WIDTH, 2.1 if small else 3.2, svg, alt) as (_, axes):
        axes.bar(place, counted, 0.72, color=COLORS[0], alpha=0.75)
        if every is not None:
            axes.bar(place, every, 0.72, fill=False, edgecolor=INK, linewidth=0.7)
        if true is not None:
            axes.hlines(true, place - 0.45, place + 0.45, color=COLORS[1], linewidth=2)
        if level is not None:
            axes.axhline(level, color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        _name_axis(axes, names, "x", 8 if small else 9)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _percent(axes)
    return svg[0]


def _name_axis(axes: Axes, names: Sequence[str], which: str, size: int = 9) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(len(names)))
    length = max(map(len, names), default=0)
    crowded = which == "x" and (length > 2 or len(names) > 12)
    axis.set_ticklabels([shortened(name, 12) for name in names], fontsize=size, rotation=90 if crowded else 0)
    axis.set_tick_params(length=0)


def recall_bars(recalls: Float[np.ndarray, " C"], names: Sequence[str], alt: str) -> str:
    """Recalls in the order given; a curve where the classes are many."""
    if len(recalls) > NAMED:
        rank = np.arange(1, len(recalls) + 1)
        return lines([Series(x=rank, y=recalls)], alt, x_label="class, from the lowest recall", top=1)
    svg: list[str] = []
    with _figure(WIDTH, 0.6 + 0.22 * len(recalls), svg, alt) as (_, axes):
        place = np.arange(len(recalls))
        axes.barh(place, recalls, 0.7, color=COLORS[0], alpha=0.75)
        for at, recall in zip(place, recalls, strict=True):
            axes.text(recall + 0.01, float(at), f"{100 * recall:.1f} %", va="center", fontsize=8.5)
        _name_axis(axes, names, "y")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.12)
        axes.set_xticks(np.linspace(0, 1, 6))
        _percent(axes, "x")
    return svg[0]


def class_dots(values: Float[np.ndarray, "V C"], names: Sequence[str], alt: str) -> str:
    """A number of each class for several variants, in the order given; curves of sorted numbers for many classes."""
    if len(names) > NAMED:
        rank = np.arange(1, len(names) + 1)
        curves = [Series(x=rank, y=np.sort(row), color=i) for i, row in enumerate(values)]
        return lines(curves, alt, x_label="class, from the lowest", top=1)
    svg: list[str] = []
    with _figure(WIDTH, 0.6 + 0.24 * len(names), svg, alt) as (_, axes):
        place = np.arange(len(names))
        axes.hlines(place, np.nanmin(values, 0), np.nanmax(values, 0), color=FAINT, linewidth=3)
        for i, row in enumerate(values):
            color, marker = COLORS[i % NUM_COLORS], MARKERS[i % NUM_COLORS]
            # Side by side, so that equal ones are all seen.
            beside = place + 0.16 * (i - (len(values) - 1) / 2)
            axes.plot(row, beside, color=color, marker=marker, markersize=6, linestyle="", alpha=0.85)
        _name_axis(axes, names, "y")
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _percent(axes, "x")
    return svg[0]


def heat_map(
    shares: Float[np.ndarray, "R K"],
    names: Sequence[str],
    alt: str,
    *,
    labels: Sequence[str] = ("predicted", "true"),
    texts: Sequence[Sequence[str]] = (),
    border: int | None = None,
) -> str:
    """Opacity by value in [0, 1]; with few classes as cells with texts, with many as one raster."""
    svg: list[str] = []
    num = len(shares)
    with _figure(WIDTH, WIDTH * 0.9, svg, alt) as (_, axes):
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
                _name_axis(axes, names, axis, 9 if num <= 15 else 7)
        if border is not None:
            for draw in (axes.axhline, axes.axvline):
                draw(border - 0.5, color=INK, linewidth=1)
        axes.set_aspect("equal")
        axes.spines[:].set_visible(True)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    return svg[0]


def _cells(axes: Axes, shares: Float[np.ndarray, "R K"], texts: Sequence[Sequence[str]]) -> None:
    """Cells whose opacity is their value in [0, 1], with texts."""
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
    """How near the nearest, second nearest ... class of some classes is; the nearest is named on the right."""
    svg: list[str] = []
    num, num_neighbors = shares.shape
    with _figure(WIDTH, 0.9 + 0.26 * num, svg, alt) as (_, axes):
        _cells(axes, shares, texts)
        _name_axis(axes, names, "y")
        _name_axis(axes, [str(rank) for rank in range(1, num_neighbors + 1)], "x")
        axes.set_xlabel("neighbor, nearest first; named is the nearest")
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(num), [shortened(name, 12) for name in nearest], fontsize=9)
        right.tick_params(length=0)
        axes.spines[:].set_visible(True)
    return svg[0]


def class_scatter(x: Num[np.ndarray, " C"], values: Float[np.ndarray, "V C"], alt: str, *, x_label: str) -> str:
    """Numbers of each class in [0, 1], one mark for each of `values`, over a count on a logarithmic axis."""
    svg: list[str] = []
    with _figure(WIDTH, WIDTH * 0.72, svg, alt) as (_, axes):
        for i, row in enumerate(values):
            axes.scatter(
                x, row, s=30 if len(x) <= NAMED else 9, marker=MARKERS[i], color=COLORS[i], alpha=0.7, linewidths=0
            )
        axes.set_xscale("log")
        # Within little more than a decade its powers alone would be few marks.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x.max() < 40 * x.min() else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(x_label)
        axes.grid()
        _percent(axes)
    return svg[0]


def clusters(points: Float[np.ndarray, "N 2"], groups: Num[np.ndarray, " N"], alt: str) -> str:
    """Points of a plane, each group with its mark, at the same scale along both axes."""
    svg: list[str] = []
    with _figure(PANEL, PANEL * 0.95, svg, alt) as (_, axes):
        for i in np.unique(groups):
            x, y = points[groups == i].T
            axes.scatter(
                x, y, s=8, marker=MARKERS[i % NUM_COLORS], color=COLORS[i % NUM_COLORS], alpha=0.6, linewidths=0
            )
        # Limits of the same width, so that equal scales leave the labels that the layout has made room for.
        middle, half = (points.max(0) + points.min(0)) / 2, 0.54 * np.ptp(points, axis=0).max()
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] - half, middle[1] + half)
        axes.set_aspect("equal", adjustable="box")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(4))
        axes.grid()
    return svg[0]


def reliability(
    confidence: Float[np.ndarray, " B"], accuracy: Float[np.ndarray, " B"], share: Float[np.ndarray, " B"], alt: str
) -> str:
    """Accuracy over mean confidence of bins; the area of a dot is the bin's share of the images."""
    svg: list[str] = []
    with _figure(WIDTH, WIDTH * 0.72, svg, alt) as (_, axes):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.vlines(confidence, accuracy, confidence, color=COLORS[1], linewidth=1.4)
        axes.plot(confidence, accuracy, color=COLORS[0], linewidth=1)
        axes.scatter(confidence, accuracy, s=12 + 260 * share, color=COLORS[0], linewidths=0, alpha=0.85, zorder=3)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.grid()
        _percent(axes)
        _percent(axes, "x")
    return svg[0]
