"""Compares the images that `debias-ssl suggest` chooses with the same number of random images.

    python scripts/studies/suggest_pays.py --digits
    python scripts/studies/suggest_pays.py --features runs/cifar-features --train data/cifar10-jpeg/train \
        --test data/cifar10-jpeg/test --config configs/pretrained_features.yaml --out runs/suggest

All are judged by test images, after training on the chosen ones with their true labels: a logistic regression on
features that are centered and scaled by one number, and with --config a run on these features with this method.
In the first round nothing is labeled. In the second, 40 images are, which were chosen at random or suggested, and 60
more are chosen by what the model says that was trained on the 40. Seeds are those of what is drawn: random choices,
candidates, and of digits which are for testing.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.last_task import LastTask
from debias_ssl.data.reading.features import find_features
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.data.splits import save_split
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.labels.annotation.candidates import Asked, Candidates, read_candidates
from debias_ssl.labels.annotation.suggestion import suggest_images
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.run import train
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve

BUDGETS, LABELED, MORE = (40, 100), 40, 60
# Inverse strength of the penalty on the weights, for features whose mean variance is 1; chosen on seeds 100-103.
PENALTY = 0.1
ROWS = 4096
Rows = Int64[np.ndarray, " R"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Images to choose from, and images to judge by."""

    features: Float[np.ndarray, "N D"]
    labels: Int64[np.ndarray, " N"]
    test: Float[np.ndarray, "M D"]
    test_labels: Int64[np.ndarray, " M"]
    classes: tuple[str, ...]

    def logits(self, rows: Rows) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
        """The logits of a classifier that is trained on some images, and its accuracy on test images."""
        mean, scale = self.scale
        some = (self.features[rows].astype(np.float64) - mean) / scale
        # Weights with a penalty lie in the span of few rows: there the same problem has as many numbers as rows.
        basis, inside = np.linalg.qr(some.T)
        fitted = LogisticRegression(C=PENALTY, max_iter=1000).fit(inside.T, self.labels[rows])
        weight = (basis @ fitted.coef_.T).astype(np.float32) / scale
        offset = fitted.intercept_ - mean @ weight

        def logits(features: np.ndarray) -> np.ndarray:
            # A class without a label is not there.
            found = np.full((len(features), len(self.classes)), -30.0, dtype=np.float32)
            for first in range(0, len(features), ROWS):
                part = features[first : first + ROWS].astype(np.float32)
                found[first : first + ROWS, fitted.classes_] = part @ weight + offset
            return found

        return logits, float((logits(self.test).argmax(1) == self.test_labels).mean())

    @property
    def scale(self) -> tuple[np.ndarray, float]:
        """Mean of the features, and the root of their mean variance."""
        values = self.features[:: max(1, len(self.features) // ROWS)].astype(np.float32)
        return values.mean(0), float(values.var(0).mean() ** 0.5)

    def candidates(self, logits: np.ndarray | None) -> Candidates:
        def features(rows: Rows) -> Float[Tensor, "R D"]:
            return torch.from_numpy(self.features[rows]).float()

        return Candidates(
            names=RowNumbers(len(self.labels)),
            root=Path(),
            classes=() if logits is None else self.classes,
            logits=() if logits is None else torch.from_numpy(logits).split(ROWS),
            features=features,
            notes=(),
        )


def digits(seed: int) -> Data:
    given: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(given.target))
    values, labels = given.data[order].astype(np.float32), given.target[order]
    classes = tuple(map(str, range(10)))
    return Data(
        features=values[500:], labels=labels[500:], test=values[:500], test_labels=labels[:500], classes=classes
    )


def kept(folder: str, train_tree: str, test_tree: str) -> Data:
    found = []
    for tree in (train_tree, test_tree):
        images = find_files(tree, "--train")
        root = folder_of(tree, images)
        names = [Path(name).relative_to(root).parts[0] for name in images.names]
        found.append((find_features([folder], images.names), names))
    classes = tuple(sorted({*found[0][1]}))
    (features, names), (test, test_names) = found
    labels, test_labels = (np.array([classes.index(name) for name in each]) for each in (names, test_names))
    return Data(features=features, labels=labels, test=test, test_labels=test_labels, classes=classes)


def suggested(images: Candidates, labeled: Rows, num: int, seed: int) -> Rows:
    is_labeled = np.zeros(len(images.names), dtype=bool)
    is_labeled[labeled] = True
    found = suggest_images(images, is_labeled, num=num, per_class=1, seed=seed)
    return np.array([each.row for each in found.chosen])


def drawn(data: Data, seed: int, labeled: Sequence[int] = ()) -> Rows:
    """Images that are not labeled, in a random order."""
    order = np.random.default_rng([seed, len(labeled)]).permutation(len(data.labels))
    return order[~np.isin(order, labeled)]


def labels_alone(data: Data, seed: int) -> dict[tuple[str, str], float]:
    """Accuracy by setting and choice."""
    plain, found = data.candidates(None), {}
    # The first of more suggestions are those of fewer.
    choices = {"random": drawn(data, seed), "suggest": suggested(plain, np.arange(0), max(BUDGETS), seed)}
    for number in BUDGETS:
        for name, rows in choices.items():
            found[f"first {number}", name] = data.logits(rows[:number])[1]
    starts = {"random": choices["random"][:LABELED], "suggested": choices["suggest"][:LABELED]}
    for start, labeled in starts.items():
        logits = data.logits(labeled)[0](data.features)
        seen = data.candidates(logits)
        top = np.sort(logits, 1)
        sure_last = np.argsort(top[:, -1] - top[:, -2], kind="stable")
        choices = {
            "random": drawn(data, seed, labeled.tolist())[:MORE],
            "suggest": suggested(seen, labeled, MORE, seed),
            "coverage alone": suggested(plain, labeled, MORE, seed),
            "margin alone": sure_last[~np.isin(sure_last, labeled)][:MORE],
        }
        for name, rows in choices.items():
            found[f"{LABELED} {start}, then {MORE}", name] = data.logits(np.concatenate([labeled, rows]))[1]
    return found


def trained(config: Path, out: Path, last: LastTask, train_tree: str, rows: Rows, seed: int) -> float:
    """Accuracy of a run's averaged model at its last step, with these images as the labeled ones."""
    flags = ["--data.labels_per_class", "null", "--data.labeled", train_tree, "--seed", str(seed)]
    parser = make_parser("train", Config)
    if not (out / "summary.json").exists():
        base, _ = resolve(parser, parser.read_arguments(["--config", str(config), *flags]))
        task = last.make(base.data, seed=seed, place=Place())
        split = replace(task.split, labeled=np.sort(rows))
        out.parent.mkdir(parents=True, exist_ok=True)
        file = out.parent / f"{out.name}.json"
        save_split(file, split, task.data.classes, task.fingerprint)
        parser = make_parser("train", Config)
        parsed = parser.read_arguments(["--config", str(config), *flags, "--data.split", str(file)])
        train(*resolve(parser, parsed), out, resume=True, quiet=True, last=last)
    return RunFolder(out).read_summary()["ema"]["last"]["accuracy"]


def with_unlabeled(parsed: argparse.Namespace, data: Data, seed: int, last: LastTask) -> dict[tuple[str, str], float]:
    """As `labels_alone`, for runs that learn from the unlabeled images too."""
    place, first, second = parsed.out / f"seed-{seed}", f"first {LABELED}", f"{LABELED} suggested, then {MORE}"
    run, found = partial(trained, parsed.config, last=last, train_tree=parsed.train, seed=seed), {}
    labeled = suggested(data.candidates(None), np.arange(0), LABELED, seed)
    for name, rows in {"random": drawn(data, seed)[:LABELED], "suggest": labeled}.items():
        found[first, name] = run(out=place / f"first-{name}", rows=rows)
    asked = Asked(
        labels=str(place / "first-suggest"), images=parsed.train, root=None, features=(), batch_size=500, workers=0
    )
    choices = {
        "random": drawn(data, seed, labeled.tolist())[:MORE],
        "suggest": suggested(read_candidates(asked, Place()), labeled, MORE, seed),
    }
    for name, rows in choices.items():
        found[second, name] = run(out=place / f"second-{name}", rows=np.concatenate([labeled, rows]))
    return found


def table(found: Sequence[dict[tuple[str, str], float]]) -> str:
    """Means and deviations in percent, and differences to random choice with Student's 95 % interval."""
    lines = ["| round | choice | accuracy | over random |", "|---|---|---|---|"]
    for setting, name in found[0]:
        values, base = (100 * np.array([each[setting, of] for each in found]) for of in (name, "random"))
        cell = ""
        if name != "random" and len(found) > 1:
            gain = values - base
            half = float(student.ppf(0.975, len(gain) - 1)) * gain.std(ddof=1) / len(gain) ** 0.5
            cell = f"{gain.mean():+.1f} [{gain.mean() - half:+.1f}, {gain.mean() + half:+.1f}]"
        spread = f" ± {values.std(ddof=1):.1f}" if len(found) > 1 else ""
        lines.append(f"| {setting} | {name} | {values.mean():.1f}{spread} | {cell} |")
    return "\n".join(lines)


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", action="store_true", help="digits of scikit-learn; else --features")
    parser.add_argument("--features", help="folder of features of both trees")
    parser.add_argument("--train", help="class tree of the images to choose from")
    parser.add_argument("--test", help="class tree of the images to judge by")
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--config", type=Path, default=None, help="of runs that learn from the unlabeled images too")
    parser.add_argument("--out", type=Path, default=None, help="folder of these runs; the same one goes on")
    parsed = parser.parse_args(arguments)
    seeds, last = [int(seed) for seed in parsed.seeds.split(",")], LastTask()
    same = None if parsed.digits else kept(parsed.features, parsed.train, parsed.test)
    data = [same or digits(seed) for seed in seeds]
    print("Labels alone\n")
    print(table([labels_alone(each, seed) for each, seed in zip(data, seeds, strict=True)]), flush=True)
    if parsed.config is not None:
        print(f"\n{parsed.config}\n")
        print(table([with_unlabeled(parsed, each, seed, last) for each, seed in zip(data, seeds, strict=True)]))


if __name__ == "__main__":
    main()
