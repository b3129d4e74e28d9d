"""Measures the errors of labels from few rows, and of confidences that are tuned on few labels.

It prints two tables. The first is for batches of a few rows of a matrix with known truth. It shows the accuracy that
`debias` gains over the plain labels, in percentage points: with the part of the prior that is removed for so few rows,
and with all of it (strength 1). The second table shows the ECE after `tune_on` with some labels, on synthetic logits
with an offset of 0 to 6 between the classes.

    python scripts/studies/few_rows.py --predictions runs/test/probs.npy --truth truth.npy

Half of the rows, drawn with seed 0, are left out of the first table: the formula of the part was chosen on them.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from debias_ssl import debias_matrix
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.tables.truth import read_labels

PRIORS = ("stationary", "marginal", "confidence", "centering", "momentum", "fixed_point", "transport")
# Rows of a batch, and how many batches.
BATCHES = {1: 300, 3: 300, 10: 200, 30: 100, 100: 60, 300: 40}
LABELS, NUM_ROWS, NUM_CLASSES = (30, 100, 300, 1000), 10_000, 10


def few_rows(logits: np.ndarray, truth: np.ndarray) -> list[str]:
    random = np.random.default_rng(1)
    lines = [f"| rows | plain | {' | '.join(PRIORS)} |", "|" + "---|" * (len(PRIORS) + 2)]
    for size, number in BATCHES.items():
        plain, part, whole = 0.0, dict.fromkeys(PRIORS, 0.0), dict.fromkeys(PRIORS, 0.0)
        for _ in range(number):
            rows = random.choice(len(logits), size, replace=False)
            plain += 100 * float((logits[rows].argmax(1) == truth[rows]).mean()) / number
            for prior in PRIORS:
                for sums, strength in ((part, None), (whole, 1.0)):
                    labels = debias_matrix(logits[rows], kind="logits", prior=prior, strength=strength).label
                    sums[prior] += 100 * float((labels == truth[rows]).mean()) / number
        cells = [f"{part[prior] - plain:+.1f} ({whole[prior] - plain:+.1f})" for prior in PRIORS]
        lines.append(f"| {size} | {plain:.1f} | {' | '.join(cells)} |")
    return lines


def made(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits and their classes; then an offset is added to the logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(NUM_ROWS, NUM_CLASSES, generator=generator)
    classes = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return (logits + torch.linspace(0, 6, NUM_CLASSES)).numpy(), classes.numpy()


def tuned(num_seeds: int, first_seed: int) -> list[str]:
    lines = ["| labels | stationary | fixed_point |", "|---|---|---|"]
    for number in LABELS:
        cells = []
        for prior in ("stationary", "fixed_point"):
            errors = []
            for seed in range(first_seed, first_seed + num_seeds):
                logits, truth = made(seed)
                known = np.where(np.arange(NUM_ROWS) < number, truth, -1)
                labels = debias_matrix(logits, prior=prior, tune_on=known, truth=truth)
                errors.append(100 * labels.summary()["debiased"]["ece"])
            deviation = np.std(errors, ddof=1) if num_seeds > 1 else 0.0
            cells.append(f"{np.mean(errors):.2f} ± {deviation:.2f}, at most {max(errors):.2f}")
        lines.append(f"| {number} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True, help="a matrix, as debias-ssl debias takes it")
    parser.add_argument(
        "--truth", type=Path, required=True, help="classes of its rows, as debias-ssl debias takes them"
    )
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds of the synthetic logits")
    parser.add_argument(
        "--first_seed", type=int, default=0, help="the first seed: other seeds evaluate what was chosen"
    )
    parsed = parser.parse_args()
    predictions = read_predictions(parsed.predictions)
    truth = read_labels(parsed.truth, predictions.names, predictions.classes).labels
    logits = torch.cat([*predictions]).numpy()
    claimed = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))[len(logits) // 2 :].numpy()
    print("\n".join([*few_rows(logits[claimed], truth[claimed]), "", *tuned(parsed.seeds, parsed.first_seed)]))


if __name__ == "__main__":
    main()
