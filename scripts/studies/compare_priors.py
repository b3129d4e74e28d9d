"""Compares the priors on predictions with known truth: on balanced images, and on long-tailed parts of them.

Reads the matrix of `debias-ssl label --prior none`, or of any classifier, and a class for each row. Prints a line for
each prior: figures on all rows, and their means over long-tailed parts in which another class is frequent each time.

    python scripts/studies/compare_priors.py --predictions runs/plain/probs.npy --truth runs/plain/truth.npy

The truth may also be the labels.csv beside the matrix: then the first folder of each path is the class.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.splits import long_tailed_counts
from debias_ssl.formulas import priors
from debias_ssl.formulas.logits import adjust, confusion_matrix, debias
from debias_ssl.formulas.metrics import accuracy, h_mean, mean_recall, min_recall

FIGURES = ("accuracy", "mean recall", "min recall", "H-mean", "entropy of counts")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def shifts(
    logits: Float[Tensor, "N C"], truth: Int[Tensor, " N"], given: dict[str, Float[Tensor, " C"]]
) -> dict[str, Float[Tensor, "N C"]]:
    """The logits after each way to debias them; `given` are priors that are the same for all rows."""
    chunks, num_classes = [logits], logits.shape[1]
    uniform = torch.full((num_classes,), 1 / num_classes)
    found: dict[str, Tensor] = {
        "marginal": priors.mean_probs(chunks),
        "momentum 0.99": priors.running_mean(chunks, 0.99),
        "confidence": priors.confidence_weighted(chunks),
        "stationary": priors.stationary(chunks),
        "centering": priors.centering(chunks),
        **given,
    }
    result = {"plain": logits}
    for name, prior in found.items():
        result |= {f"{name}, strength {tau:g}": debias(logits, prior.float(), tau) for tau in STRENGTHS}
    result["fixed point"] = debias(logits, priors.balancing(chunks, uniform).prior.float(), 1)
    result["transport"] = debias(logits, priors.transport(chunks, uniform).prior.float(), 1)
    result["plain, target em"] = adjust(logits, priors.expectation_maximization(chunks, uniform).prior.float(), 1)
    true = truth.bincount(minlength=num_classes) / len(truth)
    # What could be had if the true shares were known.
    result["oracle: true prior subtracted"] = debias(logits, true, 1)
    result["oracle: marginal, target the true shares"] = adjust(debias(logits, found["marginal"].float(), 1), true, 1)
    result["oracle: fixed point, target the true shares"] = debias(
        logits, priors.balancing(chunks, true).prior.float(), 1
    )
    return result


def figures(logits: Float[Tensor, "N C"], truth: Int[Tensor, " N"]) -> list[float]:
    confusion = confusion_matrix(truth, logits.argmax(-1), logits.shape[1])
    shares = confusion.sum(0) / confusion.sum()
    entropy = torch.special.entr(shares).sum() / np.log(len(shares))
    recalls = [100 * figure(confusion).item() for figure in (accuracy, mean_recall, min_recall, h_mean)]
    return [*recalls, entropy.item()]


def long_tailed(truth: Int[Tensor, " N"], imbalance: float, seed: int) -> Int[Tensor, " M"]:
    """Rows of a long-tailed part: classes in another order, and other rows of each, for each seed."""
    num_classes = int(truth.max()) + 1
    order = permutation(seed, Purpose.CLASS_ORDER, 0, num_classes)
    counts = long_tailed_counts(int(truth.bincount().min()), imbalance, num_classes)
    parts = []
    for k, count in zip(order.tolist(), counts, strict=True):
        rows = torch.nonzero(truth == k).flatten()
        parts.append(rows[permutation(seed, Purpose.SPLIT, k, len(rows))[:count]])
    # In file order, for the prior that depends on it.
    return torch.cat(parts).sort().values


def read_truth(path: Path) -> Int[Tensor, " N"]:
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path).astype(np.int64))
    number = {name: k for k, name in enumerate(json.loads((path.parent / "classes.json").read_text()))}
    with path.open(encoding="utf-8") as file:
        return torch.tensor([number[row["path"].split("/")[0]] for row in csv.DictReader(file)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True, help="N x C probabilities, .npy")
    parser.add_argument("--truth", type=Path, required=True, help=".npy of class numbers, or labels.csv")
    parser.add_argument("--imbalance", type=float, nargs="+", default=[10.0, 100.0])
    parser.add_argument("--parts", type=int, default=5, help="long-tailed parts, each with another order of classes")
    parser.add_argument(
        "--summary",
        type=Path,
        nargs="*",
        default=[],
        help="summary.json of jobs whose prior needs more than the matrix",
    )
    parsed = parser.parse_args()
    summaries = [json.loads(path.read_text()) for path in parsed.summary]
    given = {each["prior"]: torch.tensor([*each["class_prior"].values()]) for each in summaries}
    logits = torch.from_numpy(np.load(parsed.predictions).astype(np.float32)).clamp(min=1e-8).log()
    # In the order of the files, rows would come class by class.
    truth, order = read_truth(parsed.truth), permutation(0, Purpose.UNLABELED_ORDER, 0, len(logits))
    logits, truth = logits[order], truth[order]
    columns: list[tuple[str, Callable[[str], list[float]]]] = []
    everything = {name: figures(value, truth) for name, value in shifts(logits, truth, given).items()}
    columns.append(("all", everything.__getitem__))
    for imbalance in parsed.imbalance:
        parts = []
        for seed in range(parsed.parts):
            rows = long_tailed(truth, imbalance, seed)
            parts.append(
                {name: figures(f, truth[rows]) for name, f in shifts(logits[rows], truth[rows], given).items()}
            )
        mean = {name: np.mean([part[name] for part in parts], 0).tolist() for name in everything}
        columns.append((f"imbalance {imbalance:g}", mean.__getitem__))
    heads = [f"{title}: {figure}" if i == 0 else figure for title, _ in columns for i, figure in enumerate(FIGURES)]
    print(f"| prior | {' | '.join(heads)} |")
    print("|---" * (1 + len(FIGURES) * len(columns)) + "|")
    for name in everything:
        cells = [f"{value:.2f}" for _, column in columns for value in column(name)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
