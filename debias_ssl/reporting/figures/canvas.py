"""The base of all figures: colors and styles, names along an axis, and the conversion of matplotlib figures to SVG.

Figures use the colors of the page, so that they fit its light and its dark theme.
"""

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

NUM_COLORS = 6
# Colors that matplotlib writes, and the CSS that replaces them.
INK, FAINT, HEAT = "#010101", "#020202", "#030303"
COLORS = tuple(f"#04040{i}" for i in range(NUM_COLORS))
PAGE_COLORS = {INK: "currentColor", FAINT: "var(--faint)", HEAT: "var(--heat)"}
PAGE_COLORS |= {color: f"var(--c{i})" for i, color in enumerate(COLORS)}
DASHES: tuple[tuple[float, tuple[float, ...] | None], ...] = ((0, None), (0, (5, 2)), (0, (1.5, 1.5)))
DASHES += ((0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv*"
# Up to this number of classes, an axis names each of them and a matrix has a cell for each pair.
NAMED = 30
# In inches. A figure has the width of a page on a phone, so that its letters keep their size there. FULL is for a wide
# page.
WIDTH, PANEL, FULL = 5.0, 2.75, 10.5
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


def look(number: int) -> tuple[str, tuple[float, tuple[float, ...] | None], str]:
    """Color, dashes and marker of one of several lines; a repeated color has other dashes and another marker."""
    shifted = (number + number // NUM_COLORS) % NUM_COLORS
    return COLORS[number % NUM_COLORS], DASHES[shifted], MARKERS[shifted]


def printable(text: str) -> str:
    """A text that can be shown: bytes that are not UTF-8, and control characters, become question marks."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() or letter == "\u00a0" else "?" for letter in text)


def truncated(text: str, length: int = 14) -> str:
    """A printable text of at most `length` letters; a longer one ends with an ellipsis."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(kw_only=True)
class Canvas:
    """Axes to draw on. The SVG is available after the block of `canvas`."""

    axes: Axes
    svg: str = ""


@contextmanager
def canvas(width: float, height: float, alt: str) -> Iterator[Canvas]:
    """An empty figure of a size in inches; `alt` is its description for readers who cannot see it."""
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{printable(alt)} {width}"}), warnings.catch_warnings():
        # The reader's font draws the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02))
        drawn = Canvas(axes=figure.add_subplot())
        yield drawn
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    drawn.svg = _for_page(buffer.getvalue(), alt)


def _for_page(svg: str, alt: str) -> str:
    """The SVG with the page's colors and fonts, and without references to anything outside of it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', svg)
    assert size is not None
    label = html.escape(printable(alt))
    opening = f'<svg {size[0]} role="img" aria-label="{label}"><title>{label}</title>'
    body = svg[svg.index(">") + 1 :]
    # Ids of groups are equal in all figures, and not used.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"(<(?:use|image) [^>]*)xlink:href=", r"\1href=", body)
    body = re.sub(r'style="[^"]*"', lambda style: _page_style(style[0]), body)
    # 0.01 pixels are invisible, and fewer digits make a page 33 % shorter.
    body = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _page_style(style: str) -> str:
    """A style attribute with the page's colors; only the size of fonts is kept."""
    style = re.sub(r"font: (?:[a-z0-9]+ )*([\d.]+px) [^;\"]*", r"font-size: \1", style)
    style = re.sub(r"font-family: [^;\"]*;? ?", "", style)
    for color, on_page in PAGE_COLORS.items():
        style = style.replace(color, on_page)
    return style


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Writes the numbers along an axis as percent."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def name_axis(axes: Axes, names: Sequence[str], which: str, size: int = 9) -> None:
    """Writes the names of classes along an axis."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(range(len(names)))
    length = max(map(len, names), default=0)
    crowded = which == "x" and (length > 2 or len(names) > 12)
    axis.set_ticklabels([truncated(name, 12) for name in names], fontsize=size, rotation=90 if crowded else 0)
    axis.set_tick_params(length=0)
