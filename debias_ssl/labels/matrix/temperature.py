"""Temperature scaling of predictions: fitted on some rows, and judged on others."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.formulas.calibration import (
    LARGEST_TEMPERATURE,
    Calibration,
    calibration_of,
    fit_temperature_to,
    reliability_bins,
)
from debias_ssl.labels.matrix.known_rows import KnownRows

PERCENTS = {"accuracy": "accuracy", "ece": "ECE", "equal_mass_ece": "equal mass", "class_wise_ece": "class-wise"}
SCORES = {"nll": "NLL", "brier": "Brier"}


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """Predictions of labeled rows before and after a temperature."""

    rows: KnownRows
    temperatures: Float[Tensor, " N"]
    """Of each row, fitted without its label."""
    temperature: float
    """Fitted on all rows that were there to fit on: the one for new images."""
    fold_temperatures: tuple[float, ...] = ()
    """Where rows were fitted and judged in turns."""
    tuned_on: str
    """The rows that were fitted on, in words."""
    num_tuned_on: int

    @property
    def bound(self) -> float | None:
        """The limit of the search that a fitted temperature ran into, as its loss has no minimum; else None."""
        fitted = {self.temperature, *self.fold_temperatures}
        return next((bound for bound in (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE) if bound in fitted), None)

    def said(self) -> str:
        """The temperature in words."""
        text = f"temperature {self.temperature:.4g}, fitted on {self.num_tuned_on:,} {self.tuned_on}"
        if self.fold_temperatures:
            low, high = min(self.fold_temperatures), max(self.fold_temperatures)
            text += (
                f"; evaluated in {len(self.fold_temperatures)} folds, each with the temperature fitted on the "
                f"others, {low:.4g} to {high:.4g}"
            )
        return text

    def warning(self) -> str | None:
        """The warning about a temperature without a minimum."""
        if not self.bound:
            return None
        return (
            f"a temperature is at {self.bound:g}, the limit of the search: the {self.num_tuned_on} "
            f"{self.tuned_on} that it is fitted on are all right, or no better than chance; fit it on more rows"
        )

    @cached_property
    def judged(self) -> dict[str, Calibration]:
        """The rows as they are, and divided by their temperatures."""
        num = len(self.rows)
        return {"before": calibration_of(self.rows, num), "after": calibration_of(self._divided(), num)}

    def _divided(self) -> Iterator[tuple[Float[Tensor, "n C"], Int[Tensor, " n"]]]:
        first = 0
        for logits, labels in self.rows:
            temperatures = self.temperatures[first : first + len(labels)]
            first += len(labels)
            yield logits.double() / temperatures.unsqueeze(1), labels

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        return {name: judged.figures() for name, judged in self.judged.items()}

    def summary(self) -> dict[str, Any]:
        """For a file: fractions in [0, 1], the scores, and the bins of reliability (null where they are empty)."""
        bins = {}
        for name, judged in self.judged.items():
            parts = reliability_bins(judged.confidence, judged.correct).tolist()
            parts = [[None if math.isnan(value) else value for value in part] for part in parts]
            bins[name] = {"bins": dict(zip(("share", "confidence", "accuracy"), parts, strict=True))}
        return {
            "temperature": self.temperature,
            "fold_temperatures": list(self.fold_temperatures),
            "tuned_on": self.tuned_on,
            "num_tuned_on": self.num_tuned_on,
            "num": len(self.rows),
            **{name: figures | bins[name] for name, figures in self.figures.items()},
        }

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'':<10}" + "".join(f"{title:>13}" for title in (PERCENTS | SCORES).values())]
        for name, figures in self.figures.items():
            cells = [f"{100 * figures[key]:.2f} %" for key in PERCENTS] + [f"{figures[key]:.4f}" for key in SCORES]
            lines.append(f"{name:<10}" + "".join(f"{cell:>13}" for cell in cells))
        return "\n".join(lines)


def rescale(rows: KnownRows, held_out: KnownRows, tuned_on: str) -> Rescaled:
    """Rescales rows by a temperature fitted on other rows, `held_out`, which `tuned_on` names in words."""
    temperature = fit_temperature_to(held_out)
    return Rescaled(
        rows=rows,
        temperatures=torch.full((len(rows),), temperature, dtype=torch.float64),
        temperature=temperature,
        tuned_on=tuned_on,
        num_tuned_on=len(held_out),
    )


def rescale_in_folds(rows: KnownRows, folds: Int[Tensor, " N"], tuned_on: str) -> Rescaled:
    """Rescales each fold's rows by a temperature fitted on all other folds: no fit has seen what it is judged by."""
    temperatures, fitted = torch.empty(len(rows), dtype=torch.float64), []
    for fold in folds.unique():
        fitted.append(fit_temperature_to(rows.part(folds != fold)))
        temperatures[folds == fold] = fitted[-1]
    return Rescaled(
        rows=rows,
        temperatures=temperatures,
        temperature=fit_temperature_to(rows),
        fold_temperatures=tuple(fitted),
        tuned_on=tuned_on,
        num_tuned_on=len(rows),
    )
