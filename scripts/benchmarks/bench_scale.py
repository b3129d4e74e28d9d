"""Time of the trainer's step with 1, 2 and 4 processes, what they send, and what the marginal costs with many classes.

    python scripts/benchmarks/bench_scale.py

The global batch is the same for all; the processes share the cores and talk through gloo, as on a host without GPUs.
Bytes are those that a process hands to be reduced in a step. The marginal is that of DebiasPL for 448 images: softmax,
running mean, and logits without it. The last line is `bench_scale: 2/1=... 4/1=... bytes=... marginal_22000=...`, where
the last is the marginal's share of the step with one process.
"""

import argparse
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from bench_step import Setting, make_network, make_step
from benchmark import Apart, Taken, answer, in_turns, ratio, seconds, table, taken
from torch import Tensor

from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import debias

NUM_UNLABELED = 448


class Group:
    """Processes that take each step together."""

    def __init__(self, num: int, arguments: list[str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        threads = max(1, (os.cpu_count() or 1) // num)
        shared = {"WORLD_SIZE": num, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
        self.members = [
            Apart(
                [__file__, "--member", *arguments],
                os.environ | {k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
            )
            for rank in range(num)
        ]

    def __call__(self) -> Taken:
        """The slowest member's."""
        for member in self.members:
            member.ask()
        return max((member.answer() for member in self.members), key=lambda took: took.seconds)

    def close(self) -> None:
        for member in self.members:
            member.close()


def counting(program: Callable[[], Taken]) -> Callable[[], Taken]:
    """A program whose tensors are counted when torch.distributed is called; DDP does not call it for gradients."""
    reduce, sizes = dist.all_reduce, []

    def counted(tensor: Tensor, *arguments: Any, **settings: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **settings)

    dist.all_reduce = counted

    def counts() -> Taken:
        sizes.clear()
        return replace(program(), sent_bytes=sum(sizes))

    return counts


def marginal(num_classes: int, rounds: int) -> float:
    """Median seconds of a step's work on the marginal."""
    logits = torch.randn(NUM_UNLABELED, num_classes)
    tracker = uniform_marginal(num_classes, 0.999)

    def update() -> None:
        tracker.update(logits.softmax(-1))
        debias(logits, tracker.value, 0.5).softmax(-1).max(-1)

    return seconds(in_turns({"marginal": lambda: taken(update)}, rounds)["marginal"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16, help="labeled images of all processes")
    parser.add_argument("--model", default="wrn_16_2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    setting = Setting(batch_size=parsed.batch_size, model=parsed.model)
    if parsed.member:
        answer(counting(make_step(setting)))
        return
    arguments = [f"--batch_size={parsed.batch_size}", f"--model={parsed.model}"]
    with ExitStack() as stack:
        groups = {num: stack.enter_context(closing(Group(num, arguments))) for num in parsed.processes}
        found = in_turns({str(num): group for num, group in groups.items()}, parsed.rounds, warmup=2)
    print(table({f"{num} processes": takes for num, takes in found.items()}, setting.images))
    gradients = sum(4 * parameter.numel() for parameter in make_network(setting).parameters())
    sent = {num: takes[-1].sent_bytes + (gradients if num != "1" else 0) for num, takes in found.items()}
    print(f"bytes that a process sends in a step: {sent}, including gradients {gradients}")
    first, *others = found
    step = seconds(found[first])
    marginals = {num: marginal(num, rounds=20) for num in (10, 100, 1000, 22_000)}
    print("marginal:", ", ".join(f"{1000 * cost:.2f} ms for {num} classes" for num, cost in marginals.items()))
    ratios = [f"{num}/{first}={ratio(found[num], found[first]):.2f}" for num in others]
    print(f"bench_scale: {' '.join(ratios)} bytes={sent[[*found][-1]]} marginal_22000={marginals[22_000] / step:.3f}")


if __name__ == "__main__":
    main()
