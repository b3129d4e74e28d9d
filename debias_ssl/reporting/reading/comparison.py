"""Reads several runs to compare: the folder of a comparison, or run folders, which it groups into variants."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from debias_ssl.reporting.reading.run import FinishedRun, read_run
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.pairing import Block, floors_among
from debias_ssl.runs.results import Result, aggregate, differences_between
from debias_ssl.system.errors import InputError, reason
from debias_ssl.training.renamed import flat

# Columns that `compare.json` must have.
METRICS = ("accuracy", "mean_recall", "min_recall", "h_mean", "ece", "median_accuracy", "best_test_accuracy")
# Keys that are missing in comparisons without labels-only runs.
OLDER: dict[str, Any] = {"setting": "", "floor": None, "difference_to_floor": None}
# Settings in which runs of one variant may differ.
SEEDS = {"seed", "data.split_seed"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Runs with the same settings except for their seeds."""

    name: str
    runs: Sequence[FinishedRun]


@dataclass(frozen=True, kw_only=True)
class ComparedRuns:
    """The data of a page of several runs."""

    variants: Sequence[Variant]
    """Variants with at least one finished run."""
    lines: Sequence[dict[str, Any]]
    """The result of `aggregate`."""
    differences: dict[str, dict[str, Any]]
    """The result of `differences_between`."""
    notes: Sequence[str]
    """Runs that are left out, and why."""

    @property
    def blocks(self) -> dict[str, list[Variant]]:
        """The variants of each setting; the name of the setting is empty if there is only one."""
        settings = {line["variant"]: line["setting"] for line in self.lines}
        blocks: dict[str, list[Variant]] = {}
        for variant in self.variants:
            blocks.setdefault(settings[variant.name], []).append(variant)
        return blocks


def holds_comparison(path: Path) -> bool:
    """Whether a folder holds a comparison."""
    return (path / "compare.json").is_file()


def read_comparison(path: Path) -> ComparedRuns:
    """Reads the folder of a comparison.

    Raises:
        InputError: it holds no finished run, or its files do not fit together.
    """
    try:
        whole = json.loads((path / "compare.json").read_text())
        results = [(str(r["variant"]), int(r["seed"]), str(r["folder"]), str(r["status"])) for r in whole["runs"]]
        errors = [r.get("error") for r in whole["runs"]]
        first = whole["table"][0]["variant"] if whole["table"] else None
        lines = [{**OLDER, "first": first, **line} for line in whole["table"]]
        [line["difference_to_first"] for line in lines]
        [line[name]["mean"] for line in lines for name in METRICS]
        differences = {str(field): dict(values) for field, values in whole["differences"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path / 'compare.json')!r} is not of a comparison: {reason(error)}") from error
    notes, runs = [], {}
    for (variant, seed, folder, status), why in zip(results, errors, strict=True):
        if status != "finished":
            notes.append(f"{variant}, seed {seed}: {status}" + (f" ({why})" if why else "") + ".")
            continue
        where = next((place for place in (path / folder, Path(folder)) if place.is_dir()), path / folder)
        runs.setdefault(variant, []).append(read_run(where))
    found = ComparedRuns(
        variants=[Variant(name=name, runs=runs[name]) for line in lines if (name := line["variant"]) in runs],
        lines=lines,
        differences=differences,
        notes=notes,
    )
    if not found.variants:
        raise InputError(f"{str(path)!r} has no finished run yet")
    for variants in found.blocks.values():
        _check_images(variants)
    return found


def read_variants(paths: Sequence[Path]) -> ComparedRuns:
    """Reads run folders; runs that differ only in their seeds are one variant.

    Raises:
        InputError: a folder holds no finished run, or the runs have different classes or test images.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for path in paths:
        run = read_run(path)
        own = {key: value for key, value in flat(run.resolved).items() if key not in SEEDS}
        groups.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    for runs in groups.values():
        seeds = [run.config.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            raise InputError(f"{str(runs[0].path)!r} and another run have the same settings and seed: leave one out")
    names = [runs[0].method for runs in groups.values()]
    if len(set(names)) < len(names):
        names = [f"{runs[0].method} ({runs[0].path.name})" for runs in groups.values()]
    if len(set(names)) < len(names):
        names = [str(runs[0].path) for runs in groups.values()]
    variants = [Variant(name=name, runs=runs) for name, runs in zip(names, groups.values(), strict=True)]
    rows = [
        Result(
            variant=variant.name,
            seed=run.config.seed,
            folder=str(run.path),
            status="finished",
            summary=run.summary,
            is_uneven=RunFolder(run.path).is_uneven(),
        ).row()
        for variant in variants
        for run in variant.runs
    ]
    _check_images(variants)
    resolved = {variant.name: variant.runs[0].resolved for variant in variants}
    block = Block(setting="", variants=tuple(resolved), floors=floors_among(resolved))
    return ComparedRuns(
        variants=variants, lines=aggregate(rows, (), [block]), differences=differences_between(resolved), notes=[]
    )


def _check_images(variants: Sequence[Variant]) -> None:
    """Raises InputError if variants of one comparison have different classes or test images."""
    first = variants[0].runs[0]
    for run in [run for variant in variants for run in variant.runs]:
        same = run.classes == first.classes and np.array_equal(run.labels, first.labels)
        if not same:
            raise InputError(
                f"{str(run.path)!r} and {str(first.path)!r} have other classes or test images: nothing to compare"
            )
