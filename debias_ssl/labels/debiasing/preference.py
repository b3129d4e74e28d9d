"""A class preference (bias) that was measured on other rows than those to label, and its file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from debias_ssl.formulas.priors import supported_share
from debias_ssl.labels.debiasing.estimates import PriorName
from debias_ssl.system.errors import InputError, reason, shortened
from debias_ssl.system.tables import read_text

FILE = "preference.json"
VERSION = 1
BEGINNING = b'{"version": '
# Decimals of a draw in the file: a thousandth of the noise of the largest reference.
DECIMALS = 5


@runtime_checkable
class Reference(Protocol):
    """The source of a class preference: rows to measure it on, or an earlier measurement."""

    def at(self, estimate: PriorName, momentum: float, temperature: float) -> "Preference":
        """The preference at a temperature."""
        ...

    def with_draws(self, preference: "Preference") -> "Preference":
        """The same with bootstrap draws of the rows, where there can be any."""
        ...


@dataclass(frozen=True, kw_only=True)
class Preference:
    """The class preference (bias) of a classifier, measured on rows in which all classes are about equally frequent."""

    classes: tuple[str, ...]
    made_with: Mapping[str, str]
    """Where the preference belongs to: the model and the prompts, or the kind of the numbers."""
    estimate: PriorName
    temperature: float
    num_rows: int
    log_prior: Float64[Tensor, " C"]
    """log q."""
    draws: Float64[Tensor, "B C"]
    """The same of bootstrap draws of the rows; none where the estimate has none."""
    notes: tuple[str, ...] = ()

    def at(self, estimate: PriorName, momentum: float, temperature: float) -> "Preference":
        """Itself.

        Raises:
            InputError: it was measured otherwise.
        """
        if estimate != self.estimate:
            raise InputError(
                f"the preference was measured as {self.estimate}, not as {estimate}: leave out --prior, or pass the "
                "images or predictions that it was measured on as --reference"
            )
        if not math.isclose(temperature, self.temperature, rel_tol=1e-9):
            raise InputError(
                f"the preference was measured at temperature {self.temperature:g}, not {temperature:g}: pass "
                f"--temperature {self.temperature:g}, or the images or predictions that it was measured on as "
                "--reference"
            )
        return self

    def with_draws(self, preference: "Preference") -> "Preference":
        return preference

    @property
    def supported(self) -> float:
        """How much of it is made use of: below 1 where its rows are few."""
        return supported_share(self.num_rows, len(self.classes))

    def checked(self, classes: tuple[str, ...], made_with: Mapping[str, str], source: str) -> "Preference":
        """The same for classes in their order.

        Raises:
            InputError: it is of other classes, or was made with something else.
        """
        if {*self.classes} != {*classes}:
            other = shortened(sorted({*self.classes} ^ {*classes}))
            raise InputError(
                f"{source} has other classes ({other}): pass the images or predictions that it was measured on"
            )
        differing = [key for key, value in made_with.items() if self.made_with.get(key) != value]
        if differing:
            raise InputError(
                f"{source} was made with other {' and '.join(differing)}: pass the images or predictions "
                "that it was measured on"
            )
        order = [self.classes.index(name) for name in classes]
        return replace(self, classes=classes, log_prior=self.log_prior[order], draws=self.draws[:, order])

    def text(self) -> str:
        """As JSON."""
        entries = {
            "version": VERSION,
            "made_with": dict(self.made_with),
            "prior": self.estimate,
            "temperature": self.temperature,
            "num": self.num_rows,
            "class_prior": dict(zip(self.classes, self.log_prior.softmax(-1).tolist(), strict=True)),
            "log_prior": self.log_prior.tolist(),
            "draws": [[round(value, DECIMALS) for value in draw] for draw in self.draws.tolist()],
        }
        return json.dumps(entries, ensure_ascii=False) + "\n"


def summary_with(folder: Path, entry: str, job: str, others: str) -> dict[str, Any]:
    """The summary.json of a folder that is passed as a reference.

    Args:
        folder: of an earlier job.
        entry: text that the job writes into it, by which it is known.
        job: its name.
        others: what else may be passed, for errors.

    Raises:
        InputError: the folder is none of that job.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(read_text(path)) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON: {reason(error)}") from error
    if not isinstance(summary, dict) or not isinstance(summary.get(entry), str):
        raise InputError(
            f"--reference {str(folder)!r} is not a folder of {job}: pass one, or {others}, or a preference.json"
        )
    return summary


def is_preference(path: Path) -> bool:
    """Whether a file begins as a preference that a job has written; other JSON files hold predictions."""
    try:
        with path.open("rb") as file:
            return file.read(len(BEGINNING)) == BEGINNING
    except OSError:
        return False


def read_preference(path: Path) -> Preference:
    """A preference that a job has written.

    Raises:
        InputError: it is none.
    """
    try:
        entries = json.loads(read_text(path))
        if entries["version"] != VERSION:
            raise ValueError(f"its version is {entries['version']!r}, not {VERSION}")
        classes = tuple(map(str, entries["class_prior"]))
        log_prior = torch.tensor(entries["log_prior"], dtype=torch.float64)
        draws = torch.tensor(entries["draws"], dtype=torch.float64).reshape(-1, len(classes))
        if log_prior.shape != (len(classes),) or not (log_prior.isfinite().all() and draws.isfinite().all()):
            raise ValueError("its prior does not have a finite number for each class")
        return Preference(
            classes=classes,
            made_with=dict(entries["made_with"]),
            estimate=entries["prior"],
            temperature=float(entries["temperature"]),
            num_rows=int(entries["num"]),
            log_prior=log_prior,
            draws=draws,
        )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{str(path)!r} is not a preference.json of label or debias: {reason(error)}") from error
