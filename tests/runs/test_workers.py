"""Processes that train several runs: a run that fails or is killed loses only itself."""

import os
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jobs import settings_of
from launched import DIGITS, SHORT

import debias_ssl.runs.workers as module
from debias_ssl.runs.comparison import PlannedRun, train_in_processes
from debias_ssl.runs.run import train
from debias_ssl.runs.workers import Worker

METHODS = """
import os, signal

from debias_ssl.methods import FixMatch


class Killed(FixMatch):
    def forward(self, views):
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(FixMatch):
    def forward(self, views):
        raise RuntimeError("it broke")


class Talking(FixMatch):
    def forward(self, views):
        print("hello")
        return super().forward(views)


class Warned(FixMatch):
    def forward(self, views):
        print("10%\\rwarning: slow", flush=True)
        return super().forward(views)
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that are started; they find the module `faulty`."""
    (tmp_path / "faulty.py").write_text(METHODS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(tmp_path))
    popen, processes = subprocess.Popen, []

    def start(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
        processes.append(popen(command, **streams))
        return processes[-1]

    monkeypatch.setattr(module.subprocess, "Popen", start)
    return processes


def planned(out: Path, **methods: str) -> list[PlannedRun]:
    resolved = {
        name: settings_of("--config", str(DIGITS), *SHORT, "--method", method)[1] for name, method in methods.items()
    }
    return [
        PlannedRun(title=name, variant=name, seed=0, resolved=settings, path=out / name)
        for name, settings in resolved.items()
    ]


def test_a_process_trains_one_run_after_the_other_and_ends_with_one_that_fails(started, tmp_path: Path):
    methods = {"a": "FixMatch", "b": "faulty.Killed", "c": "faulty.Talking", "d": "faulty.Broken", "e": "FixMatch"}
    runs = planned(tmp_path, **methods)
    ended = {run.variant: error for run, error in train_in_processes(runs, 1)}
    killed = f"killed by signal {signal.SIGKILL.value}"
    assert ended == {"a": None, "b": killed, "c": None, "d": "RuntimeError: it broke", "e": None}
    assert len(started) == 3 and [process.returncode for process in started] == [-signal.SIGKILL, 1, 0]
    settings = settings_of("--config", str(DIGITS), *SHORT, "--method", "FixMatch")
    train(*settings, tmp_path / "alone", quiet=True)
    names = ("model.safetensors", "predictions/test_ema.npy", "split.json")
    for name in names:
        assert len({(tmp_path / run / name).read_bytes() for run in ("a", "c", "e", "alone")}) == 1, name


def test_a_process_that_is_asked_to_stop_saves_its_run_and_those_that_wait_leave(started, tmp_path: Path):
    long, short = planned(tmp_path, long="FixMatch", short="FixMatch")
    long.resolved["steps"] = long.resolved["eval_every"] = 10**6
    workers = train_in_processes([short, long], 2)
    assert next(workers) == (short, None)
    while not (tmp_path / "long" / "metrics.jsonl").exists() or not (tmp_path / "long" / "checkpoints").exists():
        assert started[1].poll() is None
    workers.close()
    assert [process.returncode for process in started] == [0, 128 + signal.SIGTERM]
    assert not (tmp_path / "long" / "summary.json").exists()


def test_a_run_is_given_to_a_process_that_died_meanwhile(tmp_path: Path, monkeypatch):
    popen = subprocess.Popen
    command = [sys.executable, "-c", "import sys; sys.exit('error: no more')"]
    monkeypatch.setattr(module.subprocess, "Popen", lambda _, **streams: popen(command, **streams))
    worker = Worker(tmp_path / "log", {})
    worker.process.wait()
    (run,) = planned(tmp_path, a="FixMatch")
    worker.begin(run.resolved, run.path)
    assert worker.said_of_run() is None and worker.has_ended() and worker.error() == "ended with status 1"


def test_notes_and_warnings_of_runs_are_told_once(started, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = planned(tmp_path, a="faulty.Warned", b="faulty.Warned")
    runs = [replace(run, resolved=deepcopy(run.resolved)) for run in runs]
    for run in runs:
        run.resolved["model"]["batch_norm_momentum"] = 0.001
    assert [error for _, error in train_in_processes(runs, 2)] == [None, None]
    said = capsys.readouterr().err
    assert said.count(": warning: slow\n") == 1 and said.count(": note: batch norms average") == 1
    assert "10%" not in said
