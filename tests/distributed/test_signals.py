"""SIGTERM and SIGINT: a run finishes its step, keeps where it is, and goes on from there."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import run, same, weights
from launched import DIGITS, SHORT, Launched

import debias_ssl.runs.run as run_module
from debias_ssl import compare
from debias_ssl.distributed.signals import SIGNALS, asked_to_stop, ignore_signals
from debias_ssl.system.files import LOCK
from debias_ssl.training.journal import read_journal

NAMED = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


def signal_after(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the process send itself a signal once, in the middle of a step."""
    after_step = run_module.Learner.after_step

    def signaling(self, done: int) -> None:
        if done == step:
            os.kill(os.getpid(), number)
        after_step(self, done)

    monkeypatch.setattr(run_module.Learner, "after_step", signaling)


@pytest.fixture(autouse=True, scope="module")
def heeded() -> Iterator[None]:
    """Ctrl-C counts here even where a shell has put the tests in the background, and so has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a")


@NAMED
@pytest.mark.parametrize("step", [4, 5])
def test_a_run_keeps_where_it_is_and_goes_on(number, step, whole, tmp_path, monkeypatch, capsys):
    """Step 5 (counted from 0) is one that is evaluated after, and step 4 one that nothing is done after."""
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        signal_after(step, number, patch)
        with pytest.raises(SystemExit) as exit_:
            run(tmp_path / "b")
    assert exit_.value.code == 128 + number
    told = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert told == [f"{number.name}: stopped after step {step + 1}; --resume goes on from there"]
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()][-1:] != []
    assert (tmp_path / "b" / "checkpoints" / f"step_{step + 1:08d}").is_dir()
    run(tmp_path / "b", "--resume")
    assert same(weights(whole), weights(tmp_path / "b"))
    # Its own line closes the interval; all evaluations are there once.
    lines = {name: read_journal(out / "metrics.jsonl") for name, out in (("a", whole), ("b", tmp_path / "b"))}
    evaluations = {name: [line for line in found if "ema" in line] for name, found in lines.items()}
    assert evaluations["a"] == evaluations["b"]
    assert step + 1 in [line["step"] for line in lines["b"] if "loss" in line]


def test_a_signal_in_the_last_step_leaves_a_finished_run(whole, tmp_path, monkeypatch, capsys):
    signal_after(11, signal.SIGTERM, monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "b")
    assert exit_.value.code == 143 and "is finished" in capsys.readouterr().err
    assert (tmp_path / "b" / "summary.json").exists() and same(weights(whole), weights(tmp_path / "b"))


def test_a_comparison_stops_with_its_run_and_goes_on(tmp_path, monkeypatch, capsys):
    flags = ["--config", str(DIGITS), *SHORT, "--out", str(tmp_path / "c"), "--methods", "FixMatch,DebiasPL"]
    flags += ["--seeds", "0", "--report", "false"]
    with monkeypatch.context() as patch:
        signal_after(4, signal.SIGTERM, patch)
        with pytest.raises(SystemExit) as exit_:
            compare.main(flags)
    assert exit_.value.code == 143 and "SIGTERM: stopped after step 5" in capsys.readouterr().err
    assert not (tmp_path / "c" / "DebiasPL").exists()
    compare.main([*flags, "--resume"])
    assert all((tmp_path / "c" / name / "seed-0" / "summary.json").exists() for name in ("FixMatch", "DebiasPL"))


def test_processes_of_a_comparison_are_stopped_too(tmp_path, monkeypatch, capsys):
    flags = ["--config", str(DIGITS), *SHORT, "--steps", "4000", "--out", str(tmp_path / "c"), "--jobs", "2"]
    flags += ["--methods", "FixMatch,DebiasPL", "--seeds", "0", "--floor", "false"]
    folders = [tmp_path / "c" / name / "seed-0" for name in ("FixMatch", "DebiasPL")]

    def signal_ourselves() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(list(folder.glob("checkpoints/step*")) for folder in folders):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    thread = threading.Thread(target=signal_ourselves)
    thread.start()
    with pytest.raises(SystemExit) as exit_:
        compare.main(flags)
    thread.join()
    assert exit_.value.code == 143 and "SIGTERM: stopped" in capsys.readouterr().err
    for folder in folders:
        last = read_journal(folder / "metrics.jsonl")[-1]["step"]
        assert last < 4000 and (folder / "checkpoints" / f"step_{last:08d}").is_dir()
        assert not (folder / LOCK).exists()


def test_processes_stop_after_the_same_step_whichever_is_asked(tmp_path):
    launched = Launched(2, tmp_path / "a", "--steps", "4000")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "a").glob("checkpoints/step_*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    launched.processes[1].send(signal.SIGTERM)
    assert launched.statuses() == [143, 143], launched.log.read_text()
    log = launched.log.read_text()
    assert log.count("SIGTERM: stopped after step") == 1 and "Traceback" not in log
    last = read_journal(tmp_path / "a" / "metrics.jsonl")[-1]["step"]
    assert f"stopped after step {last};" in log
    assert (tmp_path / "a" / "checkpoints" / f"step_{last:08d}").is_dir()


def test_a_second_ctrl_c_does_not_wait_and_a_second_sigterm_does():
    with asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt), asked_to_stop() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.number == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_that_are_ignored_stay_ignored():
    """As under nohup, and for jobs that a shell has put in the background."""
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        ignore_signals(0)
        with asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGINT)
        assert asked.number == 0
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_a_thread_that_is_not_the_main_one_leaves_signals_alone():
    found = []

    def look() -> None:
        with asked_to_stop() as asked:
            found.append(asked.number)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [0]
