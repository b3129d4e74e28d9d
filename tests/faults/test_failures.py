"""A disk that is full, a worker that dies, data that change under a run, a loss that is not finite."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from launched import DIGITS, SHORT, Job
from small_clip import paint_images

import debias_ssl.runs.run as run_module
import debias_ssl.training.loop as loop_module
from debias_ssl import train

TRAINING = ["--config", str(DIGITS), *SHORT, "--steps", "24"]


def streaming(tmp_path: Path, steps: int) -> list[str]:
    for part, num in (("labeled", 12), ("test", 4)):
        paint_images(tmp_path / part, num=num)
    flags = ["--config", str(DIGITS), "--steps", str(steps), "--checkpoint_every", "3", "--log_every", "3"]
    flags += [f"--data.{part}={tmp_path / part}" for part in ("labeled", "test")]
    flags += ["--data.name=folder", "--data.image_size=8", "--data.labels_per_class=2", "--data.input=streaming"]
    return [*flags, "--data.workers=1", "--batch_size", "2", "--unlabeled_ratio", "2", "--out", str(tmp_path / "a")]


def wait_for_checkpoint(out: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not list(out.glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="no limits of this kind")
def test_a_limit_on_files_is_told_and_the_last_checkpoint_loads(tmp_path: Path, capsys):
    """As where a disk is full: a write fails in the middle."""
    import resource

    out = tmp_path / "a"
    train.main([*TRAINING, "--steps", "8", "--out", str(tmp_path / "probe")])
    largest = max(path.stat().st_size for path in (tmp_path / "probe").rglob("*") if path.is_file())
    save, limits = loop_module.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(folder, step, *arguments, **settings):
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, limits[1]))
        return save(folder, step, *arguments, **settings)

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    loop_module.save_checkpoint = limited
    try:
        with pytest.raises(SystemExit) as exit_:
            train.main([*TRAINING, "--out", str(out)])
    finally:
        loop_module.save_checkpoint = save
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    said = capsys.readouterr().err
    error = said[said.index("error: cannot write") :]
    assert exit_.value.code == 1 and str(out / "checkpoints") in error and len(error.splitlines()) == 1, error
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]
    train.main([*TRAINING, "--out", str(out), "--resume"])
    assert (out / "summary.json").exists()


def test_a_folder_that_is_taken_away_is_told(tmp_path: Path, monkeypatch, capsys):
    import shutil

    after_step = run_module.Learner.after_step

    def taking(self, step: int) -> None:
        if step == 5:
            shutil.rmtree(tmp_path / "a")
        after_step(self, step)

    monkeypatch.setattr(run_module.Learner, "after_step", taking)
    with pytest.raises(SystemExit) as exit_:
        train.main([*TRAINING, "--out", str(tmp_path / "a")])
    said = capsys.readouterr().err
    error = said[said.index("error: cannot write") :]
    assert exit_.value.code == 1 and "No such file" in error and str(tmp_path / "a") in error


def test_a_loss_made_infinite_stops_before_its_checkpoint(tmp_path: Path, monkeypatch, capsys):
    forward = run_module.Learner.forward

    def spoiled(self, batch, progress):
        result = forward(self, batch, progress)
        if round(progress * 24) == 6:
            result.losses["labeled"] = result.losses["labeled"] * torch.inf
        return result

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Learner, "forward", spoiled)
        with pytest.raises(SystemExit) as exit_:
            train.main([*TRAINING, "--out", str(tmp_path / "a")])
    error = capsys.readouterr().err.rpartition("error: ")[2]
    assert exit_.value.code == 1 and "not finite at step 8" in error and "step_00000004" in error
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step_00000004"]
    train.main([*TRAINING, "--out", str(tmp_path / "a"), "--resume"])


@pytest.mark.slow
def test_a_process_that_decodes_and_dies_is_told(tmp_path: Path):
    job = Job("train", streaming(tmp_path, 100_000), tmp_path / "a.log")
    wait_for_checkpoint(tmp_path / "a")
    (worker,) = psutil.Process(job.process.pid).children()
    worker.kill()
    assert job.wait(120) == 1
    error = (tmp_path / "a.log").read_text().rpartition("error: ")[2]
    assert "a process that decodes images has died" in error and len(error.splitlines()) == 1, error


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_file_that_changes_under_a_run_is_named(content, tmp_path: Path):
    job = Job("train", streaming(tmp_path, 100_000), tmp_path / "a.log")
    wait_for_checkpoint(tmp_path / "a")
    for path in (tmp_path / "labeled").rglob("*.png"):
        path.unlink() if content is None else path.write_bytes(content)
    assert job.wait(120) == 2
    error = (tmp_path / "a.log").read_text().rpartition("error: ")[2]
    assert str(tmp_path / "labeled") in error and len(error.splitlines()) <= 2, error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_of_a_run_with_workers(number, tmp_path: Path):
    """As a terminal and a scheduler send them."""
    flags = streaming(tmp_path, 100_000)
    job = Job("train", flags, tmp_path / "a.log")
    wait_for_checkpoint(tmp_path / "a")
    for process in (*psutil.Process(job.process.pid).children(), psutil.Process(job.process.pid)):
        process.send_signal(number)
    assert job.wait(120) == 128 + number, (tmp_path / "a.log").read_text()
    log = (tmp_path / "a.log").read_text()
    assert log.count("stopped after step") == 1 and "Traceback" not in log
