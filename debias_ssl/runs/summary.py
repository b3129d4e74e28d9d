"""The summary of a finished run: the content of `summary.json`, and the table printed at the end."""

import statistics
from collections.abc import Iterable
from typing import Any


def summarize(records: Iterable[dict[str, Any]], median_of: int) -> dict[str, Any]:
    """The content of `summary.json`: the last evaluation on the test set, the median of the last few, and the best.

    The best is chosen on the test set, so it is optimistic; it is there because others report it.

    Args:
        records: lines of `metrics.jsonl`.
        median_of: number of last evaluations whose median is taken.
    """
    evaluations, logs = [], []
    for record in records:
        # Numbers for each class are not kept: a long run has many millions of them.
        if "ema" in record:
            evaluations.append({name: _scalars(record[name]) for name in ("ema", "raw")})
        elif "loss" in record:
            logs.append({name: record[name] for name in ("step", "seconds", "images_per_second")})
    summary: dict[str, Any] = {}
    for name in ("ema", "raw"):
        figures = [evaluation[name] for evaluation in evaluations]
        last_few = figures[-median_of:]
        summary[name] = {
            "last": figures[-1],
            # A run that an older version started lacks newer metrics in its first evaluations.
            "median": {key: statistics.median(each[key] for each in last_few if key in each) for key in figures[-1]},
            "best": max(figures, key=lambda each: each["accuracy"]),
        }
    return {
        **summary,
        "steps": logs[-1]["step"],
        "seconds": logs[-1]["seconds"],
        "images_per_second": statistics.median(log["images_per_second"] for log in logs),
    }


def _scalars(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as a table for a terminal."""
    figures = ("accuracy", "mean_recall", "min_recall", "h_mean", "ece")
    rows = [("EMA, last", "ema", "last"), ("EMA, median", "ema", "median"), ("raw, last", "raw", "last")]
    lines = ["model         " + "".join(f"{figure.replace('_', ' '):>13}" for figure in figures)]
    for title, name, which in rows:
        lines.append(f"{title:<14}" + "".join(f"{100 * summary[name][which][figure]:>11.2f} %" for figure in figures))
    seconds, speed = summary["seconds"], summary["images_per_second"]
    return "\n".join([*lines, f"{summary['steps']} steps in {seconds:.0f} s, {speed:,.0f} images/s"])
