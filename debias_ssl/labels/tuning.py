"""Temperature and strength from the labels of a few rows, chosen together for the debiased probabilities."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import minimize_scalar
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.formulas.calibration import LARGEST_TEMPERATURE, fit_temperature, negative_log_likelihood
from debias_ssl.labels.debiasing import DebiasConfig, Rows, pass_over
from debias_ssl.labels.estimates import BALANCED
from debias_ssl.system.errors import InputError

# What the strength is chosen among.
STRENGTHS = tuple(step / 10 for step in range(21))
# Rounds of temperature and strength, and the change of the temperature (of its logarithm) below which none follows.
MOST_ROUNDS = 5
SETTLED = 0.01
# How far from its center, as a logarithm, a temperature is looked for: a factor of 7.
SEARCHED = 2.0
# Numbers of rows that are kept in memory to find a prior on again and again: 32 MiB.
SAMPLE_NUMBERS = 2**23

ShiftOf = Callable[[float], Float[Tensor, " C"]]
"""What is subtracted from f / T for each strength."""


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

    def loss(self, temperature: float, shift: Float[Tensor, " C"]) -> float:
        """Cross-entropy of softmax(f / T - shift) in nats."""
        return negative_log_likelihood(self.logits / temperature - shift, self.labels).item()

    def divided(self, temperature: float) -> Sequence[Float[Tensor, "_ C"]]:
        """The sample at a temperature."""
        return [logits / temperature for logits in self.sample]


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
    kept = np.arange(num_rows if num_rows <= most else 0)
    if num_rows > most and is_iterated:
        kept = permutation(0, Purpose.TUNING, 0, num_rows)[:most].sort().values.numpy()
    few, sample, first = [], [], 0
    for logits in pass_over(rows, 1.0, "tuning", is_quiet):
        inside, of_sample = (torch.from_numpy(_between(each, first, len(logits))) for each in (tuned, kept))
        few.append(logits[inside].double())
        if len(of_sample):
            sample.append(logits if len(of_sample) == len(logits) else logits[of_sample])
        first += len(logits)
    labels = torch.from_numpy(rows.tuning[tuned])
    return Tuning(logits=torch.cat(few), labels=labels, sample=sample, is_whole=num_rows <= most)


def _between(places: Int64[np.ndarray, " R"], first: int, number: int) -> Int64[np.ndarray, " r"]:
    """Of sorted places those in a chunk, counted from its first row."""
    start, stop = np.searchsorted(places, (first, first + number))
    return places[start:stop] - first


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen, and the change of the temperature (of its logarithm) that one more round would bring."""

    temperature: float
    strength: float
    moved: float = 0.0

    def notes(self) -> Iterator[str]:
        """What is wrong with it, for people."""
        if self.temperature in (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE):
            yield (
                f"the temperature is at {self.temperature:g}, the limit of the search: the rows of tune_on are all "
                "right, or no better than chance; label more of them"
            )
        elif self.moved >= SETTLED:
            yield (
                f"temperature and strength did not settle: after {MOST_ROUNDS} rounds the temperature would still "
                f"change by {math.expm1(self.moved):.0%}; label more rows for tune_on, or give the temperature"
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
    now, tau, moved = temperature or 1.0, 1.0 if strength is None else strength, 0.0
    for _ in range(MOST_ROUNDS):
        scales = temperature is None
        at_now = _Round(tuning=tuning, temperature=now, shift_of=cache(shift_at(now)), scales=scales)
        tau = _descend(at_now.loss, tau) if strength is None else strength
        before, now = now, _bounded(now * at_now.factor(tau))
        moved = abs(math.log(now / before))
        if moved < SETTLED:
            break
    return Chosen(temperature=now, strength=tau, moved=moved)


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

    center = math.log(fit_temperature(tuning.logits, tuning.labels))
    limits = [math.log(_bounded(math.exp(center + side))) for side in (-SEARCHED, SEARCHED)]
    found: Any = minimize_scalar(loss, bounds=limits, method="bounded", options={"xatol": SETTLED})
    loss(found.x)
    return Chosen(temperature=math.exp(found.x), strength=tau)


def _bounded(temperature: float) -> float:
    return min(max(temperature, 1 / LARGEST_TEMPERATURE), LARGEST_TEMPERATURE)


@dataclass(frozen=True, kw_only=True)
class _Round:
    """Losses of strengths at one temperature."""

    tuning: Tuning
    temperature: float
    shift_of: ShiftOf
    scales: bool
    """Whether the shifted logits are divided by the factor that is best for them."""

    def factor(self, strength: float) -> float:
        shifted = self.tuning.logits / self.temperature - self.shift_of(strength)
        return fit_temperature(shifted, self.tuning.labels) if self.scales else 1.0

    def loss(self, strength: float) -> float:
        factor = self.factor(strength)
        return self.tuning.loss(self.temperature * factor, self.shift_of(strength) / factor)


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
