"""Results of a comparison: one row for each run, means and paired differences of variants, as tables and files."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.stats import t as student_t

from debias_ssl.system.files import write_aside
from debias_ssl.training.journal import finite
from debias_ssl.training.renamed import flat

METRICS = ("accuracy", "mean_recall", "min_recall", "h_mean", "ece")
COLUMNS = ("variant", "seed", "status", *METRICS, "seconds")
# Metrics whose paired difference to the first variant is computed.
PAIRED = ("accuracy", "min_recall")
MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of one run of a comparison."""

    variant: str
    seed: int
    folder: str
    status: Literal["pending", "finished", "failed"] = "pending"
    error: str | None = None
    summary: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    """The averaged model's last metrics on the validation images, if there are any."""

    def row(self) -> dict[str, Any]:
        """The run as one row: metrics of the averaged model, as fractions; None where the run is not finished."""
        ema = self.summary["ema"] if self.summary else {"last": {}, "median": {}, "best": {}}
        return {
            "variant": self.variant,
            "seed": self.seed,
            "status": self.status,
            **{name: ema["last"].get(name) for name in METRICS},
            "seconds": (self.summary or {}).get("seconds"),
            "median_accuracy": ema["median"].get("accuracy"),
            "best_test_accuracy": ema["best"].get("accuracy"),
            "images_per_second": (self.summary or {}).get("images_per_second"),
            "validation_accuracy": (self.validation or {}).get("accuracy"),
        }


# Numbers of a row whose mean and standard deviation a variant gets.
SPREAD = (*METRICS, "median_accuracy", "best_test_accuracy", "validation_accuracy", "seconds", "images_per_second")


def aggregate(rows: Sequence[Mapping[str, Any]], choose_among: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A line for each variant, in the order of their first rows: finished seeds, means and standard deviations.

    Variants after the first have the paired difference to the first, over the seeds that both finished.

    Args:
        rows: results of `Result.row`.
        choose_among: of these variants, the one with the best mean accuracy on validation images is marked; those with
            fewer finished seeds than others are left out.
    """
    finished: dict[str, dict[int, Mapping[str, Any]]] = {row["variant"]: {} for row in rows}
    for row in rows:
        if row["status"] == "finished":
            finished[row["variant"]][row["seed"]] = row
    lines = []
    for variant, runs in finished.items():
        first = finished[next(iter(finished))]
        common = [seed for seed in runs if seed in first]
        differences = {
            name: paired_difference([runs[seed][name] - first[seed][name] for seed in common]) for name in PAIRED
        }
        lines.append(
            {
                "variant": variant,
                "seeds": [*runs],
                **{name: spread([run.get(name) for run in runs.values()]) for name in SPREAD},
                "difference_to_first": None if runs is first else differences,
                "chosen": False,
            }
        )
    candidates = [line for line in lines if line["variant"] in choose_among]
    candidates = [line for line in candidates if line["validation_accuracy"]["mean"] is not None]
    if candidates:
        most = max(len(line["seeds"]) for line in candidates)
        full = [line for line in candidates if len(line["seeds"]) == most]
        max(full, key=lambda line: line["validation_accuracy"]["mean"])["chosen"] = True
    return lines


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation (divided by n - 1) of the known values; one value has no deviation."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.stdev(known) if len(known) > 1 else None,
    }


def paired_difference(differences: Sequence[float]) -> dict[str, float | None]:
    """Mean of paired differences with Student's 95 % interval; one pair has no interval."""
    num, (mean, std) = len(differences), spread(differences).values()
    if mean is None or std is None:
        return {"num": num, "mean": mean, "low": None, "high": None}
    half = float(student_t.ppf(0.975, num - 1)) * std / math.sqrt(num)
    return {"num": num, "mean": mean, "low": mean - half, "high": mean + half}


def differences_between(variants: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that differ between variants: for each, its value in every variant that has it."""
    settings = {name: flat(resolved) for name, resolved in variants.items()}
    fields = dict.fromkeys(field for each in settings.values() for field in each)
    found = {}
    for field in fields:
        values = {name: each[field] for name, each in settings.items() if field in each}
        if len(values) < len(settings) or any(value != next(iter(values.values())) for value in values.values()):
            found[field] = values
    return found


def differences_text(differences: Mapping[str, Mapping[str, Any]], variants: Sequence[str]) -> str:
    """The settings that differ between variants, as a table for a terminal."""
    if not differences:
        return "the variants do not differ in any setting"
    lines = [["what differs", *variants]]
    for field, values in differences.items():
        lines.append(
            [field, *(json.dumps(values[name]).strip('"') if name in values else MISSING for name in variants)]
        )
    return _aligned(lines)


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """The result of `aggregate` as a table for a terminal, in percent."""
    percents = [*METRICS, "median_accuracy", "best_test_accuracy"]
    titles = ["accuracy", "mean recall", "min recall", "h mean", "ece", "median acc.", "best (test)"]
    choosing = any(line["validation_accuracy"]["mean"] is not None for line in lines)
    if choosing:
        percents, titles = [*percents, "validation_accuracy"], [*titles, "validation acc."]
    cells = [["variant", "seeds", *titles, "seconds", "images/s"]]
    for line in lines:
        rates = [line[name]["mean"] for name in ("seconds", "images_per_second")]
        cells.append(
            [
                line["variant"] + (" *" if line["chosen"] else ""),
                str(len(line["seeds"])),
                *(spread_text(line[name]) for name in percents),
                *(MISSING if rate is None else f"{rate:,.0f}" for rate in rates),
            ]
        )
    text = [
        _aligned(cells),
        "percent, mean ± standard deviation over seeds, averaged model; last step unless a column says otherwise",
        '"best (test)" is chosen on the test set, so it is optimistic',
    ]
    if any(line["chosen"] for line in lines):
        text.append("* chosen: highest mean accuracy on the validation images (averaged model, last step)")
    return "\n".join(text + _paired_lines(lines))


def _paired_lines(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    others = [line for line in lines if line["difference_to_first"] is not None]
    if not others:
        return []
    cells = [[f"difference to {lines[0]['variant']}", "pairs", "accuracy", "min recall"]]
    for line in others:
        differences = line["difference_to_first"]
        texts = (interval_text(differences[name]) for name in PAIRED)
        cells.append([line["variant"], str(differences["accuracy"]["num"]), *texts])
    return ["", _aligned(cells), "points, mean over seeds that both finished, [95 % interval of Student's t]"]


def spread_text(value: Mapping[str, float | None]) -> str:
    """Mean and deviation in percent."""
    if value["mean"] is None:
        return MISSING
    return f"{100 * value['mean']:.2f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.2f}")


def interval_text(value: Mapping[str, float | None] | None) -> str:
    """A paired difference and its interval in points."""
    if value is None or value["mean"] is None:
        return MISSING
    if value["low"] is None or value["high"] is None:
        return f"{100 * value['mean']:+.2f}"
    return f"{100 * value['mean']:+.2f} [{100 * value['low']:+.2f}, {100 * value['high']:+.2f}]"


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    """Cells as lines of text: the first column is aligned to the left, the others to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )


def write_results(
    out: Path, results: Sequence[Result], differences: Mapping[str, Mapping[str, Any]], choose_among: Sequence[str]
) -> list[dict[str, Any]]:
    """Writes `compare.csv` and `compare.json`; returns the result of `aggregate`."""
    rows = [result.row() for result in results]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)])
    write_aside(out / "compare.csv", text.getvalue())
    lines = aggregate(rows, choose_among)
    whole = {
        "variants": [line["variant"] for line in lines],
        "seeds": sorted({result.seed for result in results}),
        "differences": differences,
        "chosen_on": "mean validation accuracy, averaged model, last step" if choose_among else None,
        "table": lines,
        "runs": [asdict(result) for result in results],
    }
    write_aside(out / "compare.json", json.dumps(finite(whole), indent=1) + "\n")
    return lines
