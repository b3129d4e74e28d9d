"""Start-up time of the jobs: seconds of one core, as multiples of `import torch`.

    python scripts/benchmarks/bench_start.py
    python scripts/benchmarks/bench_start.py --quickstart      # also the whole run of configs/digits.yaml

Each start is a process of its own with one thread, in turns; of each the least CPU time of `--rounds` counts, which
others on the machine disturb least. The last line is `bench_start: help/torch=... refused/torch=...
first_step/torch=...`, of all jobs the slowest `--help`; the exit status is 1 where one of them is above its bound.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmark import Taken, in_turns

from debias_ssl.cli import JOBS

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.yaml")
BOUNDS = {"help": 1.3, "refused": 1.3, "first_step": 2.0}
# A run that ends when it has taken its first step.
FIRST_STEP = """
import os, sys
from debias_ssl import train
from debias_ssl.training import loop
take_step = loop.take_step
def only_step(*arguments):
    take_step(*arguments)
    os._exit(0)
loop.take_step = only_step
train.main(sys.argv[1:])
"""


def start(*arguments: str, status: int = 0) -> Taken:
    """Starts Python with these arguments, and waits for its end; the seconds are CPU time, of user and system."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, ended, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
    assert process.returncode == status, said
    return Taken(seconds=used.ru_utime + used.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=[*JOBS], help="jobs whose --help is called")
    parser.add_argument("--quickstart", action="store_true", help="also a whole run of configs/digits.yaml")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digits = ("--config", DIGITS, "--out", f"{folder}/run", "--overwrite")
        starts = {
            "torch": lambda: start("-c", "import torch"),
            "debias-ssl --help": lambda: start("-m", "debias_ssl", "--help"),
            **{f"{job} --help": lambda job=job: start("-m", "debias_ssl", job, "--help") for job in parsed.jobs},
            "refused": lambda: start("-m", "debias_ssl", "train", *digits, "--optim.lr", "-1", status=2),
            "first_step": lambda: start("-c", FIRST_STEP, *digits),
        }
        if parsed.quickstart:
            starts["quickstart"] = lambda: start("-m", "debias_ssl", "train", *digits)
        found = in_turns(starts, parsed.rounds, warmup=0)
    least = {name: min(take.seconds for take in takes) for name, takes in found.items()}
    print(f"least of {parsed.rounds}, seconds of CPU time\n{'':<20}{'s':>8}{'/ torch':>9}")
    for name, seconds in least.items():
        print(f"{name:<20}{seconds:>8.2f}{seconds / least['torch']:>9.2f}")
    of_help = max(least[f"{job} --help"] for job in parsed.jobs)
    ratios = {"help": of_help, "refused": least["refused"], "first_step": least["first_step"]}
    ratios = {name: seconds / least["torch"] for name, seconds in ratios.items()}
    print("bench_start:", *(f"{name}/torch={ratio:.2f}" for name, ratio in ratios.items()))
    sys.exit(any(ratio > BOUNDS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
