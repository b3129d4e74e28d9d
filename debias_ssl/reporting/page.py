"""The parts of a page, such as figures and tables, and the rendering of a page to one HTML file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from debias_ssl.reporting.figures import NUM_COLORS, printable

# In pixels. Larger images would make a page large, and are shown at this size anyway.
LARGEST_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its title, legend and caption."""

    title: str
    svg: str
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    """Pairs of a symbol (line-0, mark-1, bar-0, outline, tick-1, level) and its meaning."""
    is_small: bool = False
    wide_svg: str = ""
    """The same drawing for pages that are wide enough; it then fills their width."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts; the first cell of each is its title."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_closed: bool = False
    """Whether the table is folded until the reader opens it."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    source: str
    alt: str
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Example images."""

    title: str
    pictures: Sequence[Picture]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    text: str = ""
    points: Sequence[str] = ()
    """Sentences, one below the other."""
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    title: str
    facts: Sequence[str]
    """Short lines below the title."""
    notes: Sequence[str] = ()
    """Parts that are left out, and why."""
    sections: Sequence[Section] = ()
    texts: Sequence[tuple[str, str]] = field(default=())
    """Titles and contents of files, folded until the reader opens them."""


def render(page: Page, version: str) -> str:
    """The page as HTML. All text is escaped; only the SVG of figures is not."""
    environment = Environment(
        loader=PackageLoader("debias_ssl.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str and "\n" not in value else value,
    )
    text = environment.get_template("report.html").render(
        page=page, version=version, markup=Markup, num_colors=NUM_COLORS
    )
    return text.encode("utf-8", "replace").decode()


def picture(pixels: UInt8[np.ndarray, "H W K"], alt: str, lines: Sequence[str]) -> Picture:
    """An image as part of the page: unchanged up to 64 pixels, else smaller and compressed."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source=source, alt=printable(alt), lines=lines)


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as percent; a dash if it is unknown."""
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}\u00a0%"


def between(interval: Sequence[float] | None) -> str:
    """An interval of fractions as percent; a dash for None."""
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {percent(interval[1], 1)}"


def named(shares: Float[np.ndarray, " C"], names: Sequence[str], order: Sequence[int], digits: int = 1) -> str:
    """Names of classes with their shares, separated by commas."""
    return ", ".join(f"{printable(names[k])} ({percent(float(shares[k]), digits)})" for k in order)
