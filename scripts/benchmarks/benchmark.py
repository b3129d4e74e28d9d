"""Code that the benchmarks share: rounds in which programs take turns, and the report of their times."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one call took."""

    seconds: float
    page_faults: int = 0
    waited: float = 0.0
    """Seconds of these that it waited for data."""
    sent_bytes: int = 0
    """That it handed over to be reduced, gradients aside."""
    peak_bytes: int = 0
    """Of the process, where the program has one of its own."""


def taken(program: Callable[[], float | None], device: str = "cpu") -> Taken:
    """Runs a program, which returns how long it waited, once, to the end of what it started on the device."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    waited = program()
    if device == "cuda":
        torch.cuda.synchronize()
    return Taken(
        seconds=time.perf_counter() - started,
        page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before,
        waited=waited or 0.0,
    )


def repeated(program: Callable[[], float | None], times: int) -> Callable[[], float]:
    """A program, run that many times: what it does for several calls at once then counts with its share."""

    def run() -> float:
        return sum(program() or 0.0 for _ in range(times))

    return run


class Apart:
    """A script in its own process that takes a step on request; `answer` is its side of the connection."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None):
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self) -> Taken:
        self.ask()
        return self.answer()

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> Taken:
        assert self.process.stdout is not None
        return Taken(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.communicate()


def answer(program: Callable[[], Taken], device: str = "cpu") -> None:
    """Takes a step for each line of the standard input, and says what it took."""
    for _ in sys.stdin:
        took = program()
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident_bytes()
        print(json.dumps(asdict(replace(took, peak_bytes=peak))), flush=True)


def peak_resident_bytes() -> int:
    """The largest resident size of this process.

    On Linux `getrusage` begins with the size of the process that has started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def in_turns(
    programs: Mapping[str, Callable[[], Taken]], rounds: int, warmup: int = 1, untimed: int = 0
) -> dict[str, list[Taken]]:
    """Runs programs one after another in each round, so that whatever slows the machine slows all of them.

    Args:
        programs: by their names.
        rounds: how many are counted.
        warmup: how many come before.
        untimed: calls of a program before the one that counts, in which what others left behind fades, such as workers
            that still prepare their next batches.
    """
    found: dict[str, list[Taken]] = {name: [] for name in programs}
    for number in range(warmup + rounds):
        for name, program in programs.items():
            for _ in range(untimed):
                program()
            took = program()
            if number >= warmup:
                found[name].append(took)
    return found


def seconds(takes: list[Taken]) -> float:
    """The median."""
    return statistics.median(take.seconds for take in takes)


def ratio(takes: list[Taken], others: list[Taken]) -> float:
    """The median over rounds of one program's time over the other's."""
    return statistics.median(a.seconds / b.seconds for a, b in zip(takes, others, strict=True))


def table(found: Mapping[str, list[Taken]], images: int) -> str:
    """Of each program its median, smallest and largest time, images a second, page faults, and share of waiting."""
    lines = [f"{'':<20}{'median s':>10}{'min':>9}{'max':>9}{'images/s':>10}{'page faults':>13}{'data':>8}"]
    for name, takes in found.items():
        times = [take.seconds for take in takes]
        middle = seconds(takes)
        faults = statistics.median(take.page_faults for take in takes)
        waited = statistics.median(take.waited / take.seconds for take in takes)
        lines.append(
            f"{name:<20}{middle:>10.4f}{min(times):>9.4f}{max(times):>9.4f}{images / middle:>10,.0f}{faults:>13,.0f}"
            f"{waited:>8.1%}"
        )
    return "\n".join(lines)


class Traffic(TorchDispatchMode):
    """Counts the bytes of what operators read and write, each as if nothing stayed in a cache."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        is_view = any(out.untyped_storage().data_ptr() in held for out in outputs) and not func._schema.is_mutable
        if not is_view:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs))
        return result


def cost(program: Callable[[], object], steps: int) -> str:
    """Floating-point operations and bytes of a step, as a text. Divided by a device's rates, they are a lower bound.

    Args:
        program: takes `steps` steps.
    """
    program()
    with FlopCounterMode(display=False) as flops, Traffic() as traffic:
        program()
    operations, moved = flops.get_total_flops() / steps, traffic.bytes / steps
    return f"{operations / 1e9:.1f} GFLOP, {moved / 1e9:.2f} GB read and written by operators"
