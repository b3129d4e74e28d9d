"""Stage two on the runs of several seeds, beside methods trained from scratch with the same held-out images: a table.

    python scripts/studies/stage_two.py --out runs/stage_two --config configs/digits.yaml \\
        --data.validation_per_class 20 ...

    python scripts/studies/stage_two.py --variants scripts/studies/stage_two_supervised.yaml \\
        --partner labeled --out runs/supervised ...

All other flags are those of `debias-ssl compare`. It trains the variants, by default those of stage_two.yaml,
then changes the classifier of each run of the first one by every method of stage two for every goal, and writes
OUT/table.md. Started again, it goes on.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from debias_ssl import compare
from debias_ssl.finetune import Mixup
from debias_ssl.finetune.config import METHODS, FinetuneConfig
from debias_ssl.finetune.run import prepare
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.formulas.metrics import h_mean, mean_recall, min_recall
from debias_ssl.formulas.objectives import Goal, coverage, find_objective, shares_of
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.files import read_yaml, write_aside

GOALS = (
    ("mean_recall", None),
    ("min_recall", None),
    ("h_mean", None),
    ("mean_recall", 0.95),
    ("h_mean", 0.95),
)
SHOWN = {"mean_recall": mean_recall, "min_recall": min_recall, "h_mean": h_mean}


def figures(confusion: torch.Tensor) -> dict[str, float]:
    """Shares of one: the objectives, and the smallest coverage times the number of classes."""
    found = {name: function(confusion).item() for name, function in SHOWN.items()}
    return {**found, "coverage": (coverage(shares_of(confusion)).min() * len(confusion)).item()}


def stage_two(run: Path, seed: int, partner: str, found: dict[str, Any]) -> dict[str, Any]:
    """Figures on held-out and test images, by method and goal, beside those of methods that have been found."""
    prepared = prepare(RunFolder(run), FinetuneConfig(seed=seed))
    counts, test_labels = torch.tensor(prepared.run.labeled_counts), prepared.task.evaluation_labels("test")
    found = {name: known for name, known in found.items() if name in METHODS}
    for name, method in METHODS.items():
        if name in found:
            continue
        for objective, least in GOALS:
            goal = Goal(objective=find_objective(objective, counts), coverage=least)
            stage, started = replace(prepared.stage, goal=goal), time.perf_counter()
            settings: dict[str, Any] = {"partner": partner} if issubclass(method, Mixup) else {}
            head = method(**settings)(stage)
            seconds = time.perf_counter() - started
            test = confusion_matrix(test_labels, head(prepared.test).argmax(-1).cpu(), len(counts))
            found.setdefault(name, {})[f"{objective}, {least}"] = {
                "held_out": figures(stage.confusion(head)),
                "test": figures(test),
                "seconds": seconds,
            }
    return found


def scratch(run: Path) -> dict[str, Any]:
    """The same figures of a trained run, from its predictions."""
    parts = {}
    for name, part in (("held_out", "validation"), ("test", "test")):
        logits, labels = (torch.from_numpy(np.load(run / "predictions" / f"{part}_{x}.npy")) for x in ("ema", "labels"))
        parts[name] = figures(confusion_matrix(labels, logits.argmax(-1), logits.shape[1]))
    return parts


def cell(values: list[float]) -> str:
    """Mean and deviation over seeds, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def table(trained: dict[str, list[dict]], tuned: list[dict[str, Any]]) -> str:
    """A row a method; each of the first columns is tuned for its own figure, the last ones under the constraint."""
    title = "| | mean recall | min recall | H-mean | mean recall, covered | held-out coverage | H-mean, covered "
    lines = [title + "| held-out coverage | test coverage |", "|" + "---|" * 9]
    for name, runs in trained.items():
        cells = [cell([run["test"][figure] for run in runs]) for figure in SHOWN]
        held_out, test = (cell([run[part]["coverage"] for run in runs]) for part in ("held_out", "test"))
        lines.append(f"| {name} | {' | '.join(cells)} | | {held_out} | | | {test} |")
    for name in METHODS:
        by_goal = [[seed[name][f"{objective}, {least}"] for seed in tuned] for objective, least in GOALS]
        cells = [
            cell([run["test"][objective] for run in runs])
            for (objective, _), runs in zip(GOALS[:3], by_goal[:3], strict=True)
        ]
        for (objective, _), runs in zip(GOALS[3:], by_goal[3:], strict=True):
            cells.append(cell([run["test"][objective] for run in runs]))
            cells.append(cell([run["held_out"]["coverage"] for run in runs]))
        cells.append(cell([run["test"]["coverage"] for run in by_goal[-1]]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seconds = [one["seconds"] for seed in tuned for method in seed.values() for one in method.values()]
    return "\n".join(
        [*lines, "", f"A change of the classifier took {statistics.mean(seconds):.1f} s, at most {max(seconds):.1f}."]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variants", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--partner", default="unlabeled", choices=["unlabeled", "labeled"], help="of mixtures")
    parsed, flags = parser.parse_known_args()
    folder = parsed.out / "scratch"
    given = ["--variants", str(parsed.variants), "--seeds", parsed.seeds, "--floor", "false"]
    compare.main([*given, "--resume", "--out", str(folder), *flags])
    variants = list(read_yaml(parsed.variants))
    seeds = [int(seed) for seed in parsed.seeds.split(",")]
    tuned = []
    for seed in seeds:
        path = parsed.out / f"stage_two_{seed}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        if set(found) != set(METHODS):
            found = stage_two(folder / variants[0] / f"seed-{seed}", seed, parsed.partner, found)
            write_aside(path, json.dumps(found, indent=1) + "\n")
        tuned.append(found)
    trained = {name: [scratch(folder / name / f"seed-{seed}") for seed in seeds] for name in variants}
    text = table(trained, tuned)
    write_aside(parsed.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
