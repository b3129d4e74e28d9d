"""The scripts that start jobs on a cluster, with stand-ins for the cluster's commands."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent.parent / "scripts" / "launch"


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_bash_understands_the_script(script: Path):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    ("job", "ended", "expected", "flags"),
    [
        ("compare", 0, 0, "--out x --wait false --resume"),
        ("compare", 75, 0, "--out x --wait false --resume"),
        ("label", 1, 1, "--out x --wait false"),
        ("label", 143, 143, "--out x --wait false"),
    ],
)
def test_a_task_of_an_array_is_well_where_others_go_on_and_queued_again_where_it_was_stopped(
    job: str, ended: int, expected: int, flags: str, tmp_path: Path
):
    for name, status in (("srun", ended), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\nexit {status}\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    done = subprocess.run(
        ["bash", LAUNCH / "array.sh", job, "--out", "x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected
    requeued = ["scontrol requeue 17"] if ended == 143 else []
    assert done.stdout.splitlines() == [f"srun debias-ssl {job} {flags}", *requeued]
