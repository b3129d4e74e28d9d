"""Two jobs never write to one folder, and a job that was killed keeps nobody out."""

import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import refused
from launched import DIGITS, SHORT

from debias_ssl import compare, train
from debias_ssl.finetune.__main__ import main as finetune
from debias_ssl.system.errors import InputError, InUseError, StoppedError
from debias_ssl.system.files import LOCK, UNFINISHED
from debias_ssl.system.locking import joined, locked

HOLDER = """
import sys, time
from pathlib import Path
from debias_ssl.system.locking import joined, locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
# A process that a job has forked, as those that decode images, and that lives on for a moment.
FORKER = HOLDER.replace(
    'print("held", flush=True)',
    "import os\n    if os.fork() == 0:\n        time.sleep(2); os._exit(0)\n    print('held', flush=True)",
)


@pytest.fixture
def holder(tmp_path: Path):
    processes = []

    def start(code: str = HOLDER) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_that_is_in_use_is_refused_with_its_owner(tmp_path, holder, capsys):
    process = holder()
    owner = f"in use by process {process.pid} on {platform.node()}: "
    with pytest.raises(InputError, match=owner), locked(tmp_path / "a"):
        pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.yaml").write_text(DIGITS.read_text())
    for job, flags in (
        (train.main, ["--config", str(DIGITS), *SHORT]),
        (compare.main, ["--config", str(DIGITS), *SHORT, "--methods", "FixMatch,DebiasPL"]),
        (finetune, ["--run", str(tmp_path / "b")]),
    ):
        error = refused(job, [*flags, "--out", str(tmp_path / "a")], capsys)
        assert owner in error and len(error.splitlines()) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == [LOCK]


@pytest.mark.parametrize(
    "code", [HOLDER, pytest.param(FORKER, marks=pytest.mark.skipif(os.name == "nt", reason="no fork"))]
)
def test_the_lock_of_a_process_that_was_killed_is_taken_over(code, tmp_path, holder):
    process = holder(code)
    process.kill()
    process.wait()
    with locked(tmp_path / "a"):
        assert f"process {os.getpid()} on" in (tmp_path / "a" / LOCK).read_text()


def test_a_lock_leaves_nothing_behind(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError), locked(tmp_path / "a" / "b"):
        raise InputError("found only now")
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_lock_of_another_host_or_of_nobody_known_is_not_waited_for(tmp_path, holder):
    process = holder()
    for text in ("process 1 on elsewhere", "", "garbage \0"):
        (tmp_path / "a" / LOCK).write_text(text)
        started = time.monotonic()
        with pytest.raises(InputError, match="is in use by"), locked(tmp_path / "a", patience=600):
            pass
        assert time.monotonic() - started < 300 and process.poll() is None


JOINER = HOLDER.replace("locked(Path(sys.argv[1])):", 'joined(Path(sys.argv[1]), work="a") as member:').replace(
    "import locked", "import joined"
)
# Lets others in.
JOINER = JOINER.replace('    print("held"', '    member.end_first_turn()\n    print("held"')


def test_processes_share_a_folder_for_the_same_work_and_keep_others_out(tmp_path, holder):
    folder = tmp_path / "a"
    process = holder(JOINER)
    begun = folder / f".x{UNFINISHED}"
    begun.touch()
    with joined(folder, work="a") as member:
        member.end_first_turn()
        (other,) = member.others()
        assert other == f"process {process.pid} on {platform.node()}"
        member.check()
        with member.turn():
            assert begun.exists()
    for enter in (lambda: joined(folder, work="b"), lambda: locked(folder)):
        with pytest.raises(InUseError, match=f"in use by process {process.pid} on"), enter():
            pass
    process.kill()
    process.wait()
    # What it had begun goes with it.
    with locked(folder):
        assert not begun.exists() and [path.name for path in folder.iterdir()] == [LOCK]


def test_a_process_waits_for_its_turn_and_says_so(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.setattr("debias_ssl.system.locking.TOLD_AFTER", 0.01)
    process = holder(JOINER.replace("    member.end_first_turn()\n", ""))
    threading.Timer(0.5, process.kill).start()
    with joined(tmp_path / "a", work="a") as member:
        assert not member.others() and process.wait() != 0
    assert f"waiting for process {process.pid} on" in capsys.readouterr().err
    assert not [*(tmp_path / "a").iterdir()]


def test_a_process_whose_lock_was_removed_is_told(tmp_path):
    with joined(tmp_path / "a") as member:
        member.end_first_turn()
        member.lock.unlink()
        with pytest.raises(StoppedError, match="does not share locks between machines"):
            member.check()


def test_the_first_one_in_a_folder_removes_the_locks_that_killed_processes_have_left(tmp_path):
    left = tmp_path / f".shard_00002.npy{LOCK}"
    left.write_text(f"process 999999999 on {platform.node()}")
    with joined(tmp_path):
        assert not left.exists()
