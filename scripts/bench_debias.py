"""Time and memory of `debias-ssl debias` beside one plain pass over the same memory-mapped matrix.

    python scripts/bench_debias.py --folder /tmp/bench_debias

The matrix is made if it is not there: float16 logits of ImageNet's training set, 2.6 GB, of a classifier that prefers
some classes. Each is run in a process of its own; memory is the largest RssAnon above that after the imports. The last
line is `bench_debias: debias/pass=... rss_anon_gb=...`.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

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
    + "main(['--predictions', sys.argv[1], '--out', sys.argv[2], '--overwrite'])"
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


def measure(code: str, *arguments: Path) -> tuple[float, int]:
    """Seconds, and the most anonymous memory above that after the imports."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        at_start = peak = anonymous_bytes(process.pid)
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
    return seconds, peak - at_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, required=True, help="for the matrix and the labels")
    parsed = parser.parse_args()
    parsed.folder.mkdir(parents=True, exist_ok=True)
    matrix = parsed.folder / f"logits_{parsed.rows}x{parsed.classes}.npy"
    if not matrix.exists():
        make_matrix(matrix, parsed.rows, parsed.classes)
    # The first pass brings the matrix into the disk's cache.
    measure(PASS, matrix)
    pass_seconds, pass_bytes = measure(PASS, matrix)
    seconds, peak = measure(DEBIAS, matrix, parsed.folder / "out")
    print(f"plain pass {pass_seconds:.2f} s, {pass_bytes / 1e9:.3f} GB; debias {seconds:.2f} s, {peak / 1e9:.3f} GB")
    print(f"bench_debias: debias/pass={seconds / pass_seconds:.2f} rss_anon_gb={peak / 1e9:.3f}")


if __name__ == "__main__":
    main()
