"""What a report consists of, and the way it becomes one HTML file."""

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

# Sides of the images on a page: larger ones would make it heavy, and would not be seen.
LARGEST_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing with its title, legend and caption."""

    title: str
    svg: str
    caption: str = ""
    legend: Sequence[tuple[str, str]] = ()
    """Pairs of a key's kind (line-0, mark-1, bar-0, outline, tick-1, level) and its meaning."""
    is_small: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of texts; the first cell of each is its title."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_closed: bool = False
    """Whether the table is to be opened by the reader."""


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
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    sheets: Sequence[Sheet] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    title: str
    facts: Sequence[str]
    """Short lines below the title."""
    notes: Sequence[str] = ()
    """What is left out, and why."""
    sections: Sequence[Section] = ()
    texts: Sequence[tuple[str, str]] = field(default=())
    """Titles and contents of files, to be opened by the reader."""


def render(page: Page, version: str) -> str:
    """The page as HTML; every text in it is escaped, and of figures only their SVG is not."""
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
    """An image as part of the page: small ones as they are, large ones smaller and compressed."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=85)
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source=source, alt=printable(alt), lines=lines)


def percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.{digits}f}\u00a0%"


def named(shares: Float[np.ndarray, " C"], names: Sequence[str], order: Sequence[int], digits: int = 1) -> str:
    """Classes with their shares, in words."""
    return ", ".join(f"{printable(names[k])} {percent(float(shares[k]), digits)}" for k in order)
