"""Jobs are killed at random moments and started again: what they end with has the same bytes as without.

The moments are drawn from a seed, in the time that the whole job takes; what a job does at one is the clock's. Every
fourth kill of a run waits until a checkpoint is being written.
"""

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from killing import contents
from launched import CONTEXT, DIGITS, Job, Launched
from small_clip import paint_images, save_clip

pytestmark = pytest.mark.slow

TRAINING = ["--config", str(DIGITS), "--steps", "24", "--log_every", "3", "--eval_every", "12"]
TRAINING += ["--checkpoint_every", "3", "--data.validation_per_class", "2", "--batch_size", "8"]
TRAINING += ["--unlabeled_ratio", "2"]


class Harness:
    """Kills one kind of job, and counts how often."""

    def __init__(self, job: str, out: Path, seed: int):
        self.job, self.out, self.log = job, out, out.with_suffix(".log")
        self.random = np.random.default_rng(seed)
        self.kills = self.kills_at_moment = self.restarts = 0
        # The first process also starts the one that is forked, whose imports would count as the job's time.
        warm = CONTEXT.Process(target=int)
        warm.start()
        warm.join()

    def start(self, flags: Sequence[str]) -> Job:
        self.log.unlink(missing_ok=True)
        return Job(self.job, flags, self.log)

    def survives(
        self,
        flags: Sequence[str],
        again: Sequence[str],
        kills: int,
        moment: Callable[[], bool] | None = None,
    ) -> None:
        """Lets a job end, and once more with so many kills in between; both leave the same.

        Args:
            flags: of the job.
            again: the flags with which it is started after a kill, as is documented of the job.
            kills: how many.
            moment: what every fourth kill waits for.
        """
        started = time.monotonic()
        assert self.start(flags).wait(600) == 0, self.log.read_text()
        seconds, expected = time.monotonic() - started, contents(self.out)
        shutil.rmtree(self.out)
        further: list[str] = []
        while self.kills < kills:
            job, started = self.start([*flags, *further]), time.monotonic()
            wait = self.random.uniform(0, seconds)
            waits_for = moment if self.kills % 4 == 3 else None
            while job.is_running():
                passed = time.monotonic() - started
                if passed > wait and (waits_for is None or waits_for()):
                    job.send(signal.SIGKILL)
                    break
                time.sleep(0.0005)
            status = job.wait()
            if status == 2:
                # The one before was killed when it had written everything.
                assert "holds" in self.log.read_text()
                status = 0
            assert status in (0, -signal.SIGKILL), self.log.read_text()
            self.kills += status != 0
            self.kills_at_moment += status != 0 and waits_for is not None
            further = [*again]
            if status == 0:
                # It ended before it was killed, and the next one begins anew.
                assert contents(self.out) == expected
                shutil.rmtree(self.out)
                further = []
                self.restarts += 1
        assert self.start([*flags, *again]).wait(600) in (0, 2), self.log.read_text()
        assert contents(self.out) == expected
        print(f"\n{self.job}: {self.kills} kills, {self.kills_at_moment} of them at the moment that was waited for")


def test_training_killed_and_resumed(tmp_path: Path):
    def saving() -> bool:
        return any((tmp_path / "a" / "checkpoints").glob(".step_*.tmp"))

    flags = [*TRAINING, "--out", str(tmp_path / "a")]
    Harness("train", tmp_path / "a", 0).survives(flags, ["--resume"], 25, saving)


def test_streaming_from_files_killed_and_resumed(tmp_path: Path):
    """With processes that decode, which hold on to the folder's lock for a moment."""
    for part, num in (("labeled", 12), ("test", 4)):
        paint_images(tmp_path / part, num=num)
    flags = ["--config", str(DIGITS), "--steps", "24", "--checkpoint_every", "3", "--log_every", "3"]
    flags += [f"--data.{part}={tmp_path / part}" for part in ("labeled", "test")]
    flags += ["--data.name=folder", "--data.image_size=8", "--data.labels_per_class=2", "--data.input=streaming"]
    flags += ["--data.workers=1", "--batch_size", "2", "--unlabeled_ratio", "2", "--out", str(tmp_path / "a")]
    Harness("train", tmp_path / "a", 1).survives(flags, ["--resume"], 5)


def test_a_comparison_killed_and_resumed(tmp_path: Path):
    flags = [*TRAINING, "--steps", "12", "--methods", "FixMatch,DebiasPL", "--seeds", "0", "--report", "false"]
    flags += ["--floor", "false"]
    flags += ["--out", str(tmp_path / "a")]
    Harness("compare", tmp_path / "a", 2).survives(flags, ["--resume"], 10)


def test_labeling_killed_and_started_again(tmp_path: Path):
    paint_images(tmp_path / "images", num=40)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    flags = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model", model]
    flags += ["--workers", "0", "--precision", "fp32", "--batch_size", "4", "--out", str(tmp_path / "a")]
    Harness("label", tmp_path / "a", 3).survives(flags, [], 20)


def test_stage_two_killed_and_started_again(tmp_path: Path):
    train = Job("train", [*TRAINING, "--steps", "12", "--out", str(tmp_path / "run")], tmp_path / "run.log")
    assert train.wait(600) == 0, (tmp_path / "run.log").read_text()
    # Its facts have the seconds that it took, and nothing else that differs.
    flags = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "a")]
    Harness("finetune.__main__", tmp_path / "a", 4).survives(flags, [], 10)


def test_two_processes_killed_and_resumed(tmp_path: Path):
    base = [*TRAINING, "--steps", "24"]
    Launched(2, tmp_path / "a", base=base).finish()
    random = np.random.default_rng(5)
    flags: list[str] = []
    for kill in range(3):
        launched = Launched(2, tmp_path / "b", *flags, base=base)
        deadline = time.monotonic() + random.uniform(1, 6)
        while time.monotonic() < deadline and all(each.is_running() for each in launched.processes):
            time.sleep(0.01)
        # The other one is killed as its launcher would.
        launched.processes[kill % 2].kill()
        launched.kill()
        flags = ["--resume"]
    Launched(2, tmp_path / "b", "--resume", base=base).finish()
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
