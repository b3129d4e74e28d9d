"""Predictions before and after a temperature: fitted on some rows, judged on others."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.formulas.calibration import (
    LARGEST_TEMPERATURE,
    calibration_figures,
    cross_fit,
    fit_temperature,
    reliability_bins,
)

PERCENTS = {"accuracy": "accuracy", "ece": "ECE", "equal_mass_ece": "equal mass", "class_wise_ece": "class-wise"}
SCORES = {"nll": "NLL", "brier": "Brier"}


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """What a temperature makes of the rows that it is judged on, whose labels are known."""

    labels: Int[Tensor, " N"]
    before: Float[Tensor, "N C"]
    after: Float[Tensor, "N C"]
    """Logits; each row's temperature was fitted without its label."""
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
                f"; judged in {len(self.fold_temperatures)} folds, each with the temperature of the others, "
                f"{low:.4g} to {high:.4g}"
            )
        return text

    def warning(self) -> str | None:
        """What is wrong with a temperature that has no minimum, in words."""
        if not self.bound:
            return None
        return (
            f"a temperature is at {self.bound:g}, the limit of the search: the {self.num_tuned_on} {self.tuned_on} "
            "that it is fitted on are all right, or no better than chance; fit it on more"
        )

    @cached_property
    def figures(self) -> dict[str, dict[str, float]]:
        return {
            "before": calibration_figures(self.before, self.labels),
            "after": calibration_figures(self.after, self.labels),
        }

    def summary(self) -> dict[str, Any]:
        """For a file: fractions in [0, 1], the scores, and the bins of reliability (null where they are empty)."""
        bins = {}
        for name, logits in (("before", self.before), ("after", self.after)):
            confidence, predicted = logits.double().softmax(1).max(1)
            parts = reliability_bins(confidence, predicted == self.labels).tolist()
            parts = [[None if math.isnan(value) else value for value in part] for part in parts]
            bins[name] = {"bins": dict(zip(("share", "confidence", "accuracy"), parts, strict=True))}
        return {
            "temperature": self.temperature,
            "fold_temperatures": list(self.fold_temperatures),
            "tuned_on": self.tuned_on,
            "num_tuned_on": self.num_tuned_on,
            "num": len(self.labels),
            **{name: figures | bins[name] for name, figures in self.figures.items()},
        }

    def table(self) -> str:
        """For a terminal."""
        lines = [f"{'':<10}" + "".join(f"{title:>13}" for title in (PERCENTS | SCORES).values())]
        for name, figures in self.figures.items():
            cells = [f"{100 * figures[key]:.2f} %" for key in PERCENTS] + [f"{figures[key]:.4f}" for key in SCORES]
            lines.append(f"{name:<10}" + "".join(f"{cell:>13}" for cell in cells))
        return "\n".join(lines)


def rescale(
    logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    held_out: tuple[Float[Tensor, "M C"], Int[Tensor, " M"]],
    tuned_on: str,
) -> Rescaled:
    """Rescales rows by a temperature fitted on other rows, `held_out`, which `tuned_on` names in words."""
    temperature = fit_temperature(*held_out)
    return Rescaled(
        labels=labels,
        before=logits,
        after=logits.double() / temperature,
        temperature=temperature,
        tuned_on=tuned_on,
        num_tuned_on=len(held_out[1]),
    )


def rescale_in_folds(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], folds: Int[Tensor, " N"], tuned_on: str
) -> Rescaled:
    """Rescales each fold's rows by a temperature fitted on all other folds: no fit has seen what it is judged by."""
    after, temperatures = cross_fit(logits, labels, folds)
    return Rescaled(
        labels=labels,
        before=logits,
        after=after,
        temperature=fit_temperature(logits, labels),
        fold_temperatures=tuple(temperatures),
        tuned_on=tuned_on,
        num_tuned_on=len(labels),
    )
