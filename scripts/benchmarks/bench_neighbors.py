"""Time and memory of the neighbors of `--refine mixture`, beside the same product of matrices in one library call.

    python scripts/benchmarks/bench_neighbors.py --rows 50000 --dim 512 --threads 2

Each runs in a process of its own; memory is the most that it held (peak RSS), imports included. The last line is
`bench_neighbors: seconds=... product_seconds=... peak_gb=...`.
"""

import argparse
import subprocess
import sys

PROGRAM = """
import resource, sys, time
import torch
from debias_ssl.formulas.mixture import blocks, graph_of, nearest
rows, dim, threads, name = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(threads)
features = torch.nn.functional.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)), dim=1)
start = time.perf_counter()
if name == "neighbors":
    graph_of(nearest(features))
else:
    for part in blocks(rows, rows):
        features[part] @ features.T
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def measured(name: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds, and peak memory in GB."""
    numbers = [str(number) for number in (arguments.rows, arguments.dim, arguments.threads)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *numbers, name], capture_output=True, text=True, check=True)
    seconds, peak = map(float, done.stdout.split())
    print(f"{name}: {seconds:.1f} s, {peak:.2f} GB", flush=True)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    (seconds, peak), (product, _) = (measured(name, arguments) for name in ("neighbors", "product"))
    print(f"bench_neighbors: seconds={seconds:.1f} product_seconds={product:.1f} peak_gb={peak:.2f}")


if __name__ == "__main__":
    main()
