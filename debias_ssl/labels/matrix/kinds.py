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
# How far the sum of a row of probabilities may differ from 1, if its decimals were not rounded. bf16 rounds by up to
# 1/256, and files do not keep this type.
SUM_TOLERANCE = 5e-3
# If most rows sum to 1, a row whose sum differs by more than this is an error.
WRONG_ROW = 0.05
# How far below 0 a probability may be because of rounding errors.
NEGATIVE = 1e-4
# The largest number of decimals that is detected, and the number of rows of a chunk that are searched for it.
MOST_DECIMALS, LOOKED_AT = 4, 64
# The sum of a row of probabilities, and of percentages.
WHOLES = (1, 100)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The kind that the numbers of a matrix were found to be."""

    kind: Kind
    words: str
    """The reason, for messages."""
    whole: float = 1
    """The sum of rows of probabilities: 1, or 100 for percentages."""


@dataclass(kw_only=True)
class _Seen:
    """The facts that one pass over a matrix finds."""

    lowest: float = np.inf
    highest: float = -np.inf
    sums: Float32[np.ndarray, " N"]
    decimals: int | None = 0
    """The number of decimals of the searched numbers; None if there are more than rounded numbers have."""

    def unit(self) -> float:
        """The unit of the last decimal; 0 for numbers that are not rounded."""
        return 0.0 if self.decimals is None else 10.0**-self.decimals


def find_kind(values: Num[np.ndarray, "N C"], classes: Sequence[str], asked: Asked, source: str) -> Found:
    """Finds out in one pass whether the numbers are logits or probabilities.

    Rows of probabilities sum to 1 (or 100, in percent) up to rounding. If C numbers were rounded to a unit u of the
    last decimal, each has an error of at most u / 2, and the sum of a row an error of at most C u / 2. If decimals were
    cut off, the sum is too small by at most C u. An error of more than half of the sum decides nothing.

    If most rows are within these limits, all rows are probabilities. Rows are divided by their sums, and a row far
    outside the limits is an error.

    Args:
        values: the matrix.
        classes: names of its columns, for errors.
        asked: the kind that the user has set.
        source: the name of the matrix in errors.

    Raises:
        InputError: a number is not finite, a row has only zeros, or the numbers contradict `asked`.
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
    # One array for all rows: many small arrays would keep the memory of chunks from being reused.
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
    """Whether numbers are multiples of the unit of a decimal, up to the precision of their type."""
    scaled = values * 10**decimals
    error = precision * scaled.abs()
    return bool((error < 0.25).all() and ((scaled - scaled.round()).abs() <= error + 1e-9).all())


def _told_probs(
    seen: _Seen, off: np.ndarray, sums: np.ndarray, tolerance: float, whole: float, asked: Asked, source: str
) -> str:
    """How probabilities were recognized, as a text for users.

    Raises:
        InputError: the sum of a row is far from the others.
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
        words.append(f"{seen.lowest:.1g} read as 0")
    return "; ".join(words)
