"""The summary of a finished run: the content of `summary.json`, and the table that is printed at the end."""

import statistics
from typing import Any


def summarize(records: list[dict[str, Any]], median_of: int) -> dict[str, Any]:
    """The content of `summary.json`: the last evaluation on the test set, the median of the last few, and the best.

    The best is chosen on the test set, so it is optimistic; it is there because others report it.

    Args:
        records: lines of `metrics.jsonl`.
        median_of: number of last evaluations whose median is taken.
    """
    evaluations = [record for record in records if "ema" in record]
    logs = [record for record in records if "loss" in record]
    summary: dict[str, Any] = {}
    for name in ("ema", "raw"):
        figures = [{k: v for k, v in e[name].items() if isinstance(v, float)} for e in evaluations]
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


def summary_table(summary: dict[str, Any]) -> str:
    """The summary as a table for a terminal."""
    figures = ("accuracy", "mean_recall", "min_recall", "h_mean", "ece")
    rows = [("EMA, last", "ema", "last"), ("EMA, median", "ema", "median"), ("raw, last", "raw", "last")]
    lines = ["model         " + "".join(f"{figure.replace('_', ' '):>13}" for figure in figures)]
    for title, name, which in rows:
        lines.append(f"{title:<14}" + "".join(f"{100 * summary[name][which][figure]:>11.2f} %" for figure in figures))
    seconds, speed = summary["seconds"], summary["images_per_second"]
    return "\n".join([*lines, f"{summary['steps']} steps in {seconds:.0f} s, {speed:,.0f} images/s"])
