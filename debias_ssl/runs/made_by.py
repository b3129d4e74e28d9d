"""Records the provenance of a run: the commit of this package, versions of its dependencies, and the machine."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from debias_ssl import __version__
from debias_ssl.distributed.device import device_name

# Their versions may change the bits of a run.
PACKAGES = ("timm", "scikit-learn")


@cache
def made_by() -> dict[str, str]:
    """Commit, versions and machine of this process at the first call, without a name of the host.

    No value has a comma, so that a table of them needs no quotes.
    """
    versions = [f"debias_ssl {__version__}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    versions += [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Only GPUs: the device name of a CPU contains only its vector instructions.
    device = [device_name()] if torch.cuda.is_available() else []
    machine = [*device, cpu_model(), f"{cores} cores", f"threads: {torch.get_num_threads()}"]
    return {
        "commit": commit_of(Path(__file__).parents[1]),
        "versions": "; ".join(versions),
        "machine": "; ".join(machine),
    }


def commit_of(package: Path) -> str:
    """The commit of the repository that contains a package, with `+` if the package's files differ from it.

    Empty if no repository has its files: an installed package may lie inside the repository of another project.
    """
    if not _git(package, "ls-files", "__init__.py"):
        return ""
    changes = _git(package, "status", "--porcelain", "--", ".")
    return _git(package, "rev-parse", "--short=10", "HEAD") + ("+" if changes else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_model() -> str:
    """The processor's name from Linux; on other systems from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine()).replace(",", "")
