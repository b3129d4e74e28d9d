"""From which step on each method is ahead of the labels alone: curves of long runs, paired by seed.

    debias-ssl compare --config configs/suites/features-lt/config.yaml --settings ... --variants ... \
        --steps 4800 --eval_every 300 --seeds 0,1,2,3,4 --out runs/budget
    python scripts/studies/budgets.py runs/budget --out docs/pictures/budget

It prints a table for each setting:

- accuracy and lowest recall of the averaged model at some steps;
- the step from which the 95 % interval of the difference in accuracy to the labels alone stays above 0;
- how far the marginal of the pseudo-labels is from the true shares of the unlabeled images at the end (half the sum of
  absolute differences, in percent).

It writes a picture of the curves for a light and a dark page. It reads compare.json and each run's metrics.jsonl and
model.json.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from draw_gains import write_for_both_themes
from jaxtyping import Float, Int
from matplotlib.ticker import MaxNLocator

from debias_ssl.reporting.figures.canvas import canvas, look, percent_axis
from debias_ssl.runs.pairing import LABELS_ONLY, inside, own_name, setting_of
from debias_ssl.runs.results import paired_difference


@dataclass(frozen=True, kw_only=True)
class Curves:
    """A variant in a setting: a row for each seed, a column for each evaluation."""

    steps: Int[np.ndarray, " T"]
    accuracy: Float[np.ndarray, "S T"]
    min_recall: Float[np.ndarray, "S T"]
    drift: float
    """Distance of the last marginal to the true shares of the unlabeled images, mean over seeds; nan if unknown."""


def read_run(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Evaluations, lines of the log, and model.json of a run."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return [r for r in records if "ema" in r], [r for r in records if "marginal" in r], facts


def drift(log: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> float:
    """Half the sum of absolute differences of the last marginal and the true shares."""
    counts = facts.get("unlabeled_counts")
    if not counts:
        return float("nan")
    true = np.asarray(counts) / sum(counts)
    return float(np.abs(np.asarray(log[-1]["marginal"]) - true).sum() / 2)


def read_curves(comparison: Path) -> dict[str, dict[str, Curves]]:
    """The curves of each setting's variants; runs that are not finished are left out."""
    table = json.loads((comparison / "compare.json").read_text(encoding="utf-8"))["table"]
    found: dict[str, dict[str, Curves]] = {}
    for line in table:
        setting, name = setting_of(line["variant"]), own_name(line["variant"])
        folders = sorted((comparison / inside(setting, name)).glob("seed-*/summary.json"))
        runs = [read_run(path.parent) for path in folders]
        found.setdefault(setting, {})[name] = Curves(
            steps=np.array([record["step"] for record in runs[0][0]]),
            accuracy=np.array([[record["ema"]["accuracy"] for record in each[0]] for each in runs]),
            min_recall=np.array([[record["ema"]["min_recall"] for record in each[0]] for each in runs]),
            drift=float(np.mean([drift(log, facts) for _, log, facts in runs])),
        )
    return found


def ahead_from(steps: Int[np.ndarray, " T"], gains: Float[np.ndarray, "S T"]) -> str:
    """The first step from which the interval of the mean gain is above 0 at every later evaluation."""
    lows = [paired_difference(column.tolist())["low"] for column in gains.T]
    above = np.array([low is not None and low > 0 for low in lows])
    below = np.flatnonzero(~above)
    first = 0 if len(below) == 0 else below[-1] + 1
    return "never" if first == len(steps) else f"{steps[first]:,}"


def setting_table(curves: Mapping[str, Curves], at: Sequence[int]) -> str:
    """A row for each variant, the labels alone first."""
    floor = curves[LABELS_ONLY]
    rows = [["", *(f"{step:,} steps" for step in at), "ahead of labels alone from step", "distance of the marginal"]]
    rows.append(["---"] * len(rows[0]))
    for name, each in curves.items():
        columns = [int(np.flatnonzero(each.steps == step)[0]) for step in at]
        cells = [f"{100 * each.accuracy[:, k].mean():.1f} / {100 * each.min_recall[:, k].mean():.1f}" for k in columns]
        first = "" if name == LABELS_ONLY else ahead_from(each.steps, each.accuracy - floor.accuracy)
        rows.append([name, *cells, first, f"{100 * each.drift:.1f}"])
    return "\n".join(f"| {' | '.join(row)} |".replace("| --- |", "|---|").replace(" --- |", "---|") for row in rows)


def picture(found: Mapping[str, Mapping[str, Curves]], alt: str) -> str:
    """The curves of all settings side by side, and one key."""
    names = list(dict.fromkeys(name for curves in found.values() for name in curves))
    with canvas(9.2, 3.0, alt) as drawn:
        figure = drawn.axes.figure
        drawn.axes.remove()
        panels = list(figure.subplots(1, len(found), sharey=True, squeeze=False)[0])
        for axes, (setting, curves) in zip(panels, found.items(), strict=True):
            for name, each in curves.items():
                color, dash, _ = look(names.index(name))
                axes.plot(each.steps, each.accuracy.mean(0), color=color, linestyle=dash, label=name)
            axes.set_title(setting, fontsize=9)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(axis="y")
            percent_axis(axes)
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn.svg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="folder of debias-ssl compare")
    parser.add_argument("--at", type=int, nargs="+", help="steps of the table; all evaluations by default")
    parser.add_argument("--out", type=Path, required=True, help="the pictures' path without its end")
    parsed = parser.parse_args()
    found = read_curves(parsed.comparison)
    for setting, curves in found.items():
        print(f"{setting}\n\n{setting_table(curves, parsed.at or curves[LABELS_ONLY].steps.tolist())}\n")
    svg = picture(found, f"Accuracy over steps in {', '.join(found)}: {', '.join(next(iter(found.values())))}")
    write_for_both_themes(svg, parsed.out)


if __name__ == "__main__":
    main()
