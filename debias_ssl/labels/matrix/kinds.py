"""Decides whether the numbers of a matrix are logits or probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Num
from torch import Tensor

from debias_ssl.labels.debiasing.chunks import check_finite, chunks_of
from debias_ssl.system.errors import InputError

Kind = Literal["logits", "probs"]
Asked = Literal["auto", "logits", "probs"]
WORDS = {"logits": "logits", "probs": "probabilities"}
# How far a row of probabilities may be off its sum of 1 without rounded decimals: bf16 rounds by up to 1/256, and its
# type is lost in a file.
SUM_TOLERANCE = 5e-3
# A row of probabilities that is further off than this is wrong, where most rows are not.
WRONG_ROW = 0.05
# How far below 0 a probability may be by the arithmetic that made it.
NEGATIVE = 1e-4
# Decimals that are looked for, and the rows of a chunk in which they are.
MOST_DECIMALS, LOOKED_AT = 4, 64
# What rows of probabilities sum to: as such, and in percent.
WHOLES = (1, 100)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The kind that the numbers of a matrix were found to be."""

    kind: Kind
    words: str
    """Why, for people."""
    whole: float = 1
    """What rows of probabilities sum to."""


@dataclass(kw_only=True)
class _Seen:
    """What a pass over a matrix finds."""

    lowest: float = np.inf
    highest: float = -np.inf
    sums: Float32[np.ndarray, " N"]
    decimals: int | None = 0
    """As many as all numbers that were looked at need; None where they are more than rounding leaves."""

    def unit(self) -> float:
        """Of the last decimal, 0 where there is none."""
        return 0.0 if self.decimals is None else 10.0**-self.decimals


def find_kind(values: Num[np.ndarray, "N C"], classes: Sequence[str], asked: Asked, source: str) -> Found:
    """Finds what the numbers are in one pass.

    Rows of probabilities sum to 1 (or 100, in percent) but for rounding. Each of C numbers that were rounded to a unit
    u in the last decimal is off by at most u / 2, so that a row is off by at most C u / 2, or down to -C u where
    decimals were cut off; more than half of the whole says nothing. Where most rows are no further off, all are
    probabilities: a row that is a little off is divided by its sum like the others, and one that is far off is refused.

    Args:
        values: the matrix.
        classes: names of its columns, for errors.
        asked: what the user says it is.
        source: what errors call the matrix.

    Raises:
        InputError: a number is not finite, a row says nothing, or the numbers are not what they are said to be.
    """
    seen = _look(values, classes, source)
    sums = seen.sums
    for whole in WHOLES if asked != "logits" else ():
        if not -NEGATIVE * whole <= seen.lowest <= seen.highest <= whole * (1 + SUM_TOLERANCE):
            continue
        rounding = values.shape[1] * seen.unit() / whole
        above, below = (SUM_TOLERANCE + min(error, 0.5) for error in (rounding / 2, rounding))
        off = sums / whole - 1
        if ((-below <= off) & (off <= above)).mean() > 0.5:
            words = _told_probs(seen, np.abs(off), sums, below, whole, asked, source)
            return Found(kind="probs", words=words, whole=whole)
    in_range = seen.lowest >= -NEGATIVE and seen.highest <= 1 + SUM_TOLERANCE
    if asked == "probs" and not in_range:
        outside = seen.lowest if seen.lowest < 0 else seen.highest
        raise InputError(f"{source} has {outside:g}, which is not a probability: pass --kind logits")
    if asked != "auto":
        return Found(kind=asked, words="as told")
    if seen.lowest >= 0 and np.ptp(sums) <= 0.02 * sums.max() and seen.highest > 1:
        raise InputError(
            f"{source} has rows of numbers of at least 0 that all sum to {sums.max():g}, as percentages do: "
            "divide them by that, or pass --kind logits"
        )
    if in_range:
        row = int(np.abs(sums - 1).argmax())
        words = f"in [0, 1], but rows do not sum to 1, such as row {row} to {sums[row]:.3g}: if these are probabilities"
        return Found(kind="logits", words=f"{words}, --kind probs")
    return Found(kind="logits", words="not all rows are in [0, 1] and sum to 1")


def _look(values: Num[np.ndarray, "N C"], classes: Sequence[str], source: str) -> _Seen:
    # One array: small ones that stay would keep the memory of each chunk from the next.
    seen = _Seen(sums=np.empty(len(values), dtype=np.float32))
    precision = float(np.finfo(values.dtype).eps) if values.dtype.kind == "f" else 0.0
    for first, chunk in chunks_of(values):
        check_finite(chunk, first, classes)
        lowest, highest = chunk.amin(-1), chunk.amax(-1)
        low, high = float(lowest.min()), float(highest.max())
        if low <= 0 <= high and len(zeros := ((lowest == 0) & (highest == 0)).nonzero()):
            raise InputError(
                f"{source}: row {first + int(zeros[0])} (from 0) has only zeros, which is not a prediction; "
                "remove the row, or fill it in"
            )
        seen.lowest, seen.highest = min(seen.lowest, low), max(seen.highest, high)
        seen.sums[first : first + len(chunk)] = chunk.sum(-1).numpy()
        few = chunk[:LOOKED_AT].double()
        while seen.decimals is not None and not _has_decimals(few, seen.decimals, max(precision, 1.2e-7)):
            seen.decimals = seen.decimals + 1 if seen.decimals < MOST_DECIMALS else None
    return seen


def _has_decimals(values: Float[Tensor, "n C"], decimals: int, precision: float) -> bool:
    """Whether numbers are multiples of a unit, as far as their type can tell."""
    scaled = values * 10**decimals
    error = precision * scaled.abs()
    return bool((error < 0.25).all() and ((scaled - scaled.round()).abs() <= error + 1e-9).all())


def _told_probs(
    seen: _Seen, off: np.ndarray, sums: np.ndarray, tolerance: float, whole: float, asked: Asked, source: str
) -> str:
    """What is said of probabilities.

    Raises:
        InputError: a row is far off.
    """
    row = int(off.argmax())
    farthest = f"row {row} (from 0) to {sums[row]:.4g}"
    if asked == "auto" and off[row] > max(WRONG_ROW, tolerance):
        raise InputError(
            f"{source} has rows that sum to {whole:g}, as probabilities do, but {farthest}: fix or remove the row, or "
            "pass --kind probs (rows are divided by their sums) or --kind logits"
        )
    words = ["as told" if asked == "probs" else f"all rows are in [0, {whole:g}] and sum to {whole:g}"]
    if off[row] > SUM_TOLERANCE:
        digits = "" if seen.decimals is None else f", of numbers with {seen.decimals} decimals"
        words.append(f"up to {off[row] * whole:.2g} off, {farthest}{digits}: rows are divided by their sums")
    if whole != 1:
        words.append("read as percent")
    if seen.lowest < 0:
        words.append(f"{seen.lowest:.1g} taken for 0")
    return "; ".join(words)
