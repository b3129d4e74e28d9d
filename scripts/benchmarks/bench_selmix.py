"""Time and memory of the gain of all pairs of classes that SelMix chooses from.

    python scripts/benchmarks/bench_selmix.py

1,000 classes and 2,048 features, as ResNet-50 has on ImageNet; the gradient of the objective is computed too. Memory is
the largest resident size above that before. The last line is `bench_selmix: classes=... seconds=... gb=...`.
"""

import argparse
import resource
import time

import torch

from debias_ssl.finetune.selmix import mixup_gain, pair_probabilities, slope_at_prototypes
from debias_ssl.finetune.stage import Head
from debias_ssl.formulas.objectives import OBJECTIVES, Goal


def resident_bytes() -> int:
    """The largest so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=2048)
    parsed = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(parsed.classes, parsed.features, generator=generator)
    weight = torch.randn(parsed.classes, parsed.features, generator=generator) / parsed.features**0.5
    head = Head(weight=weight, bias=torch.zeros(parsed.classes))
    goal = Goal(objective=OBJECTIVES["min_recall"], coverage=0.95)
    # A small problem first: the libraries start their threads.
    goal.logit_gradient(torch.full((10, 10), 0.01, dtype=torch.float64) @ torch.eye(10, dtype=torch.float64))
    before, started = resident_bytes(), time.perf_counter()
    gradient = goal.logit_gradient(head(prototypes).double().softmax(1) / parsed.classes)
    gain = mixup_gain(head, prototypes, slope_at_prototypes(prototypes, gradient), 0.8)
    pairs = pair_probabilities(gain, 0.1)
    seconds, size = time.perf_counter() - started, resident_bytes() - before
    assert pairs is not None and pairs.isfinite().all()
    print(f"bench_selmix: classes={parsed.classes} seconds={seconds:.2f} gb={size / 1e9:.3f}")


if __name__ == "__main__":
    main()
