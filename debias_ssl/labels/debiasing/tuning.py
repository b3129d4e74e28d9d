"""Fits temperature and strength together on a few labeled rows, for the debiased probabilities."""

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

# What the strength is chosen among.
STRENGTHS = tuple(step / 10 for step in range(21))
# How far from 1 the logarithm of the temperature and the strength are before there is a row: the scale of a Cauchy
# distribution, whose tails let logits in any unit pass, and the deviation of a normal one. Both fade with the rows.
SCALE_OF_TEMPERATURE, DEVIATION_OF_STRENGTH = 0.5, 0.5
# For people who have not tuned: measured on made logits of ten classes with a preference of 0 to 6 (docs/RESULTS.md).
UNTUNED = (
    "confidences are not calibrated: the true labels of some rows, given by --tune_on FILE, calibrate them (on "
    "synthetic logits, 100 rows left an error of 3.2 %, 300 of 2.0 %, 1,000 of 1.6 %)"
)
# Rounds of temperature and strength, and the change of the temperature (of its logarithm) below which none follows.
MOST_ROUNDS = 5
SETTLED = 0.01
# How far from its center, as a logarithm, a temperature is looked for: a factor of 7.
SEARCHED = 2.0
# Numbers of rows that are kept in memory to find a prior on again and again: 32 MiB.
SAMPLE_NUMBERS = 2**23

ShiftOf = Callable[[float], Float[Tensor, " C"]]
"""What is subtracted from f / T for each strength."""


def is_tuned(config: DebiasConfig) -> bool:
    """Whether somebody has seen to it that confidences are right."""
    return config.tune_on is not None or config.temperature is not None


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Rows that are kept in memory while temperature and strength are chosen."""

    logits: Float[Tensor, "R C"]
    """Of the rows of `tune_on`, in fp64."""
    labels: Int64[Tensor, " R"]
    sample: Sequence[Float[Tensor, "_ C"]]
    """Rows to find priors on, not divided by a temperature; none where each prior takes one pass over all rows."""
    is_whole: bool
    """Whether the sample is all rows."""

    def loss(self, temperature: float, strength: float, shift: Float[Tensor, " C"]) -> float:
        """Cross-entropy of softmax(f / T - shift) in nats, and the part of each row in what is expected before it."""
        entropy = negative_log_likelihood(self.logits / temperature - shift, self.labels).item()
        return entropy + surprise(temperature, strength) / len(self.labels)


def surprise(temperature: float, strength: float) -> float:
    """How far a temperature and a strength are from what is expected, 1 and 1, as -log of a density in nats.

    Of few rows, the cross-entropy alone has its minimum far off, or has none.
    """
    of_temperature = math.log1p((math.log(temperature) / SCALE_OF_TEMPERATURE) ** 2)
    return of_temperature + ((strength - 1) / DEVIATION_OF_STRENGTH) ** 2 / 2


def read_tuning(rows: Rows, config: DebiasConfig, is_quiet: bool) -> Tuning:
    """Reads the rows to tune on and the sample in one pass.

    The sample is all rows where they fit in memory. Of more rows, some are drawn where the prior or the target takes
    many passes; else there is none.

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
    """The chosen values, and the change of the temperature (of its logarithm) in one more round."""

    temperature: float
    strength: float
    moved: float = 0.0
    is_guess: bool = False
    """Whether the rows alone have no best temperature."""

    def notes(self) -> Iterator[str]:
        """What is wrong with it, for people."""
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
    """Temperature and strength of the smallest cross-entropy of softmax(f / T - shift), what is given apart.

    The shift depends on the temperature, at which the prior is found anew. Each round finds it at a temperature,
    chooses the strength and a factor of the shifted logits together, and takes the factor into the next temperature: at
    the end no factor makes the debiased probabilities better. To rescale logits before their shift is another thing: a
    preference makes them look less sure than they are.

    Args:
        tuning: the rows with labels.
        shift_at: the shifts at a temperature.
        temperature: stays where it is given; else the rounds begin at 1, within the bounds of `fit_temperature`.
        strength: stays where it is given; else it is one of `STRENGTHS`.
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
    """The same where the shift depends on the temperature so much that rounds may lead away: with estimated shares.

    The temperature is looked for by Brent's method around that of the logits before their shift.
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
    """Whether the shifted logits are divided by the factor that is best for them."""

    def best_factor(self, strength: float) -> float:
        """The factor of the smallest cross-entropy."""
        shifted = self.tuning.logits / self.temperature - self.shift_of(strength)
        return fit_temperature(shifted, self.tuning.labels) if self.scales else 1.0

    def factor(self, strength: float) -> float:
        """That of the smallest loss: between it and the one by which the temperature is 1."""
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
    """The strength where a loss that first falls and then rises is least, by steps from a strength near it."""
    place = STRENGTHS.index(start)
    found = {place: loss(start)}
    for step in (1, -1):
        while 0 <= place + step < len(STRENGTHS):
            found[place + step] = loss(STRENGTHS[place + step])
            if found[place + step] >= found[place]:
                break
            place += step
    return STRENGTHS[place]
