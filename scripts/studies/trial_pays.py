"""Measures the value of the choices of `debias-ssl trial`, with the runs of a finished comparison.

    python scripts/studies/trial_pays.py --comparison runs/pretrained --variants DebiasPL,FixMatch --out runs/trials

For each setting and seed of the comparison, the trial chooses among these variants and the labels alone. It looks at no
test image. What it chose is then looked up in the comparison, which has the run of each variant on all labels: figures
of the choice, less those of the labels alone; and those of always taking one variant. A trial that is finished is not
run again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from debias_ssl import trial
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.comparison import PLAN_FILE
from debias_ssl.runs.pairing import own_name, setting_of
from debias_ssl.runs.variants import ComparisonPlan, read_plan, seeds_of
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_aside

FIGURES = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "lowest recall"}
# What makes a variant; all else is of its setting.
OWN = ("method", "labeled_loss", "teacher")


def figures_of(comparison: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of each variant and seed: averaged model, last step."""
    runs = json.loads((comparison / "compare.json").read_text())["runs"]
    return {
        (run["variant"], run["seed"]): {name: run["summary"]["ema"]["last"][name] for name in FIGURES}
        for run in runs
        if run["status"] == "finished"
    }


def tried(plan: ComparisonPlan, names: Sequence[str], seed: int, out: Path, flags: Sequence[str]) -> dict[str, Any]:
    """The record of the trial of these variants with one seed."""
    if not (out / "trial.json").exists():
        variants = {own_name(name): plan.variants[name] for name in names}
        base = {name: value for name, value in next(iter(variants.values())).items() if name not in OWN}
        base["labeled_loss"] = plan.base["labeled_loss"]
        own = {name: {key: each[key] for key in OWN} for name, each in variants.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        files = {kind: out.parent / f"{out.name}.{kind}.yaml" for kind in ("config", "variants")}
        for kind, content in (("config", base), ("variants", own)):
            write_aside(files[kind], yaml.safe_dump(content, sort_keys=False))
        given = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
        trial.main([*given, "--seed", str(seed), "--train", "false", "--out", str(out), *flags])
    return json.loads((out / "trial.json").read_text())


def difference(values: Sequence[float]) -> str:
    """The mean in points, with Student's 95 % interval."""
    points = 100 * np.array(values)
    if len(points) < 2:
        return f"{points.mean():+.1f}"
    half = float(student.ppf(0.975, len(points) - 1)) * points.std(ddof=1) / len(points) ** 0.5
    return f"{points.mean():+.1f} [{points.mean() - half:+.1f}, {points.mean() + half:+.1f}]"


def choices(
    records: Sequence[dict[str, Any]], names: Sequence[str], floor: str, margin: float
) -> tuple[list[str], list[float]]:
    """What each trial chooses with this margin, and its largest gain in agreement."""
    picks, gains = [], []
    for record in records:
        best = max(names, key=lambda name: record["gains"][own_name(name)])
        gains.append(record["gains"][own_name(best)])
        picks.append(best if gains[-1] >= margin else floor)
    return picks, gains


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, required=True, help="folder of a finished comparison")
    parser.add_argument("--variants", required=True, help="those to try, by their names there, separated by commas")
    parser.add_argument("--seeds", default=None, help="separated by commas; else those of the comparison")
    parser.add_argument("--settings", default=None, help="separated by semicolons; else those of the comparison")
    parser.add_argument("--divisions", type=int, default=2)
    parser.add_argument("--margin", type=float, default=0.05, help="by which finished trials are decided, too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trials; the same one goes on")
    parsed = parser.parse_args(arguments)
    plan = read_plan(parsed.comparison / PLAN_FILE)
    if plan is None:
        raise InputError(f"{str(parsed.comparison)!r} holds no comparison")
    found, wanted = figures_of(parsed.comparison), [name.strip() for name in parsed.variants.split(",")]
    seeds = seeds_of(parsed.seeds) if parsed.seeds else plan.seeds
    settings = parsed.settings.split(";") if parsed.settings else dict.fromkeys(map(setting_of, plan.variants))
    flags = ["--divisions", str(parsed.divisions), "--jobs", str(parsed.jobs)]
    lines = []
    for setting in settings:
        names = [name for name in plan.variants if setting_of(name) == setting and own_name(name) in wanted]
        floor, folder = plan.floors[names[0]], parsed.out / (setting or "all")
        records = [tried(plan, names, seed, folder / f"seed-{seed}", flags) for seed in seeds]
        picks, gains = choices(records, names, floor, parsed.margin)
        counts = ", ".join(f"{own_name(name)} {picks.count(name)}" for name in dict.fromkeys(picks))
        rows = {f"the trial's choice: {counts}": picks}
        rows |= {f"always {own_name(name)}": [name] * len(seeds) for name in names}
        for title, taken in rows.items():
            runs = [*zip(taken, seeds, strict=True)]
            cells = [
                difference([found[name, seed][each] - found[floor, seed][each] for name, seed in runs])
                for each in FIGURES
            ]
            of_row = [own_name(name) for name in dict.fromkeys(taken)] if taken is not picks else []
            agreed = gains if taken is picks else [record["gains"][of_row[0]] for record in records]
            lines.append([setting, title, *cells, f"{100 * np.mean(agreed):+.1f}"])
    head = ["setting", "", *FIGURES.values(), "gain in agreement"]
    print(f"Points over the labels alone; {len(seeds)} seeds, Student's 95 % interval.\n")
    for line in (head, ["---"] * len(head), *lines):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
