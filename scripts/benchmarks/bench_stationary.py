"""Time and memory of the prior `stationary` of very many classes.

    python scripts/benchmarks/bench_stationary.py --classes 22000 --rows 50000

The logits are made chunk by chunk, for a classifier that prefers some classes. The time to make them is included, and
also printed separately. Both the wall-clock time and the CPU time of all cores are measured, because other programs may
be running. The last line is `bench_stationary: seconds=... core_seconds=... making=... rss_anon_gb=...`.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from debias_ssl.formulas.priors import stationary
from debias_ssl.labels.debiasing.chunks import rows_of_chunk


@dataclass(frozen=True, kw_only=True)
class Made:
    """Logits that are made again in each pass: noise that is shifted from chunk to chunk, a preference and a truth."""

    noise: Tensor
    preference: Tensor
    num_rows: int

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(1)
        for first in range(0, self.num_rows, len(self.noise)):
            chunk = self.noise.roll(7919 * first, 1)[: self.num_rows - first].add_(self.preference)
            truth = torch.randint(chunk.shape[1], (len(chunk), 1), generator=generator)
            yield chunk.scatter_add_(1, truth, torch.full_like(truth, 9, dtype=chunk.dtype))


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=22_000)
    parser.add_argument("--rows", type=int, default=50_000)
    parsed = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    made = Made(
        noise=torch.randn(rows_of_chunk(parsed.classes), parsed.classes, generator=generator),
        preference=torch.randn(parsed.classes, generator=generator),
        num_rows=parsed.rows,
    )
    started = time.perf_counter()
    is_predicted = torch.zeros(parsed.classes, dtype=torch.bool)
    for chunk in made:
        is_predicted[chunk.argmax(1)] = True
    making = time.perf_counter() - started
    print(f"{parsed.rows:,} rows of {parsed.classes:,} classes; {is_predicted.sum():,} of them are predicted")
    at_start = peak = anonymous_bytes()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, of_cores = time.perf_counter(), time.process_time()
    q = stationary(made)
    seconds, core_seconds = time.perf_counter() - started, time.process_time() - of_cores
    ended.set()
    watcher.join()
    print(f"largest {q.max():.3g}, smallest {q.min():.3g}")
    print(
        f"bench_stationary: seconds={seconds:.1f} core_seconds={core_seconds:.1f} making={making:.1f} "
        f"rss_anon_gb={(peak - at_start) / 1e9:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
