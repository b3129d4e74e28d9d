"""Time of FixMatch's step beside that of USB and of TorchSSL, each as its own program takes it, on a CPU.

    git clone https://github.com/microsoft/Semi-supervised-learning usb       # 1ef4cbe was measured
    git clone https://github.com/TorchSSL/TorchSSL torchssl                   # f26e1d4
    python scripts/benchmarks/bench_peers.py --usb usb --torchssl torchssl

WRN-28-2, 16 + 112 + 112 images of 32 pixels, fp32, with the peers' default settings otherwise. Their own `train.py` and
`fixmatch.py` run from their command line, with data loading, logging and averages, and no line of them is changed. Both
ask for a GPU, for CIFAR-10 and for packages that FixMatch does not use. In their place stands, from outside:

- `torch.cuda`: `is_available` and `device_count` say that there is one; `.cuda()` gives the tensor or module itself;
  events, `synchronize` and `set_device` do nothing.
- `torchvision.datasets.CIFAR10`: 50,000 made images in place of a download.
- modules that are not installed (torchaudio, wandb, aim, ruamel.yaml and so on): empty ones. What USB takes from
  `timm.models.layers.helpers` is in `timm.layers.helpers` today.
- DataLoader: that of the labeled images waits, before each batch, until it is this program's turn. So a step is timed
  from the request of its batch to the request of the next one.

`as started` has the allocator's defaults. `kept` has glibc keep freed memory, as this package does
(MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_). Core seconds are those of a program and of its workers; they bear a
machine that has other work. The last line is `bench_peers: ours/NAME=... ours/NAME_as_started=...`, our core seconds
over theirs (below 1: ours takes less): in fp32 beside `kept`, and in bf16, the default where the processor computes in
it, beside `as started`. The table has the time by the clock.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch
import torchvision
from bench_step import make_pixels
from benchmark import Apart, Taken, in_turns, peak_resident_bytes, table
from torch.utils.data import DataLoader

from debias_ssl.distributed.device import computes_in_bf16

SCRIPTS = {"usb": "train.py", "torchssl": "fixmatch.py"}
RATIO, IMAGES = 7, 50_000
# What `keep_freed_memory` sets, for a program that does not call it.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
SETTINGS: dict[str, dict[str, str]] = {"as started": {}, "kept": KEPT}
# What the peers import and FixMatch does not use.
UNUSED = ("aim", "progress", "ruamel", "skimage", "torchaudio", "wandb")


# ---- stand-ins, in the peer's process ----


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds empty modules in place of those that are not installed; whatever is taken from them is a class."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        def of(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        vars(module)["__getattr__"] = of


class Event:
    """In place of torch.cuda.Event."""

    def __init__(self, **_: Any):
        pass

    def record(self) -> None:
        pass

    def elapsed_time(self, _: "Event") -> float:
        return 0.0


class Made:
    """In place of torchvision's CIFAR10."""

    def __init__(self, *_: Any, train: bool = True, **__: Any):
        self.data = make_pixels(IMAGES if train else 100, 32).numpy()
        self.targets = [i % 10 for i in range(len(self.data))]


def stand_in(labeled: int) -> None:
    """Replaces what the peers need, and has a loader of batches of `labeled` images wait for its turn."""

    def same(self: Any, *_: Any, **__: Any) -> Any:
        return self

    replaced: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            **{"is_available": lambda: True, "device_count": lambda: 1, "Event": Event},
            **dict.fromkeys(("synchronize", "set_device"), lambda *_: None),
        },
        torch.Tensor: {"cuda": same},
        torch.nn.Module: {"cuda": same},
        torchvision.datasets: {"CIFAR10": Made},
        DataLoader: {"__iter__": waiting(DataLoader.__iter__, labeled)},
    }
    for owner, values in replaced.items():
        for name, value in values.items():
            setattr(owner, name, value)
    # Where USB looks for functions that timm has moved.
    sys.modules["timm.models.layers.helpers"] = importlib.import_module("timm.layers.helpers")
    sys.meta_path.append(Absent())


def waiting(make: Any, labeled: int) -> Any:
    told = sys.stdout
    # What the peers print is not what was asked for.
    sys.stdout = sys.stderr

    def turns(loader: DataLoader) -> Iterator[Any]:
        batches = make(loader)
        for _ in sys.stdin:
            faults, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            yield next(batches)
            took = Taken(
                seconds=time.perf_counter() - started,
                page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults,
                peak_bytes=peak_resident_bytes(),
            )
            print(json.dumps(asdict(took)), file=told, flush=True)
        os._exit(0)

    def started(loader: DataLoader) -> Any:
        return turns(loader) if getattr(loader.batch_sampler, "batch_size", None) == labeled else make(loader)

    return started


def serve(name: str, folder: Path, batch_size: int) -> None:
    """Runs a peer's program, whose steps wait for lines of the standard input."""
    stand_in(batch_size)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with tempfile.TemporaryDirectory() as place:
        settings = {"save_dir": place, "data_dir": place, "gpu": 0, "seed": 1, "dataset": "cifar10", "num_labels": 40}
        settings |= {"batch_size": batch_size, "uratio": RATIO, "eval_batch_size": 100, "rank": 0, "world-size": 1}
        settings |= {"num_train_iter": 100_000, "num_eval_iter": 50_000, "multiprocessing-distributed": "False"}
        settings |= {"net": "wrn_28_2", "num_log_iter": 100_000} if name == "usb" else {}
        sys.argv = [SCRIPTS[name], *(part for key, value in settings.items() for part in (f"--{key}", str(value)))]
        runpy.run_path(SCRIPTS[name], run_name="__main__")


# ---- turns ----


class Counted:
    """A program in a process of its own, whose core seconds are counted, with those of its workers."""

    def __init__(self, program: Apart):
        self.program, self.process = program, psutil.Process(program.process.pid)
        self.core_seconds: list[float] = []

    def __call__(self) -> Taken:
        before = self._used()
        took = self.program()
        self.core_seconds.append(self._used() - before)
        return took

    def _used(self) -> float:
        times = [each.cpu_times() for each in (self.process, *self.process.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def median(self, calls: int) -> float:
        """Of the last calls."""
        return statistics.median(self.core_seconds[-calls:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--usb", type=Path, help="folder of its repository")
    parser.add_argument("--torchssl", type=Path, help="folder of its repository")
    parser.add_argument("--batch_size", type=int, default=16, help="labeled images")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS], help="of the peers' allocator")
    parser.add_argument("--serve", choices=SCRIPTS, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    folders = {name: folder.resolve() for name in SCRIPTS if (folder := getattr(parsed, name)) is not None}
    if parsed.serve:
        serve(parsed.serve, folders[parsed.serve], parsed.batch_size)
        return
    precisions = ["fp32", "bf16"] if computes_in_bf16(torch.device("cpu")) else ["fp32"]
    step = [str(Path(__file__).with_name("bench_step.py")), "--serve=step", f"--batch_size={parsed.batch_size}"]
    # This package sets it as it is imported.
    plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with ExitStack() as stack:

        def apart(command: list[str], further: dict[str, str]) -> Counted:
            return Counted(stack.enter_context(closing(Apart(command, plain | further))))

        programs = {f"ours, {precision}": apart([*step, f"--precision={precision}"], {}) for precision in precisions}
        for name, folder in folders.items():
            command = [__file__, f"--serve={name}", f"--{name}={folder}", f"--batch_size={parsed.batch_size}"]
            programs |= {f"{name}, {setting}": apart(command, SETTINGS[setting]) for setting in parsed.settings}
        # What workers prepare after a step would otherwise be charged to the program behind it.
        found = in_turns(programs, parsed.rounds, warmup=1, untimed=1)
    print(table(found, parsed.batch_size * (1 + 2 * RATIO)))
    print("peak GB:", ", ".join(f"{name} {takes[-1].peak_bytes / 1e9:.2f}" for name, takes in found.items()))
    cores = {name: program.median(2 * parsed.rounds) for name, program in programs.items()}
    print("core seconds a step:", ", ".join(f"{name} {used:.2f}" for name, used in cores.items()))
    told = []
    for name, setting in product(folders, parsed.settings):
        ours = cores[f"ours, {'fp32' if setting == 'kept' else precisions[-1]}"]
        told.append(f"ours/{name}{'_as_started' * (setting != 'kept')}={ours / cores[f'{name}, {setting}']:.2f}")
    print("bench_peers:", *told)


if __name__ == "__main__":
    main()
