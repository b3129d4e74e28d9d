"""Labels of folders that hold a few classes of many, or uneven ones: accuracy by setting, over random folders.

    python scripts/studies/which_classes.py --logits f.npy --truth y.npy --draws 20 --seed 0

For each draw, half of the images of each class are the reference, and folders are made of the others: some classes of
all, all classes, or all with shares that fall by a factor in a random order. Prints mean and deviation in percent.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from debias_ssl import debias_matrix

# Names of columns, whether they have a reference, and --target_prior.
SETTINGS = {
    "uniform": (False, "uniform"),
    "auto": (False, "auto"),
    "reference, uniform": (True, "uniform"),
    "reference, present": (True, "present"),
    "reference, em": (True, "em"),
    "reference, auto": (True, "auto"),
}


def folders(truth: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    """Rows of folders by name; `reference` comes first."""
    num_classes = int(truth.max()) + 1
    of_class = [rng.permutation(np.flatnonzero(truth == k)) for k in range(num_classes)]
    yield "reference", np.concatenate([rows[: len(rows) // 2] for rows in of_class])
    left = [rows[len(rows) // 2 :] for rows in of_class]
    order = rng.permutation(num_classes)
    for share in (0.2, 0.3, 0.5, 0.8, 1.0):
        num = max(1, round(share * num_classes))
        name = f"{num} of {num_classes} classes" if num < num_classes else "all, balanced"
        yield name, np.concatenate([left[k] for k in order[:num]])
    for ratio in (10, 100):
        parts = [
            left[k][: max(1, round(len(left[k]) * ratio ** (-place / (num_classes - 1))))]
            for place, k in enumerate(order)
        ]
        yield f"imbalance {ratio}", np.concatenate(parts)


def accuracies(logits: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Percent right of one draw, by folder and setting."""
    found: dict[str, dict[str, float]] = {}
    reference = np.empty(0, dtype=int)
    for name, rows in folders(truth, np.random.default_rng(seed)):
        if name == "reference":
            reference = rows
            continue
        found[name] = {}
        for setting, (has_reference, target) in SETTINGS.items():
            others = logits[reference] if has_reference else None
            labels = debias_matrix(logits[rows], target_prior=target, reference=others)
            found[name]["plain"] = 100 * float(np.mean(labels.plain == truth[rows]))
            found[name][setting] = 100 * float(np.mean(labels.label == truth[rows]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logits", required=True, help=".npy of N x C")
    parser.add_argument("--truth", required=True, help=".npy of N class numbers")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first draw; the others follow")
    asked = parser.parse_args()
    logits, truth = np.load(asked.logits), np.load(asked.truth)
    draws = [accuracies(logits, truth, asked.seed + i) for i in range(asked.draws)]
    columns = ["plain", *SETTINGS]
    print("| classes in the folder | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in draws[0]:
        cells = []
        for column in columns:
            values = [draw[name][column] for draw in draws]
            cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for column, least in (("auto", -2.0), ("reference, auto", -1.0)):
        gains = np.array([draw[name][column] - draw[name]["plain"] for draw in draws for name in draw])
        share = np.mean(gains < least)
        print(f"{column} less plain, of single draws: least {gains.min():.1f}; below {least:g} in {share:.1%} of them")


if __name__ == "__main__":
    main()
