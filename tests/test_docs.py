"""What the README says is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from debias_ssl import cli
from debias_ssl.training.choices import LABELED_LOSSES, METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_jobs_methods_and_files_that_the_readme_names_exist():
    assert set(re.findall(r"debias-ssl (\w+) ", README)) <= set(cli.JOBS)
    for method in METHODS:
        assert f"`{method}`" in README
    for path in re.findall(r"(?:configs|docs)/[\w./-]+\.(?:yaml|md)", README):
        assert (ROOT / path).is_file(), path


def test_every_method_and_every_loss_has_a_row_and_every_row_is_one():
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*METHODS, *LABELED_LOSSES])


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_example_debiases(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, unbiased = [[int(n) for n in re.findall(r"\d+", part)] for part in done.stdout.split("tensor")[1:]]
    assert sum(plain) == sum(unbiased) == 1000
    assert max(unbiased) - min(unbiased) < max(plain) - min(plain)
