"""Several `compare` commands on one folder: each run is trained once, and what a process leaves is taken over."""

import json
import re
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jobs import refused
from killing import contents, strays
from launched import DIGITS, Job

import debias_ssl.runs.comparison as module
from debias_ssl import compare
from debias_ssl.runs import planned
from debias_ssl.runs.comparison import train_in_processes, train_in_this_process
from debias_ssl.runs.planned import PlannedRun
from debias_ssl.runs.workers import FINISHED, IN_USE
from debias_ssl.system.files import LOCK
from debias_ssl.system.locking import joined, locked

SHORT = ["--config", str(DIGITS), "--steps", "2", "--log_every", "1", "--eval_every", "2", "--checkpoint_every", "2"]
SHORT += ["--batch_size", "4", "--unlabeled_ratio", "2"]


def planned_in(out: Path) -> list[PlannedRun]:
    """Runs a, b and c, of which a is the teacher of b."""
    return [
        PlannedRun(title=name, variant=name, seed=0, resolved={}, path=out / name, teacher=teacher)
        for name, teacher in (("a", None), ("b", out / "a"), ("c", None))
    ]


def finish(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").touch()


class Worker:
    """Stands for a process that trains runs."""

    def __init__(self, aside: Path, environment: dict[str, str]):
        self.said = ""

    def begin(self, resolved: dict[str, Any], out: Path) -> None:
        train(None, resolved, out)
        self.said = FINISHED

    def said_of_run(self) -> str | None:
        self.said, said = "", self.said
        return said or None

    def hints(self) -> list[str]:
        return []

    def has_ended(self) -> bool:
        return False

    def leave(self) -> None: ...

    def wait(self) -> None: ...


def train(config: Any, resolved: Any, out: Path, **flags: Any) -> None:
    """Stands for the training of a run."""
    with locked(out):
        finish(out)


@pytest.fixture(params=[1, 2])
def trained(request, monkeypatch):
    """Trains runs in this process, or by others."""
    monkeypatch.setattr(planned, "LOOKED_AT_EVERY", 0.01)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "config_from", lambda _: None)
    monkeypatch.setattr(module, "Worker", Worker)

    def trained(runs: list[PlannedRun], **flags: bool):
        return train_in_this_process(runs, **flags) if request.param == 1 else train_in_processes(runs, 2, **flags)

    return trained


def test_a_run_that_another_process_trains_is_returned_to_and_its_student_waits(trained, tmp_path: Path, capsys):
    with ExitStack() as other:
        other.enter_context(locked(tmp_path / "a"))
        runs = trained(planned_in(tmp_path))
        assert next(runs)[0].variant == "c"
        # The other process finishes it.
        finish(tmp_path / "a")
        assert next(runs)[0].variant == "a"
        assert [run.variant for run, _ in runs] == ["b"]
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.endswith(" ...")] == ["c ...", "b ..."]
    assert len([line for line in said if re.fullmatch(r"a: process \d+ on \S+ trains it", line)]) == 1


def test_a_run_that_its_process_has_left_is_taken_over(trained, tmp_path: Path, capsys):
    with ExitStack() as other:
        other.enter_context(locked(tmp_path / "a"))
        runs = trained(planned_in(tmp_path))
        assert next(runs)[0].variant == "c"
        other.close()
        assert [(run.variant, error) for run, error in runs] == [("a", None), ("b", None)]
    assert "\na ...\n" in capsys.readouterr().err


def test_who_does_not_wait_leaves_the_runs_of_others(trained, tmp_path: Path):
    with locked(tmp_path / "a"):
        assert [run.variant for run, _ in trained(planned_in(tmp_path), wait=False)] == ["c"]
    assert not (tmp_path / "b").exists()


def test_a_process_that_finds_its_run_in_use_is_given_another(trained, tmp_path: Path, monkeypatch):
    """Another process may take a run between the look at its lock and the begin of its training."""
    taken = iter([True])
    begin = Worker.begin

    def late(worker: Worker, resolved: dict[str, Any], out: Path) -> None:
        begin(worker, resolved, out)
        if next(taken, False):
            (out / "summary.json").unlink()
            worker.said = IN_USE

    def refused_once(config: Any, resolved: Any, out: Path, **flags: Any) -> None:
        with locked(out) if next(taken, False) else ExitStack():
            train(config, resolved, out)

    monkeypatch.setattr(Worker, "begin", late)
    monkeypatch.setattr(module, "train", refused_once)
    monkeypatch.setattr("debias_ssl.system.locking.PATIENCE", 0)
    assert sorted(run.variant for run, error in trained(planned_in(tmp_path)) if error is None) == ["a", "b", "c"]


@contextmanager
def other_process(out: Path):
    """Stands for another process that works in the folder."""
    with joined(out, work="a comparison") as member:
        member.end_first_turn()
        yield member


def run(out: Path, *flags: str) -> int:
    """The exit status of a comparison of two variants and the run on labels alone."""
    try:
        compare.main([*SHORT, "--methods", "FixMatch,DebiasPL", "--report=false", "--out", str(out), *flags])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def statuses(out: Path) -> list[str]:
    return [each["status"] for each in json.loads((out / "compare.json").read_text())["runs"]]


def test_a_command_beside_others_leaves_their_runs_and_ends_with_75_or_waits(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(planned, "LOOKED_AT_EVERY", 0.01)
    drawn: list[Path] = []
    monkeypatch.setattr(compare, "write_report", lambda runs, out: drawn.append(out))
    out = tmp_path / "a"
    with other_process(out), locked(out / "DebiasPL" / "seed-0"):
        assert run(out, "--wait=false", "--report=true") == 75
    said = capsys.readouterr()
    assert statuses(out) == ["finished", "finished", "pending"] and not drawn
    assert "runs that are left to other processes: 1; still at work: process " in said.err and "DebiasPL" in said.out
    # Nobody is at work any more: the same command is refused, as it may be meant for another folder.
    assert "pass --resume" in refused(
        compare.main, [*SHORT, "--methods", "FixMatch,DebiasPL", "--out", str(out)], capsys
    )
    with other_process(out):
        # Beside a process that is at work it joins.
        assert run(out, "--report=true") == 0
        assert statuses(out) == ["finished"] * 3 and not drawn
        message = refused(compare.main, [*SHORT, "--methods", "FixMatch", "--seeds=1", "--out", str(out)], capsys)
        assert "for other variants or seeds" in message
        message = refused(compare.main, [*SHORT, "--methods", "FixMatch", "--overwrite", "--out", str(out)], capsys)
        assert "leave out --overwrite" in message
        # Other jobs keep out.
        with pytest.raises(Exception, match="is in use by process"), locked(out):
            pass
    assert run(out, "--resume", "--report=true") == 0 and drawn == [out / "report.html"]
    assert not strays(out)


def test_what_another_process_finishes_is_in_the_table_and_what_failed_here_may_be_finished_there(
    tmp_path: Path, monkeypatch, capsys
):
    alone, out = tmp_path / "alone", tmp_path / "a"
    assert run(alone) == 0
    whole = module.train

    def elsewhere(config: Any, resolved: Any, path: Path, **flags: Any) -> None:
        """The first run fails here, and another process finishes it meanwhile."""
        if path.parent.name == "FixMatch":
            shutil.copytree(alone / "FixMatch", out / "FixMatch")
            raise RuntimeError("no memory here")
        whole(config, resolved, path, **flags)

    monkeypatch.setattr(module, "train", elsewhere)
    assert run(out) == 0 and contents(alone) == contents(out)


def test_locks_that_another_machine_does_not_see_are_told(tmp_path: Path, monkeypatch, capsys):
    whole = module.train

    def seen_as_dead(config: Any, resolved: Any, path: Path, **flags: Any) -> None:
        whole(config, resolved, path, **flags)
        for lock in (tmp_path / "a").glob(f"*{LOCK}"):
            lock.unlink()

    monkeypatch.setattr(module, "train", seen_as_dead)
    assert run(tmp_path / "a") == 1
    assert "the file system does not share locks between machines (see docs/scale.md" in capsys.readouterr().err


LONG = ["--config", str(DIGITS), "--steps", "30", "--log_every", "3", "--eval_every", "30", "--checkpoint_every", "3"]
LONG += ["--batch_size", "8", "--unlabeled_ratio", "2", "--seeds", "0,1", "--report=false"]
VARIANTS = """
DebiasPL: {method: DebiasPL}
taught: {method: Distillation, teacher: "variant:DebiasPL"}
"""


def owners(out: Path) -> dict[Path, str]:
    """The processes that train runs, by the folders of these."""
    return {lock.parent: lock.read_text().split()[1] for lock in out.glob(f"*/seed-*/{LOCK}") if lock.read_text()}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_three_commands_of_which_one_is_killed_do_what_one_does(jobs: str, tmp_path: Path):
    out = tmp_path / "a"
    (tmp_path / "variants.yaml").write_text(VARIANTS)
    flags = [*LONG, "--variants", str(tmp_path / "variants.yaml"), "--out", str(out)]
    assert Job("compare", flags, tmp_path / "alone.log", OMP_NUM_THREADS="1").wait() == 0
    expected = contents(out)
    shutil.rmtree(out)
    flags += ["--jobs", jobs]
    started = [Job("compare", flags, tmp_path / f"{i}.log", OMP_NUM_THREADS="1") for i in range(3)]
    killed, others = started[0], started[1:]
    held: list[Path] = []
    while not held:
        assert all(job.is_running() for job in started), [job.log.read_text() for job in started]
        mine = [path for path, owner in owners(out).items() if owner == str(killed.process.pid) or jobs == "2"]
        held = [path for path in mine if (path / "checkpoints" / "step_00000003").exists()]
        time.sleep(0.005)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert [job.wait() for job in others] == [0, 0], [job.log.read_text() for job in others]
    logs = [job.log.read_text() for job in started]
    if jobs == "1":
        begun = [line for log in logs for line in log.splitlines() if " images a step" in line]
        assert ["resumed at step" in line for line in begun].count(True) == 1 and len(begun) == 7
    tables = [log[log.rindex("\nvariant ") : log.rindex(str(out) + "\n")] for log in logs[1:]]
    assert tables[0] == tables[1]
    assert contents(out) == expected and not strays(out)
