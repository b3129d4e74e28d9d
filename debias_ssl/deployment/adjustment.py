"""Adjusts the logits of an exported network: by a temperature, and by a shift for each class."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.tables import read_text


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """The logits of an exported network are f / temperature - shift, with f those of the run."""

    temperature: float = 1.0
    shift: tuple[float, ...] = ()
    """One number for each class; empty if nothing is subtracted."""


def read_adjustment(temperature: str | None, debiased: str | None, classes: Sequence[str]) -> Adjustment:
    """The adjustment that two flags name.

    Args:
        temperature: a number, or the JSON file of `debias-ssl evaluate --calibrate --out`.
        debiased: the folder of `debias-ssl debias` for predictions of the run.
        classes: classes of the run.

    Raises:
        InputError: a flag has a wrong value, or both are given.
    """
    if temperature is not None and debiased is not None:
        raise InputError("--debiased sets the temperature: leave out --temperature")
    if debiased is not None:
        return _of_folder(Path(debiased), classes)
    return Adjustment() if temperature is None else Adjustment(temperature=_temperature(temperature))


def _temperature(given: str) -> float:
    if Path(given).is_file():
        figures = _json(Path(given), "--temperature")
        value = figures.get("calibration", {}).get("temperature")
        if value is None:
            raise InputError(
                f"--temperature {given!r} holds no temperature: pass a file of debias-ssl evaluate --calibrate --out"
            )
    else:
        value = given
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"--temperature {given!r} is neither a number nor an existing file") from None
    if not 0 < number < math.inf:
        raise InputError(f"--temperature is {number:g}, must be above 0")
    return number


def _of_folder(folder: Path, classes: Sequence[str]) -> Adjustment:
    """Temperature and shift of a folder of `debias`."""
    summary = _json(folder / "summary.json", "--debiased")
    shift = summary.get("shift")
    if not isinstance(shift, dict) or "predictions" not in summary:
        raise InputError(
            f"--debiased {str(folder)!r} is not a folder of debias-ssl debias: run debias on the run's "
            "predictions, and pass its --out"
        )
    if summary.get("refine", "none") != "none":
        raise InputError(
            f"--debiased {str(folder)!r} has labels refined by neighbors, which a network cannot reproduce: run "
            "debias without --refine"
        )
    if {*shift} != {*classes}:
        raise InputError(f"--debiased {str(folder)!r} has other classes than the run: {', '.join(shift)[:80]}")
    return Adjustment(temperature=float(summary["temperature"]), shift=tuple(float(shift[name]) for name in classes))


def _json(path: Path, flag: str) -> Mapping[str, Any]:
    try:
        value = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"{flag}: cannot read {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{flag}: {str(path)!r} is not JSON: {reason(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{flag}: {str(path)!r} is not a JSON object")
    return value
