"""The estimated class shares of the rows, with intervals."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from debias_ssl.formulas.shares import Shares
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import NAMED, printable
from debias_ssl.reporting.page import Figure, Section, Table, between, named, percent

# Classes that a sentence names.
SPOKEN = 10


def shares_section(shares: Shares, truth: Int[np.ndarray, " N"], classes: tuple[str, ...]) -> Section:
    """Estimated shares of the classes, the largest first.

    Args:
        shares: the estimates.
        truth: true classes of the rows, negative if unknown.
        classes: names of the classes.
    """
    here = shares.is_present
    order = [int(k) for k in np.argsort(-shares.share, kind="stable")]
    known = truth >= 0
    true = np.bincount(truth[known], minlength=len(classes)) / known.sum() if known.any() else None
    text = f"There is clear evidence for {here.sum():,} of the {len(classes):,} classes."
    if not here.all():
        absent = [printable(classes[k]) for k in order if not here[k]]
        more = f" and {len(absent) - SPOKEN:,} more" if len(absent) > SPOKEN else ""
        text += f" There is no clear evidence for: {', '.join(absent[:SPOKEN])}{more}."
    return Section(
        title="Which classes occur",
        text=text,
        figures=[_drawn(shares, true, order, classes)],
        tables=[_table(shares, true, order, classes)],
    )


def _drawn(shares: Shares, true: Float[np.ndarray, " C"] | None, order: list[int], classes: Sequence[str]) -> Figure:
    is_many = len(classes) > NAMED
    symbols = ("line-0", "line-1", "line-2", "line-3") if is_many else ("mark-0", "bar-0", "tick-1")
    if is_many:
        meanings = ["estimated share", "lower end of its 95 % interval", "upper end", "true share"]
    else:
        meanings = ["estimated share", "its 95 % interval", "true share"]
    return Figure(
        title="Estimated shares of the classes",
        svg=figures.class_intervals(
            shares.share[order],
            shares.low[order],
            shares.high[order],
            None if true is None else true[order],
            [classes[k] for k in order],
            f"Estimated shares of {len(classes)} classes: largest {named(shares.share, classes, order[:3])}.",
        ),
        legend=[*zip(symbols, meanings, strict=True)][: None if true is not None else -1],
        caption="Expectation maximization finds the shares that make the predictions most likely. The intervals are "
        "bootstrap intervals: they draw the rows, and those of the reference, repeatedly. They do not cover the "
        "case that images of a class look different here and in the reference.",
    )


def _table(shares: Shares, true: Float[np.ndarray, " C"] | None, order: list[int], classes: Sequence[str]) -> Table:
    here = shares.is_present
    head = ["class", "share", "95 % interval", "clear evidence", *(["true share"] if true is not None else [])]
    rows = [
        [
            classes[k],
            percent(shares.share[k]),
            between((shares.low[k], shares.high[k])),
            "yes" if here[k] else "no",
            *([percent(true[k])] if true is not None else []),
        ]
        for k in order
    ]
    caption = f"Clear evidence: the whole interval is above a fifth of an equal share ({percent(0.2 / len(classes))})."
    return Table(title="Shares in numbers", head=head, rows=rows, caption=caption, is_closed=len(classes) > SPOKEN)
