"""Time to find the images of a step: at most 2.5 milliseconds a step are allowed.

    python scripts/benchmarks/bench_orders.py

Each case computes the orders of a step as a run does: 64 labeled images and, unless classes are drawn equally often,
448 unlabeled ones. It uses one thread, and cases take turns of `--steps` steps. The last line is
`bench_orders: labels4=... labels20=... balanced=... classes1000=... imagenet=...`: the median over turns of
milliseconds a step, for the slowest case of a kind. The exit status is 1 if one is above the bound. Work that is done
once in a pass over all images counts in the turn in which it is done, and is also printed separately.
"""

import argparse
import itertools
import sys
from collections.abc import Callable

import numpy as np
import torch
from benchmark import Taken, in_turns, seconds, taken

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.data.sampling.orders import BalancedOrder, PassOrder, ShardOrder

Order = PassOrder | ShardOrder | BalancedOrder
BOUND = 2.5
# Short names of the last line: the slowest of these cases.
KINDS = {
    "labels4": ("4_of_50000",),
    "labels20": ("20_of_50000",),
    "balanced": ("balanced_4", "balanced_20", "balanced_250"),
    "classes1000": ("balanced_1000x20", "balanced_1000x1281"),
    "imagenet": ("20_of_1.28M", "shards_10000", "shards_100"),
}
LABELED, UNLABELED = 64, 448
IMAGENET = 1_281_167


def passes(length: int, purpose: Purpose) -> PassOrder:
    size = LABELED if purpose == Purpose.LABELED_ORDER else UNLABELED
    return PassOrder(length=length, batch_size=size, seed=0, purpose=purpose)


def balanced(num_classes: int, each: int) -> BalancedOrder:
    return BalancedOrder(labels=torch.arange(num_classes * each) % num_classes, batch_size=LABELED, seed=0)


def shards(size: int) -> ShardOrder:
    borders = np.append(np.arange(0, IMAGENET, size), IMAGENET)
    return ShardOrder(borders=borders, batch_size=UNLABELED, lanes=64, seed=0)


def cases() -> dict[str, list[Order]]:
    few = Purpose.LABELED_ORDER
    found: dict[str, list[Order]] = {
        "4_of_50000": [passes(4, few), passes(50_000, Purpose.UNLABELED_ORDER)],
        "20_of_50000": [passes(20, few), passes(50_000, Purpose.UNLABELED_ORDER)],
        "20_of_1.28M": [passes(20, few), passes(IMAGENET, Purpose.UNLABELED_ORDER)],
    }
    for each in (4, 20, 250):
        found[f"balanced_{each}"] = [balanced(10, each)]
    for each in (20, 1281):
        found[f"balanced_1000x{each}"] = [balanced(1000, each)]
    for size in (10_000, 100):
        found[f"shards_{size}"] = [shards(size)]
    return found


def program(orders: list[Order], steps: int) -> Callable[[], Taken]:
    """A turn: the next steps of a run."""
    upcoming = itertools.count(1000)

    def turn() -> None:
        for step in itertools.islice(upcoming, steps):
            for order in orders:
                order(step, torch.arange(order.batch_size))

    return lambda: taken(turn)


def made(length: int) -> None:
    permutation(0, Purpose.SPLIT, 0, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    found = in_turns({name: program(orders, parsed.steps) for name, orders in cases().items()}, parsed.rounds)
    print(
        f"{parsed.rounds} turns of {parsed.steps} steps, milliseconds a step\n{'':<18}{'median':>9}{'min':>9}{'max':>9}"
    )
    medians = {}
    for name, takes in found.items():
        each = [1000 * take.seconds / parsed.steps for take in takes]
        medians[name] = 1000 * seconds(takes) / parsed.steps
        print(f"{name:<18}{medians[name]:>9.2f}{min(each):>9.2f}{max(each):>9.2f}")
    whole = in_turns({"": lambda: taken(lambda: made(IMAGENET))}, 3)[""]
    print(f"a pass over {IMAGENET:,} images: {seconds(whole):.2f} s, once in {IMAGENET // UNLABELED:,} steps")
    print("bench_orders:", *(f"{kind}={max(medians[name] for name in names):.2f}" for kind, names in KINDS.items()))
    sys.exit(any(middle > BOUND for middle in medians.values()))


if __name__ == "__main__":
    main()
