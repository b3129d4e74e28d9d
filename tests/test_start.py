"""What starts fast: jobs import what they use, and nothing else."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from launched import DIGITS

from debias_ssl.cli import JOBS

# What `import torch` brings, with numpy.
TORCH = {"cuda", "numpy", "torch", "torchgen", "tqdm", "triton", "typing_extensions"}
# Where other packages have brought them, torch imports dill, and jsonargparse attrs.
TORCH |= {"attr", "attrs", "dill"}
# Of our own dependencies; jsonargparse brings what reads docstrings and stubs.
OWN = {"PIL", "debias_ssl", "filelock", "jaxtyping", "pyarrow", "safetensors", "scipy", "simplejpeg", "yaml"}
OWN |= {"cloudpickle", "docstring_parser", "jsonargparse", "typeshed_client", "wadler_lindig"}
# jsonargparse and torch import these where other packages, such as those of the documentation, have brought them.
OWN |= {"attr", "attrs", "dill"}
# Of the extra `heif`, which registers its formats with Pillow.
OWN |= {"pillow_heif"}
OF_HELP = TORCH | OWN
# Accelerate looks for packages whose names begin with "google.".
OF_RUN = OF_HELP | {"accelerate", "google", "packaging", "psutil", "huggingface_hub"}
# Parts of these that take as long to import as torch: its compiler, tensors of several devices, the parts of scipy.
SLOW = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.onnx", "sympy")
SLOW += ("scipy.optimize", "scipy.sparse", "scipy.special", "scipy.stats")

# Each part prints the modules that are imported at its end.
PROGRAM = """
import contextlib, importlib, io, json, sys
def modules():
    print(json.dumps(sorted(sys.modules)))
def quiet(job, *arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        importlib.import_module(job).main([*arguments])
for job in JOBS:
    quiet(job, "--help")
quiet("debias_ssl.train", *RUN, "--optim.lr", "-1")
modules()
quiet("debias_ssl.train", *RUN)
quiet("debias_ssl.train", *RUN, *OTHER)
modules()
"""


def imported(program: str) -> list[list[str]]:
    """The lists of modules that a program prints, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def packages(modules: Sequence[str]) -> set[str]:
    """The packages of modules, without Python's own and those that others have for themselves alone."""
    found = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    return {name for name in found if not name.startswith(("_", "cython"))}


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Modules after the help of every job and a setting that is refused; and after two short runs."""
    out = tmp_path_factory.mktemp("start") / "run"
    steps = [f"--{name}=2" for name in ("steps", "log_every", "eval_every", "checkpoint_every")]
    run = ["--config", str(DIGITS), "--out", str(out), "--overwrite", *steps]
    other = ["--optim.name", "adamw", "--optim.clip", "1", "--model.norm", "group", "--target_model", "ema"]
    values = f"JOBS, RUN, OTHER = {[module for module, _ in JOBS.values()]}, {run}, {other}\n"
    helped, ran = imported(values + PROGRAM)
    assert (out / "summary.json").exists()
    return {"help": helped, "run": ran}


@pytest.mark.parametrize(("start", "allowed"), [("help", OF_HELP), ("run", OF_RUN)])
def test_only_what_is_used_is_imported(starts: dict[str, list[str]], start: str, allowed: set[str]):
    modules = starts[start]
    assert {f"debias_ssl.{job}" for job in ("train", "label", "report")} <= set(modules)
    assert packages(modules) - allowed == set()
    assert {name for name in modules if name.startswith(SLOW)} == set()


def test_the_list_of_jobs_needs_no_torch():
    program = """
import json, sys
from debias_ssl import cli
for argument in ("--help", "--version", "nope"):
    sys.argv[1:] = [argument]
    sys.stdout, stdout = sys.stderr, sys.stdout
    try:
        cli.main()
    except SystemExit:
        pass
    sys.stdout = stdout
print(json.dumps(sorted(sys.modules)))
"""
    (modules,) = imported(program)
    assert packages(modules) == {"debias_ssl"}
