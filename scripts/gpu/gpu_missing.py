"""Lists what a machine lacks for `gpu_evidence.py`. It needs only Python's standard library."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def missing_packages(needed: list[str]) -> list[str]:
    """Of requirements such as `timm>=1.0.19`, those that are not installed, or too old."""
    return [each for each in needed if not _is_installed(each)]


def _is_installed(requirement: str) -> bool:
    name, extra, least = re.fullmatch(r"([\w-]+)(?:\[(\w+)\])?(?:>=([\d.]+))?.*", requirement).groups()  # pyright: ignore[reportOptionalMemberAccess]
    try:
        if least and _numbers(importlib.metadata.version(name)) < _numbers(least):
            return False
        of_extra = [each for each in importlib.metadata.requires(name) or [] if extra and f'"{extra}"' in each]
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(_is_installed(re.split(r"[;\s]", each)[0]) for each in of_extra)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def what_is_missing(data: Path) -> tuple[list[str], list[str]]:
    """What no part goes without, and what some go without, in words that say how to bring it."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    fatal = []
    if missing := missing_packages(needed):
        names = " ".join(f"'{each}'" for each in missing)
        fatal.append(
            f"not installed, or too old: {', '.join(missing)}\n"
            "  where there is a network: bash scripts/gpu/gpu_wheels.sh wheels; copy the folder here; then\n"
            f"  {sys.executable} -m pip install --no-index --find-links wheels {names}"
        )
    absent = [str(data / part) for part in ("train", "test") if not (data / part).is_dir()]
    lacks = f"{' and '.join(absent)}: CIFAR-10 as image files, in a folder for each class; few and tail are left out"
    return fatal, [lacks] if absent else []


def machine_of(device: str) -> dict[str, Any]:
    """Commit, versions, GPU and processor, as torch sees them."""
    code = "import json, torch; from debias_ssl.runs.made_by import made_by; "
    code += "print(json.dumps(made_by() | {'num_gpus': torch.cuda.device_count()}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(device))
    if done.returncode:
        sys.exit(f"the package cannot be imported:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(device: str) -> dict[str, str]:
    """Of a process for the GPU, or for the CPU. Folders of packages that the user has named stay in PYTHONPATH."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
