"""Comparisons of a few steps, and what they leave behind, for tests of `debias-ssl compare`."""

import csv
from pathlib import Path

import pytest
from launched import DIGITS

import debias_ssl.runs.comparison as compare_module
from debias_ssl import compare
from debias_ssl.training.learner import Learner

SHORT = ["--steps", "4", "--log_every", "2", "--eval_every", "2", "--checkpoint_every", "2", "--batch_size", "8"]
BASE = ["--config", str(DIGITS), *SHORT, "--report=false"]
TWO = ["--methods", "Supervised,FixMatch"]


def run(out: Path, *flags: str) -> Path:
    compare.main([*BASE, "--out", str(out), *flags])
    return out


def rows(out: Path) -> list[dict[str, str]]:
    """`compare.csv` but for the clock, and for what depends on other runs."""
    with (out / "compare.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds" and not key.endswith("_gain")}
            for row in csv.DictReader(file)
        ]


class Trained:
    """Stands for `train` and counts its calls; some runs fail, or are interrupted after their checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endings: dict[str, BaseException] | None = None):
        self.runs: list[str] = []
        self.endings = endings or {}
        self.train, self.monkeypatch = compare_module.train, monkeypatch
        monkeypatch.setattr(compare_module, "train", self)

    def __call__(self, config, resolved, out, **flags) -> None:
        name = f"{out.parent.name} {config.seed}"
        self.runs.append(name)
        ending = self.endings.get(name)
        if isinstance(ending, KeyboardInterrupt):
            self._interrupt_after(2)
        elif ending is not None:
            raise ending
        self.train(config, resolved, out, **flags)

    def _interrupt_after(self, steps: int) -> None:
        after_step = Learner.after_step

        def interrupted(learner: Learner, step: int) -> None:
            if step == steps:
                raise KeyboardInterrupt
            after_step(learner, step)

        self.monkeypatch.setattr(Learner, "after_step", interrupted)


def row(variant: str, seed: int, accuracy: float, status: str = "finished", **figures: float) -> dict:
    known = {"accuracy": accuracy, "min_recall": accuracy / 2, "seconds": 10.0 * (seed + 1)} if accuracy else {}
    return {"variant": variant, "seed": seed, "status": status, **known, **figures}
