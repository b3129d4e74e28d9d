"""CReST and CReST+ (arXiv 2102.09559): generations of runs, each with pseudo-labels of the last one among its labels.

Each generation trains a new model, by any method, on the labeled images of the split. From the second generation on,
it also trains on some unlabeled images, with their pseudo-labels as labels. Let N_1 >= ... >= N_C be the numbers of
labeled images of the classes. Of the unlabeled images that the averaged model of generation g predicts as class l, the
share

    mu_l = (N_{C+1-l} / N_1)^alpha

with the highest confidence gets labels in generation g + 1. For the rarest class these are all images, because a model
predicts it too rarely, but mostly correctly. Each generation chooses again, and the unlabeled images stay the same.

CReST+ also aligns predictions in training to pi ~ N^t, with t falling from 1 in the first generation to
`min_temperature` in the last; the method must have a `prior` setting. FixMatch is the paper's.

    python scripts/studies/crest.py --config configs/digits.yaml --method FixMatch --data.labels_per_class 40 \\
        --data.labeled_imbalance 20 --generations 3 --out runs/crest

In --out, gen_0, gen_1 ... are run folders, split_0.json, split_1.json ... their splits, and crest.json is the table.
"""

import copy
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.splits import Split, save_split
from debias_ssl.data.task import Task, make_task
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.folder import RunFolder, difference
from debias_ssl.runs.run import train
from debias_ssl.runs.trained import load_trained
from debias_ssl.system.errors import InputError, check_settings
from debias_ssl.system.files import read_yaml, write_aside
from debias_ssl.training.config import Config
from debias_ssl.training.evaluation import predict_logits
from debias_ssl.training.parser import make_parser, resolve
from debias_ssl.training.saved import config_from

RECORD, TABLE = "crest.yaml", "crest.json"
HEAD = ("generation", "t", "labels", "pseudo-labels", "right", "accuracy", "mean recall", "min recall", "H-mean")


@dataclass(frozen=True, kw_only=True)
class Generations:
    """How generations follow each other.

    Args:
        generations: G, runs in all; 6 in the paper.
        alpha: how much less frequent classes give to the labeled images than rare ones; 0 takes every pseudo-label.
        min_temperature: t of the last generation; null is CReST, without alignment.
    """

    generations: int = 6
    alpha: float = 1 / 3
    min_temperature: float | None = 0.5

    def __post_init__(self):
        check_settings(
            self,
            "--",
            generations=(self.generations >= 1, "at least 1"),
            alpha=(self.alpha >= 0, "at least 0"),
            min_temperature=(self.min_temperature is None or 0 <= self.min_temperature <= 1, "in [0, 1]"),
        )

    def temperature(self, generation: int) -> float | None:
        """t_g = 1 - g / (G - 1) (1 - t_min), of generations 0..G-1; None where nothing is aligned."""
        if self.min_temperature is None:
            return None
        return 1 - generation / max(1, self.generations - 1) * (1 - self.min_temperature)


def rates(counts: Sequence[int], alpha: float) -> Float[Tensor, " C"]:
    """mu, the share of the pseudo-labels of each class that become labels, given the labeled images of each."""
    number = torch.tensor(counts, dtype=torch.float64)
    order = number.argsort(descending=True, stable=True)
    result = torch.empty_like(number)
    result[order] = (number[order.flip(0)] / number.max()) ** alpha
    return result


def most_confident(
    probs: Float[Tensor, "U C"], rate: Float[Tensor, " C"]
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """Rows, ascending, and their predicted classes: of each class the given share, rounded down, of the surest ones."""
    confidence, label = probs.max(-1)
    order = confidence.argsort(descending=True, stable=True)
    chosen = []
    for k, share in enumerate(rate.tolist()):
        rows = order[label[order] == k]
        # 0.3 * 10 may be 2.9999999999999996 instead of 3.
        chosen.append(rows[: int(share * len(rows) + 1e-9)])
    rows = torch.cat(chosen).sort().values
    return rows, label[rows]


def aligned_shares(counts: Sequence[int], temperature: float) -> list[float]:
    """pi ~ N^t."""
    powers = torch.tensor(counts, dtype=torch.float64) ** temperature
    return (powers / powers.sum()).tolist()


def grown(split: Split, labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " P"], pseudo: Int[np.ndarray, " P"]):
    """The split with further labeled images.

    Args:
        split: the first generation's.
        labels: classes of all training images.
        rows: positions of the further images.
        pseudo: their classes.
    """
    labeled = np.concatenate([split.labeled, rows])
    given = np.concatenate([labels[split.labeled], pseudo])
    order = np.argsort(labeled, kind="stable")
    return replace(split, labeled=labeled[order], labels=given[order])


def candidates(split: Split) -> Int[np.ndarray, " U"]:
    """Unlabeled images that are not labeled ones too."""
    return np.setdiff1d(split.unlabeled, split.labeled)


def next_split(task: Task, folder: Path, alpha: float) -> Split:
    """The split of the generation after the run in `folder`, given the task of the first one."""
    trained, rows = load_trained(RunFolder(folder), task.place.device), candidates(task.split)
    stream = trained.stream(task.readers["train"], rows, task.place)
    probs = predict_logits(trained.predictor, stream, len(trained.classes)).softmax(-1)
    chosen, pseudo = most_confident(probs, rates(task.labeled_counts, alpha))
    return grown(task.split, task.training_labels, rows[chosen.numpy()], pseudo.numpy())


def settings_of(
    resolved: dict[str, Any], split: Path, counts: Sequence[int], temperature: float | None
) -> dict[str, Any]:
    """A generation's settings: those of the command line with its split and its prior."""
    settings = copy.deepcopy(resolved)
    settings["data"]["split"] = str(split)
    if temperature is not None:
        settings["method"]["init_args"]["prior"] = aligned_shares(counts, temperature)
    return settings


def row(generation: int, temperature: float | None, folder: Path, first: Split, truth: Int[np.ndarray, " N"]):
    """A generation in one line, under the names of HEAD; fractions in [0, 1]."""
    split = json.loads((folder / "split.json").read_text())
    labeled = np.array(split["labeled"])
    added = ~np.isin(labeled, first.labeled)
    known = added & (truth[labeled] >= 0)
    right = np.array(split.get("labels", truth[labeled]))[known] == truth[labeled][known]
    last = RunFolder(folder).read_summary()["ema"]["last"]
    figures = [last[name] for name in ("accuracy", "mean_recall", "min_recall", "h_mean")]
    numbers = [generation, temperature, len(first.labeled), int(added.sum())]
    return dict(zip(HEAD, [*numbers, float(right.mean()) if len(right) else None, *figures], strict=True))


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for each in rows:
        cells = ["-" if each["t"] is None else f"{each['t']:.2f}", *(str(each[name]) for name in HEAD[2:4])]
        cells += ["-" if each[name] is None else f"{100 * each[name]:.2f}" for name in HEAD[4:]]
        lines.append(f"| {each['generation']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def check_folder(out: Path, record: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Raises InputError where the folder may not be written to by these settings."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file")
    if RunFolder(out).holds_run():
        raise InputError(f"{str(out)!r} holds a run, not generations of them: choose another --out")
    if not (out / RECORD).exists() or overwrite:
        return
    if not resume:
        raise InputError(f"{str(out)!r} holds generations: pass --resume to go on with them, --overwrite to replace")
    differs = difference(read_yaml(out / RECORD), record)
    if differs:
        raise InputError(f"{str(out)!r} cannot be resumed: {differs}")


def clear(out: Path) -> None:
    """Removes what this script writes, and nothing else."""
    generations = [path for path in out.glob("gen_*") if path.name.removeprefix("gen_").isdecimal()]
    for path in generations:
        RunFolder(path).clear()
        if not any(path.iterdir()):
            shutil.rmtree(path)
    for path in [*out.glob("split_*.json"), out / RECORD, out / TABLE]:
        path.unlink(missing_ok=True)


def run_generations(config: Config, resolved: dict[str, Any], plan: Generations, out: Path) -> list[dict[str, Any]]:
    """Trains what is not trained yet, and gives a row for each generation."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = make_task(config.data, seed=config.seed, place=Place(device=device))
    rows = []
    for generation in range(plan.generations):
        folder, split_file = out / f"gen_{generation}", out / f"split_{generation}.json"
        if not split_file.exists():
            split = next_split(task, out / f"gen_{generation - 1}", plan.alpha) if generation else task.split
            save_split(split_file, split, task.data.classes, task.fingerprint)
        temperature = plan.temperature(generation)
        settings = settings_of(resolved, split_file, task.labeled_counts, temperature)
        train(config_from(settings), settings, folder, resume=True, quiet=True)
        rows.append(row(generation, temperature, folder, task.split, task.data.train.labels))
        write_aside(out / TABLE, json.dumps(rows, indent=1) + "\n")
    return rows


@entry_point
def main(arguments: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("crest.py runs in one process: leave out accelerate launch")
    parser = make_parser("crest", Config)
    parser.prog, parser.description = "crest.py", "Generations of runs with pseudo-labels as labels (CReST+)."
    parser.add_argument("--out", type=str, required=True, help="folder of all generations")
    parser.add_class_arguments(Generations, as_group=False)
    parser.add_argument("--resume", action="store_true", help="go on with the generations in --out, if there are any")
    parser.add_argument("--overwrite", action="store_true", help="replace the generations in --out")
    parsed = parser.read_arguments(arguments)
    config, resolved = resolve(parser, parsed)
    plan = Generations(generations=parsed.generations, alpha=parsed.alpha, min_temperature=parsed.min_temperature)
    method = resolved["method"]
    if plan.min_temperature is not None and "prior" not in method["init_args"]:
        raise InputError(
            f"CReST+ aligns predictions to a prior, and {method['class_path']} has no such setting: pass --method "
            "FixMatch or AdaMatch, or --min_temperature null for CReST"
        )
    out = Path(parsed.out)
    record = {"crest": vars(plan), **resolved}
    check_folder(out, record, resume=parsed.resume, overwrite=parsed.overwrite)
    if parsed.overwrite:
        clear(out)
    write_aside(out / RECORD, yaml.safe_dump(record, sort_keys=False))
    print(f"{table(run_generations(config, resolved, plan, out))}\n{out}")


if __name__ == "__main__":
    main()
