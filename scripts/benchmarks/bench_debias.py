"""Time and memory of `debias-ssl debias` beside one plain pass over the same memory-mapped matrix.

    python scripts/benchmarks/bench_debias.py --folder /tmp/bench_debias

The matrix is made if it is not there: float16 logits of ImageNet's training set, 2.6 GB, of a classifier that prefers
some classes. Each is run in a process of its own, in turn; memory is the largest RssAnon above that after the imports.
Where others work on the same cores, the ratio of core seconds says more than that of the clock; OMP_NUM_THREADS=1 keeps
what threads wait for each other out of it. The last line is
`bench_debias: debias/pass=... of_cores=... rss_anon_gb=...`, of the medians.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

# What both programs read at a time.
CHUNK_NUMBERS = 2**22

IMPORTED = 'import sys; print("imported", flush=True); sys.stdin.readline(); '
PASS = (
    "import numpy as np, torch; "
    + IMPORTED
    + f"""
values = np.load(sys.argv[1], mmap_mode="r")
step = {CHUNK_NUMBERS} // values.shape[1]
for first in range(0, len(values), step):
    torch.from_numpy(values[first : first + step].astype(np.float32)).softmax(-1).argmax(-1)
"""
)
DEBIAS = (
    "from debias_ssl.debias import main; import debias_ssl.reporting.labels_page; "
    + IMPORTED
    + "main(['--predictions', sys.argv[1], '--out', sys.argv[2], '--overwrite', *sys.argv[3:]])"
)


def make_matrix(path: Path, num_rows: int, num_classes: int) -> None:
    generator = np.random.default_rng(0)
    preference = generator.normal(size=num_classes).astype(np.float32)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(num_rows, num_classes))
    step = CHUNK_NUMBERS // num_classes
    for first in range(0, num_rows, step):
        size = min(step, num_rows - first)
        chunk = generator.standard_normal((size, num_classes), dtype=np.float32) + preference
        chunk[np.arange(size), generator.integers(num_classes, size=size)] += 6
        values[first : first + size] = chunk
    values.flush()


def anonymous_bytes(process: int) -> int:
    """Memory of a process that belongs to no file; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a process took after its imports."""

    seconds: float
    core_seconds: float
    anonymous_bytes: int


def core_seconds(process: int) -> float:
    """Time of a process on all cores so far."""
    of_process = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(of_process[11]) + int(of_process[12])) / os.sysconf("SC_CLK_TCK")


def measure(code: str, *arguments: str | Path) -> Measured:
    """Runs a program that waits after its imports."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        at_start = peak = anonymous_bytes(process.pid)
        of_imports = core_seconds(process.pid)
        of_others = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        print(process.stdout.read(), end="")
    if process.returncode:
        sys.exit(process.returncode)
    of_all = resource.getrusage(resource.RUSAGE_CHILDREN)
    in_all = of_all.ru_utime + of_all.ru_stime - of_others.ru_utime - of_others.ru_stime
    return Measured(seconds=seconds, core_seconds=in_all - of_imports, anonymous_bytes=peak - at_start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True, help="for the matrix and the labels")
    parser.add_argument("--times", type=int, default=1, help="that each is run")
    parser.add_argument("--flags", default="", help="further flags of debias, such as '--probs none'")
    parsed = parser.parse_args()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    matrix = parsed.folder / f"logits_{parsed.rows}x{parsed.classes}.npy"
    if not matrix.exists():
        make_matrix(matrix, parsed.rows, parsed.classes)
    # The first pass brings the matrix into the disk's cache.
    measure(PASS, matrix)
    passes, debiasings = [], []
    for _ in range(parsed.times):
        passes.append(measure(PASS, matrix))
        debiasings.append(measure(DEBIAS, matrix, parsed.folder / "out", *parsed.flags.split()))
    for name, each in (("plain pass", passes), ("debias", debiasings)):
        told = (
            f"{one.seconds:.2f} s, {one.core_seconds:.2f} core s, {one.anonymous_bytes / 1e9:.3f} GB" for one in each
        )
        print(f"{name}: {'; '.join(told)}")
    ratios = [
        median(getattr(one, name) for one in debiasings) / median(getattr(one, name) for one in passes)
        for name in ("seconds", "core_seconds")
    ]
    peak = max(one.anonymous_bytes for one in debiasings)
    print(f"bench_debias: debias/pass={ratios[0]:.2f} of_cores={ratios[1]:.2f} rss_anon_gb={peak / 1e9:.3f}")


if __name__ == "__main__":
    main()
