"""Temperature scaling of predictions: fitted on some rows, and evaluated on others."""

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
    """The temperature of each row, fitted without its label."""
    temperature: float
    """The temperature for new images, fitted on all rows that may be used for the fit."""
    fold_temperatures: tuple[float, ...] = ()
    """The temperature of each fold of a cross-validation; empty without folds."""
    tuned_on: str
    """The name of the rows of the fit, for texts."""
    num_tuned_on: int

    @property
    def bound(self) -> float | None:
        """The limit of the search that a temperature reached because its loss has no minimum; None if none did."""
        fitted = {self.temperature, *self.fold_temperatures}
        return next((bound for bound in (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE) if bound in fitted), None)

    def said(self) -> str:
        """The temperature and its rows, as a text."""
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
        """The calibration of the rows before and after division by their temperatures."""
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
        """The values for a file: fractions in [0, 1], the scores, and the bins of reliability (null if empty)."""
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
        """The figures as a table for a terminal."""
        lines = [f"{'':<10}" + "".join(f"{title:>13}" for title in (PERCENTS | SCORES).values())]
        for name, figures in self.figures.items():
            cells = [f"{100 * figures[key]:.2f} %" for key in PERCENTS] + [f"{figures[key]:.4f}" for key in SCORES]
            lines.append(f"{name:<10}" + "".join(f"{cell:>13}" for cell in cells))
        return "\n".join(lines)


def rescale(rows: KnownRows, held_out: KnownRows, tuned_on: str) -> Rescaled:
    """Rescales rows by a temperature that is fitted on `held_out`; `tuned_on` is the name of these rows in texts."""
    temperature = fit_temperature_to(held_out)
    return Rescaled(
        rows=rows,
        temperatures=torch.full((len(rows),), temperature, dtype=torch.float64),
        temperature=temperature,
        tuned_on=tuned_on,
        num_tuned_on=len(held_out),
    )


def rescale_in_folds(rows: KnownRows, folds: Int[Tensor, " N"], tuned_on: str) -> Rescaled:
    """Rescales the rows of each fold by a temperature fitted on all other folds, for an unbiased evaluation."""
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
