"""V-PET (arXiv 2503.09707) by this project's own commands: members on labels alone, their votes, and one round.

    python scripts/studies/vpet.py --config scripts/studies/vpet.yaml --train tiles/train --test tiles/test \\
        --weights tf_efficientnet_lite0.safetensors --labels_per_class 5 --seeds 0,1,2 --out runs/vpet

1. `debias-ssl features` makes the features of all images, once for each network and size.
2. `debias-ssl train` trains each member on the labels alone: `labels_per_class` of the class tree --train.
3. `debias-ssl vote` has the members label all images of --train and, for figures, those of --test.
4. `debias-ssl train --method SelfTraining` trains the student's network again, on the labels and on all images with
   their labels by vote: plain or debiased, each with weight 1 or with the agreement as weight. For comparison, once
   more on the predictions of the student's own member for all images (`--teacher`).

The floor is the member with the student's network. All figures are for the test images. After an interruption, the
same command continues. Each command is printed before it runs.
"""

import argparse
import importlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from debias_ssl.cli import JOBS
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.folder import RunFolder, difference
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml, write_aside

FIGURES = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "min recall"}
KEYS = {"features", "members", "settings", "member_settings", "student", "round_settings", "vote_settings"}
# The labels of each round, and whether they count by the agreement.
ROUNDS = {
    "round on votes": ("plain_votes", False),
    "round on votes, weighted": ("plain_votes", True),
    "round on debiased votes": ("debiased_votes", False),
    "round on debiased votes, weighted": ("debiased_votes", True),
}

Figures = dict[str, float]
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings in the file, and where everything is."""

    settings: dict[str, Any]
    train: str
    test: str
    weights: str | None
    labels_per_class: int
    out: Path

    def feature_folders(self, name: str) -> list[str]:
        return [str(self.out / "features" / f"{name}_{part}") for part in ("train", "test")]

    def run_settings(self, member: str, seed: int, *further: Settings) -> dict[str, Any]:
        """The settings of a run of `train` with a member's network; later ones beat earlier ones."""
        own = {**self.settings["members"][member]}
        features = own.pop("features", None)
        data = {"data.name": "folder", "data.labeled": self.train, "data.test": self.test, "data.split_seed": seed}
        data |= {"data.labels_per_class": self.labels_per_class, "seed": seed}
        if features is not None:
            data["data.features"] = json.dumps(self.feature_folders(features))
        settings = {**data, **self.settings.get("settings", {}), **own}
        for each in further:
            settings |= each
        return settings


def read_plan(path: Path) -> dict[str, Any]:
    """The settings of a file.

    Raises:
        InputError: they do not say what to run.
    """
    settings = read_yaml(path)
    if unknown := sorted(set(settings) - KEYS):
        raise InputError(f"{path}: there is no setting {unknown[0]!r}; they are {', '.join(sorted(KEYS))}")
    members = settings.get("members", {})
    if len(members) < 2:
        raise InputError(f"{path}: members names {len(members)}; votes need two or more")
    if settings.get("student") not in members:
        raise InputError(f"{path}: student is {settings.get('student')!r}, must be one of {', '.join(members)}")
    for name, member in members.items():
        if member.get("features") not in (None, *settings.get("features", {})):
            raise InputError(f"{path}: member {name} has features {member['features']!r}, which are not in features")
    return settings


def run(job: str, *flags: str, **settings: Any) -> None:
    """Prints a command of this project, and runs it."""
    if job not in JOBS:
        raise InputError(f"there is no job {job!r} in this version")
    arguments = [*flags, *(f"--{name}={value}" for name, value in settings.items())]
    print(f"$ debias-ssl {shlex.join([job, *arguments])}", flush=True)
    importlib.import_module(JOBS[job][0]).main(arguments)


def check_same(plan: Plan) -> None:
    """Raises InputError where --out has runs of other settings; keeps these settings there."""
    record = {**plan.settings, "train": plan.train, "test": plan.test, "labels_per_class": plan.labels_per_class}
    path = plan.out / "plan.json"
    if path.exists():
        differs = difference(json.loads(path.read_text()), record, may_differ=())
        if differs:
            raise InputError(f"{str(plan.out)!r} cannot be gone on with: {differs}; choose another --out")
    write_aside(path, json.dumps(record, indent=1) + "\n")


def make_features(plan: Plan) -> None:
    for name, network in plan.settings.get("features", {}).items():
        settings = {**network}
        if plan.weights is not None:
            settings.setdefault("weights", plan.weights)
        for images, out in zip((plan.train, plan.test), plan.feature_folders(name), strict=True):
            run("features", images=images, out=out, **settings)


def trained(folder: Path, settings: Settings) -> Figures:
    """The figures of a run on the test images, once it is finished."""
    if not (folder / "summary.json").exists():
        run("train", *(["--resume"] if RunFolder(folder).holds_run() else []), out=folder, **settings)
    last = json.loads((folder / "summary.json").read_text())["ema"]["last"]
    return {name: last[name] for name in FIGURES}


def voted(runs: Sequence[Path], images: str, folder: Path, settings: Settings) -> dict[str, Any]:
    """The result of `vote` for images."""
    if not (folder / "summary.json").exists():
        run("vote", "--runs", *map(str, runs), images=images, out=folder, **settings)
    return json.loads((folder / "summary.json").read_text())


def one_seed(plan: Plan, seed: int) -> dict[str, Figures]:
    """The rows of the table for one draw of the labels."""
    out, settings, student = plan.out / f"seed_{seed}", plan.settings, plan.settings["student"]
    rows, runs = {}, []
    for member in settings["members"]:
        runs.append(out / member)
        rows[member] = trained(runs[-1], plan.run_settings(member, seed, settings.get("member_settings", {})))
    debiased = settings.get("vote_settings", {})
    # With shares to be estimated, labels would follow them whatever the prior is.
    plain = {**debiased, "prior": "none", "target_prior": "uniform"}
    voted(runs, plan.train, out / "plain_votes", plain)
    found = voted(runs, plan.train, out / "debiased_votes", debiased)
    for member, entry in zip(settings["members"], found["members"], strict=True):
        rows[member]["mean_rank"] = entry["mean_rank"]
    of_test = voted(runs, plan.test, out / "votes_on_test", debiased)
    for name, key in (("votes", "plain"), ("debiased votes", "debiased")):
        rows[name] = {figure: of_test[key][figure] for figure in FIGURES}
    of_round = settings.get("round_settings", {"method": "SelfTraining"})
    own = plan.run_settings(student, seed, of_round, {"teacher": out / student})
    rows[f"round on {student} alone"] = trained(out / "own_round", own)
    for name, (labels, is_weighted) in ROUNDS.items():
        given = {"data.probs": out / labels, "data.root": plan.train, "method.weighted": str(is_weighted).lower()}
        folder = out / name.replace(",", "").replace(" ", "_")
        rows[name] = trained(folder, plan.run_settings(student, seed, of_round, given))
    return rows


def table(found: Mapping[int, Mapping[str, Figures]], student: str) -> str:
    """Means over seeds, in percent; and for each row the mean difference from the floor with its standard error."""
    head = ["", *FIGURES.values(), "over the floor", "mean rank"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    each = [*found.values()]
    for name in each[0]:
        means = [100 * np.mean([rows[name][figure] for rows in each]) for figure in FIGURES]
        gains = np.array([100 * (rows[name]["accuracy"] - rows[student]["accuracy"]) for rows in each])
        error = f" ± {gains.std(ddof=1) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
        is_member = "mean_rank" in each[0][name]
        rank = f"{np.mean([rows[name]['mean_rank'] for rows in each]):.2f}" if is_member else ""
        title = f"{name}, labels only" if is_member else name
        cells = [title + (" (the floor)" if name == student else ""), *(f"{mean:.2f}" for mean in means)]
        lines.append(f"| {' | '.join([*cells, f'{gains.mean():+.2f}{error}', rank])} |")
    return "\n".join(lines)


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_suffix(".yaml"), help="what to run")
    parser.add_argument("--train", required=True, help="class tree: labels of some, and all as unlabeled images")
    parser.add_argument("--test", required=True, help="class tree")
    parser.add_argument("--weights", default=None, help="file of weights, for features without weights of their own")
    parser.add_argument("--labels_per_class", type=int, default=5)
    parser.add_argument("--seeds", default="0,1,2", help="each draws other labels: 0,1,2")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything; the same one goes on")
    parsed = parser.parse_args(arguments)
    plan = Plan(
        settings=read_plan(parsed.config),
        train=parsed.train,
        test=parsed.test,
        weights=parsed.weights,
        labels_per_class=parsed.labels_per_class,
        out=parsed.out,
    )
    check_same(plan)
    make_features(plan)
    found = {seed: one_seed(plan, seed) for seed in map(int, parsed.seeds.split(","))}
    text = table(found, plan.settings["student"])
    write_aside(plan.out / "vpet.json", json.dumps(found, indent=1) + "\n")
    print(f"\nTest images; {len(found)} draws of {plan.labels_per_class} labels a class.\n\n{text}\n\n{plan.out}")


if __name__ == "__main__":
    main()
