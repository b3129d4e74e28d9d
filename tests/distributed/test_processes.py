"""An error of one process ends all of them, with one message."""

import signal
import time

import numpy as np
import pytest
from launched import DIGITS, SHORT, Launched
from PIL import Image

from debias_ssl.system.locking import locked

# Far less than the half hour for which processes wait for each other.
SECONDS = 120


def told(log: str) -> list[str]:
    assert "Traceback" not in log and "frame #" not in log, log
    return [line for line in log.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("rank", [0, 1])
def test_before_the_processes_have_met(rank, tmp_path):
    def flags(each: int) -> list[str]:
        return ["--batch_size", "0"] if each == rank else []

    launched = Launched(2, tmp_path / "a", of_rank=flags)
    assert launched.statuses(SECONDS) == [2, 2], launched.log.read_text()
    assert told(launched.log.read_text()) == ["error: batch_size is 0, must be at least 1"]
    assert not (tmp_path / "a" / "config.yaml").exists()


def test_when_all_processes_find_the_same(tmp_path):
    launched = Launched(3, tmp_path / "a", "--model.name", "resnet1")
    assert launched.statuses(SECONDS) == [2, 2, 2]
    (message,) = told(launched.log.read_text())
    assert "resnet1" in message


def test_when_the_folder_is_in_use(tmp_path):
    with locked(tmp_path / "a"):
        launched = Launched(2, tmp_path / "a")
        assert launched.statuses(SECONDS) == [2, 2]
    (message,) = told(launched.log.read_text())
    assert "is in use by process" in message


def test_an_image_that_is_gone_in_the_middle_of_a_run(tmp_path):
    random = np.random.default_rng(0)
    for part in ("labeled", "test"):
        for name in ("ant", "bee"):
            for i in range(4):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    data = [f"--data.{part}={tmp_path / part}" for part in ("labeled", "test")]
    data += ["--data.name=folder", "--data.input=streaming", "--data.workers=0", "--data.labels_per_class=2"]
    base = ["--config", str(DIGITS), *SHORT, "--steps", "4000", "--batch_size", "2", "--unlabeled_ratio", "1", *data]
    launched = Launched(2, tmp_path / "a", base=base)
    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "a").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    gone = tmp_path / "labeled" / "ant" / "1.png"
    gone.unlink()
    assert launched.statuses(SECONDS) == [2, 2], launched.log.read_text()
    (message,) = told(launched.log.read_text())
    assert str(gone) in message


def test_when_another_process_is_killed(tmp_path):
    launched = Launched(2, tmp_path / "a", "--steps", "100000")
    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "a").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    launched.processes[1].kill()
    assert launched.statuses(SECONDS) == [1, -signal.SIGKILL], launched.log.read_text()
    (message,) = told(launched.log.read_text())
    assert "another process is gone" in message and "--resume" in message
