"""What tests of jobs share: short runs, their weights and labels, and the message of a job that is refused."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launched import DIGITS, SHORT
from safetensors.torch import load_file

from debias_ssl import train
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve


def run(out: Path, *flags: str) -> Path:
    """A short run on digits."""
    train.main(["--config", str(DIGITS), *SHORT, "--out", str(out), *flags])
    return out


def refused(main: Callable[[list[str]], Any], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a job that is refused in the way all are: exit 2, at most two lines, no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    said = capsys.readouterr().err
    assert exit_.value.code == 2, said
    # A progress bar that was wiped may stand before it.
    message = said.rpartition("\r")[2].replace("\x1b[A", "")
    assert message.startswith("error: ") and message.endswith("\n"), said
    assert said.count("\n") <= 2 and "Traceback" not in said, said
    return message


def settings_of(*flags: str) -> tuple[Config, dict[str, Any]]:
    """The settings that these flags give a run, and what is saved of them."""
    parser = make_parser("train", Config)
    return resolve(parser, parser.read_arguments([*flags]))


def weights(out: Path, step: int = 12) -> dict[str, torch.Tensor]:
    """A checkpoint: trained and averaged weights, statistics, trackers."""
    return load_file(out / "checkpoints" / f"step_{step:08d}" / "learner.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows_of(out: Path) -> list[dict[str, str]]:
    """The rows of `labels.csv`."""
    with (out / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))
