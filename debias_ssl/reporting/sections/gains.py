"""The figure of the variants' gains over training on the labels alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import Gain, printable
from debias_ssl.reporting.figures.canvas import WIDTH
from debias_ssl.runs.pairing import own_name
from debias_ssl.runs.tables import NAMES

# Inches of a picture that stands alone.
ALONE = 7.2


def read_gains(lines: Sequence[Mapping[str, Any]], metric: str = "accuracy") -> list[Gain]:
    """The paired differences to the labels-only runs, from the lines of a comparison that have them."""
    found = []
    for line in lines:
        difference = (line["difference_to_floor"] or {}).get(metric)
        if difference is not None and difference["mean"] is not None:
            ends = {end: difference[end] for end in ("low", "high")}
            found.append(Gain(setting=line["setting"], name=own_name(line["variant"]), mean=difference["mean"], **ends))
    return found


def gains_figure(values: Sequence[Gain], metric: str = "accuracy", *, is_alone: bool = False) -> str:
    """The figure of gains, as SVG."""
    where = [f"{gain.setting}, {gain.name}" if gain.setting else gain.name for gain in values]
    words = "; ".join(f"{printable(name)} {100 * gain.mean:+.1f}" for name, gain in zip(where, values, strict=True))
    label = f"points of {NAMES[metric]} over labels alone"
    several = any(gain.low is not None for gain in values)
    x_label = f"{label}\n(95 % interval)" if several else label
    alt = f"{label[0].upper()}{label[1:]}: {words}."
    return figures.gains(values, alt, x_label=x_label, width=ALONE if is_alone else WIDTH)
