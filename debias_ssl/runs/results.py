"""Results of a comparison: one row for each run, means and paired differences of variants, as files."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import scipy

from debias_ssl.runs.pairing import Block
from debias_ssl.system.files import write_aside
from debias_ssl.training.journal import finite
from debias_ssl.training.renamed import flat

METRICS = ("accuracy", "mean_recall", "min_recall", "h_mean", "ece")
# Metrics whose paired difference is computed: to the labels-only run, and to the first variant.
PAIRED = ("accuracy", "mean_recall", "min_recall")
GAINS = {name: f"{name}_gain" for name in PAIRED}
MADE_BY = ("commit", "versions", "machine")
COLUMNS = ("variant", "seed", "status", *METRICS, "seconds", "setting", "floor", *GAINS.values(), *MADE_BY)
Payoff = Literal["paid", "cost", "not established"]


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
    is_uneven: bool = False
    """Whether some class has twice as many labels, or test images, as another."""

    def row(self) -> dict[str, Any]:
        """The run as one row: metrics of the averaged model, as fractions; None if the run is not finished."""
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
            "is_uneven": self.is_uneven,
            # Runs of earlier versions do not have this.
            **{name: (self.summary or {}).get("made_by", {}).get(name) for name in MADE_BY},
        }


# Numbers of a row whose mean and standard deviation a variant gets.
SPREAD = (*METRICS, "median_accuracy", "best_test_accuracy", "validation_accuracy", "seconds", "images_per_second")


def aggregate(
    rows: Sequence[Mapping[str, Any]], choose_among: Sequence[str] = (), blocks: Sequence[Block] = ()
) -> list[dict[str, Any]]:
    """A line for each variant: finished seeds, means and standard deviations, paired differences inside its block.

    Variants that use unlabeled images have the paired difference to their labels-only run, and the verdict whether
    these images helped. Variants after the first requested one have the difference to it.

    Args:
        rows: results of `Result.row`.
        choose_among: of these variants, the one with the best mean accuracy on validation images is marked in each
            block; those with fewer finished seeds than others are left out.
        blocks: the blocks in which variants are paired, in the order of the lines; without blocks, all variants are
            one block without a floor.
    """
    finished: dict[str, dict[int, Mapping[str, Any]]] = {row["variant"]: {} for row in rows}
    for row in rows:
        if row["status"] == "finished":
            finished[row["variant"]][row["seed"]] = row
    lines = []
    for block in blocks or [Block(setting="", variants=tuple(finished), floors={})]:
        of_block = [_line(name, finished, block) for name in block.variants]
        _choose([line for line in of_block if line["variant"] in choose_among])
        lines += of_block
    return lines


def _line(variant: str, finished: Mapping[str, Mapping[int, Mapping[str, Any]]], block: Block) -> dict[str, Any]:
    runs, floor = finished[variant], block.floors.get(variant)
    to_floor = None if floor is None else _differences(runs, finished[floor])
    is_compared = variant in block.asked and variant != block.first
    return {
        "variant": variant,
        "setting": block.setting,
        "seeds": [*runs],
        **{name: spread([run.get(name) for run in runs.values()]) for name in SPREAD},
        "difference_to_first": _differences(runs, finished[block.first]) if is_compared else None,
        "first": block.first,
        "floor": floor,
        "difference_to_floor": to_floor,
        "unlabeled_images": None if to_floor is None else payoff(to_floor["accuracy"]),
        "is_uneven": any(run.get("is_uneven") for run in runs.values()),
        "chosen": False,
    }


def _differences(
    runs: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """The paired difference of each metric, over the seeds that both finished."""
    common = [seed for seed in runs if seed in others]
    return {
        name: paired_difference([runs[seed][name] - others[seed][name] for seed in common if name in runs[seed]])
        for name in PAIRED
    }


def payoff(difference: Mapping[str, float | None]) -> Payoff | None:
    """The verdict on the unlabeled images from a paired difference to the labels-only run; None without a pair."""
    if difference["mean"] is None:
        return None
    if difference["low"] is not None and difference["low"] > 0:
        return "paid"
    return "cost" if difference["high"] is not None and difference["high"] < 0 else "not established"


def _choose(candidates: Sequence[dict[str, Any]]) -> None:
    known = [line for line in candidates if line["validation_accuracy"]["mean"] is not None]
    if known:
        most = max(len(line["seeds"]) for line in known)
        full = [line for line in known if len(line["seeds"]) == most]
        max(full, key=lambda line: line["validation_accuracy"]["mean"])["chosen"] = True


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
    half = float(scipy.stats.t.ppf(0.975, num - 1)) * std / math.sqrt(num)
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


def write_results(
    out: Path,
    results: Sequence[Result],
    differences: Mapping[str, Mapping[str, Any]],
    choose_among: Sequence[str],
    blocks: Sequence[Block] = (),
) -> list[dict[str, Any]]:
    """Writes `compare.csv` and `compare.json`; returns the result of `aggregate`."""
    rows = [result.row() for result in results]
    lines = aggregate(rows, choose_among, blocks)
    write_aside(out / "compare.csv", _csv(rows, lines))
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


def _csv(rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run, with its setting, its labels-only run, and its gain over that run of the same seed."""
    by_name = {line["variant"]: line for line in lines}
    by_run = {(row["variant"], row["seed"]): row for row in rows}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line = by_name[row["variant"]]
        floor = by_run.get((line["floor"], row["seed"]), {})
        gains = {
            column: row[name] - floor[name]
            for name, column in GAINS.items()
            if floor.get(name) is not None and row[name] is not None
        }
        writer.writerow({**row, "setting": line["setting"], "floor": line["floor"], **gains})
    return text.getvalue()
