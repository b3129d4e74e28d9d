"""Tuning: fits temperature and strength together on a few labeled rows, for calibrated debiased probabilities."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.formulas.calibration import LARGEST_TEMPERATURE, fit_temperature, negative_log_likelihood
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.estimates import BALANCED
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.debiasing.sample import drawn_rows, in_chunks, read_rows
from debias_ssl.system.errors import InputError

# The strengths to choose from.
STRENGTHS = tuple(step / 10 for step in range(21))
# Prior distributions around 1: a Cauchy distribution of this scale for the logarithm of the temperature, with tails
# for logits in any unit, and a normal distribution of this deviation for the strength. More rows make both weaker.
SCALE_OF_TEMPERATURE, DEVIATION_OF_STRENGTH = 0.5, 0.5
# A note for users without `tune_on`. Measured on synthetic logits of ten classes with a preference of 0 to 6
# (docs/RESULTS.md).
UNTUNED = (
    "confidences are not calibrated: the true labels of some rows, given by --tune_on FILE, calibrate them (on "
    "synthetic logits, 100 rows left an error of 3.2 %, 300 of 2.0 %, 1,000 of 1.6 %)"
)
# Largest number of rounds, and the change of the logarithm of the temperature below which rounds end.
MOST_ROUNDS = 5
SETTLED = 0.01
# Range of the search for a temperature, as a logarithm around its center: a factor of 7.
SEARCHED = 2.0
# Largest size of the rows in memory on which a prior is found repeatedly, in numbers: 32 MiB.
SAMPLE_NUMBERS = 2**23

ShiftOf = Callable[[float], Float[Tensor, " C"]]
"""The numbers that are subtracted from f / T at a strength."""


def is_tuned(config: DebiasConfig) -> bool:
    """Whether the user has calibrated the confidences."""
    return config.tune_on is not None or config.temperature is not None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Rows that are kept in memory while temperature and strength are chosen."""

    logits: Float[Tensor, "R C"]
    """Logits of the rows of `tune_on`, in fp64."""
    labels: Int64[Tensor, " R"]
    sample: Sequence[Float[Tensor, "_ C"]]
    """Rows to find priors on, not divided by a temperature; empty if each prior takes one pass over all rows."""
    is_whole: bool
    """Whether the sample is all rows."""

    def loss(self, temperature: float, strength: float, shift: Float[Tensor, " C"]) -> float:
        """Cross-entropy of softmax(f / T - shift) in nats, plus `surprise` divided by the number of rows."""
        entropy = negative_log_likelihood(self.logits / temperature - shift, self.labels).item()
        return entropy + surprise(temperature, strength) / len(self.labels)


def surprise(temperature: float, strength: float) -> float:
    """How far a temperature and a strength are from the expected values, 1 and 1, as -log of a density in nats.

    With few rows, the minimum of the cross-entropy alone may be far off, or may not exist.
    """
    of_temperature = math.log1p((math.log(temperature) / SCALE_OF_TEMPERATURE) ** 2)
    return of_temperature + ((strength - 1) / DEVIATION_OF_STRENGTH) ** 2 / 2


def read_tuning(rows: Rows, config: DebiasConfig, is_quiet: bool) -> Tuning:
    """Reads the rows to tune on and the sample in one pass.

    The sample is all rows if they fit in memory. If they do not, rows are drawn if the prior or the target needs many
    passes; else the sample is empty.

    Raises:
        InputError: none of the rows has a label, or a number is not finite.
    """
    assert rows.tuning is not None
    tuned = np.flatnonzero(rows.tuning >= 0)
    if not len(tuned):
        raise InputError(f"tune_on ({config.tune_on}) labels none of the rows")
    num_rows, most = len(rows.names), SAMPLE_NUMBERS // len(rows.classes)
    is_iterated = config.estimate in BALANCED or rows.target is None
    kept = drawn_rows(num_rows, most) if num_rows <= most or is_iterated else np.arange(0)
    few, sample = read_rows(rows, [tuned, kept], "tuning", is_quiet)
    labels = torch.from_numpy(rows.tuning[tuned])
    return Tuning(logits=few.double(), labels=labels, sample=in_chunks(sample), is_whole=num_rows <= most)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The chosen values, and the change of the logarithm of the temperature in one more round."""

    temperature: float
    strength: float
    moved: float = 0.0
    is_guess: bool = False
    """Whether the rows alone do not determine a temperature."""

    def notes(self) -> Iterator[str]:
        """Warnings about the chosen values."""
        if self.is_guess:
            yield (
                f"the temperature, {self.temperature:.4g}, is a guess near 1: the rows of tune_on are all right, or no "
                "better than chance; label more of them"
            )
        elif self.moved >= SETTLED:
            yield (
                f"temperature and strength did not converge: after {MOST_ROUNDS} rounds the temperature still "
                f"changed by {math.expm1(self.moved):.0%}; label more rows for tune_on, or set the temperature"
            )


def choose(
    tuning: Tuning, shift_at: Callable[[float], ShiftOf], temperature: float | None, strength: float | None
) -> Chosen:
    """Temperature and strength with the smallest loss of softmax(f / T - shift); given values are kept.

    The shift depends on the temperature, because the prior is found at each temperature. Each round finds the shift at
    a temperature. It chooses the strength and a factor of the shifted logits together, and multiplies the temperature
    by the factor. At the end no factor improves the debiased probabilities. A temperature that is fitted before the
    shift would differ: a preference makes logits look less certain than they are.

    Args:
        tuning: the rows with labels.
        shift_at: returns the shifts at a temperature.
        temperature: a given temperature; None starts the rounds at 1, within the bounds of `fit_temperature`.
        strength: a given strength; None chooses one of `STRENGTHS`.
    """
    now, tau, moved, best = temperature or 1.0, 1.0 if strength is None else strength, 0.0, 1.0
    for _ in range(MOST_ROUNDS):
        scales = temperature is None
        at_now = _Round(tuning=tuning, temperature=now, shift_of=cache(shift_at(now)), scales=scales)
        tau = _descend(at_now.loss, tau) if strength is None else strength
        best, before, now = at_now.best_factor(tau), now, _bounded(now * at_now.factor(tau))
        moved = abs(math.log(now / before))
        if moved < SETTLED:
            break
    return Chosen(temperature=now, strength=tau, moved=moved, is_guess=_is_limit(best))


def search(tuning: Tuning, shift_at: Callable[[float], ShiftOf], strength: float | None) -> Chosen:
    """Like `choose`, for estimated shares: the shift then depends so much on the temperature that rounds may diverge.

    Brent's method searches the temperature around that of the logits before their shift.
    """
    tau = 1.0 if strength is None else strength

    def loss(log_temperature: float) -> float:
        nonlocal tau
        now = math.exp(log_temperature)
        at_now = _Round(tuning=tuning, temperature=now, shift_of=cache(shift_at(now)), scales=False)
        tau = _descend(at_now.loss, tau) if strength is None else strength
        return at_now.loss(tau)

    before_shift = fit_temperature(tuning.logits, tuning.labels)
    center = math.log(before_shift)
    limits = [math.log(_bounded(math.exp(center + side))) for side in (-SEARCHED, SEARCHED)]
    found: Any = scipy.optimize.minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": SETTLED})
    loss(found.x)
    return Chosen(temperature=math.exp(found.x), strength=tau, is_guess=_is_limit(before_shift))


def _bounded(temperature: float) -> float:
    return min(max(temperature, 1 / LARGEST_TEMPERATURE), LARGEST_TEMPERATURE)


def _is_limit(fitted: float) -> bool:
    return fitted in (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE)


@dataclass(frozen=True, kw_only=True)
class _Round:
    """Losses of strengths at one temperature."""

    tuning: Tuning
    temperature: float
    shift_of: ShiftOf
    scales: bool
    """Whether the shifted logits are divided by their best factor."""

    def best_factor(self, strength: float) -> float:
        """The factor with the smallest cross-entropy."""
        shifted = self.tuning.logits / self.temperature - self.shift_of(strength)
        return fit_temperature(shifted, self.tuning.labels) if self.scales else 1.0

    def factor(self, strength: float) -> float:
        """The factor with the smallest loss, between the best factor and the one that makes the temperature 1."""
        if not self.scales:
            return 1.0
        limits = sorted((math.log(self.best_factor(strength)), -math.log(self.temperature)))
        found: Any = scipy.optimize.minimize_scalar(
            lambda log: self._loss(strength, math.exp(log)), bounds=limits, method="bounded", options={"xatol": 1e-4}
        )
        return math.exp(found.x)

    def loss(self, strength: float) -> float:
        return self._loss(strength, self.factor(strength))

    def _loss(self, strength: float, factor: float) -> float:
        return self.tuning.loss(self.temperature * factor, strength, self.shift_of(strength) / factor)


def _descend(loss: Callable[[float], float], start: float) -> float:
    """The strength with the smallest loss, by steps from a start near it; the loss first falls and then rises."""
    place = STRENGTHS.index(start)
    found = {place: loss(start)}
    for step in (1, -1):
        while 0 <= place + step < len(STRENGTHS):
            found[place + step] = loss(STRENGTHS[place + step])
            if found[place + step] >= found[place]:
                break
            place += step
    return STRENGTHS[place]
