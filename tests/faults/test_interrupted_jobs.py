"""Every job that writes is killed, stopped or out of room at moments of its work with files, or meets another writer.

Nothing is lost, the same command goes on to what the unbroken job gives, and nothing else stays.
"""

import importlib
import io
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from killing import contents, killed_after, num_steps, on_a_full_disk_after, strays, terminated_at
from launched import DIGITS, Job
from small_clip import paint_images, save_clip

from debias_ssl import evaluate, train
from debias_ssl.features import embedding
from debias_ssl.reporting import comparison_page, page, run_page
from debias_ssl.system.locking import locked, locked_file

# Functions of the package have the names of these modules.
debias, label = (importlib.import_module(f"debias_ssl.{name}") for name in ("debias", "label"))

SHORT = f"--config {DIGITS} --steps 2 --log_every 1 --eval_every 2 --checkpoint_every 1 --batch_size 4"
SHORT += " --unlabeled_ratio 1"


@dataclass(frozen=True)
class Case:
    """A job that writes; a second start of one that has ended is refused, unless it goes on by --resume."""

    module: str
    arguments: str
    out: str
    further: tuple[str, ...] = ()
    """Files beside `out`."""

    @property
    def main(self) -> Callable[[list[str]], None]:
        return importlib.import_module(f"debias_ssl.{self.module}").main

    @property
    def flags(self) -> list[str]:
        return self.arguments.split()

    def run(self) -> None:
        self.main(self.flags)

    def written(self) -> dict[str, object]:
        places = [Path(name) for name in (self.out, *self.further)]
        return {f"{place}/{name}": found for place in places for name, found in contents(place).items()}

    def remove(self) -> None:
        # The next start finds nothing in the user's cache, as the first one did.
        for name in (self.out, *self.further, os.environ["XDG_CACHE_HOME"]):
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink(missing_ok=True)


CLIP = "--images images --classes classes.txt --model local-dir:clip --workers 0 --precision fp32 --batch_size 2"
MATRIX = "--predictions logits.npy --truth truth.npy"
CASES = {
    "label": Case("label", f"{CLIP} --out o", "o"),
    "debias": Case("debias", f"{MATRIX} --out o", "o"),
    "predict": Case("predict", "--run v --images images --workers 0 --batch_size 3 --out o.csv", "o.csv"),
    "export": Case("export", "--run v --format torch --out o.pt2", "o.pt2"),
    "evaluate": Case("evaluate", f"{MATRIX} --calibrate --folds 2 --out o.json --report o.html", "o.json", ("o.html",)),
    "finetune": Case("finetune.__main__", "--run v --method LogitAdjustment --out o", "o"),
    "distill": Case("distill", f"{SHORT} --teacher v --out o --resume", "o"),
    "export-labels": Case("export_labels", "given.csv --to imagefolder --root images --files copy --out o", "o"),
    "import-labels": Case("import_labels", "given.csv --corrections ann.csv --out o", "o"),
    "report": Case("report", "v --out o.html", "o.html"),
    "compare": Case("compare", f"{SHORT} --methods FixMatch --seeds 0 --out o --resume", "o"),
    "data split": Case("data.__main__", f"split {SHORT} --out o.json", "o.json"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run (v), a matrix with its truth, images and a model that labels them."""
    place = tmp_path_factory.mktemp("jobs")
    train.main([*SHORT.split(), "--data.validation_per_class", "2", "--out", str(place / "v")])
    paint_images(place / "images", num=7)
    (place / "classes.txt").write_text("ant\nbee\n")
    save_clip(place / "clip")
    names = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.*"))
    (place / "given.csv").write_text(
        "path,label\n" + "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names))
    )
    (place / "ann.csv").write_text(f"path,label\n{names[0]},b\n")
    np.save(place / "logits.npy", np.random.default_rng(0).normal(size=(40, 4)))
    np.save(place / "truth.npy", np.arange(40) % 4)
    return place


@pytest.fixture
def place(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, where jobs start; features are in shards of two images, and pages are not drawn."""
    monkeypatch.chdir(whole)
    monkeypatch.setenv("XDG_CACHE_HOME", str(whole.with_name(f"{whole.name}_cache")))
    monkeypatch.setattr(embedding, "SHARD_SIZE", 2)
    for module in (debias, label, evaluate):
        monkeypatch.setattr(module, "_page", lambda *_: "a page")
    for module, name in ((run_page, "run_page"), (comparison_page, "comparison_page"), (page, "render")):
        monkeypatch.setattr(module, name, lambda *_: "a page")
    for path in whole.glob("*o*"):
        if path.name in ("o", "log") or path.name.startswith(("o.", ".o.")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return whole


@dataclass(frozen=True)
class Unbroken:
    """What a job does that nothing disturbs."""

    written: dict[str, object]
    steps: int
    """With files."""
    growing: int
    """Of these, those that take room."""


@pytest.fixture(scope="module")
def done() -> dict[str, Unbroken]:
    return {}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, place: Path) -> Case:
    return CASES[request.param]


@pytest.fixture
def unbroken(case: Case, done: dict[str, Unbroken]) -> Unbroken:
    if case.module not in done:
        steps, growing = num_steps(case.run)
        done[case.module] = Unbroken(written=case.written(), steps=steps, growing=growing)
        assert strays(Path()) == []
        case.remove()
    return done[case.module]


def moments(number: int, steps: int) -> list[int]:
    """So many of these steps, the last one among them."""
    return np.unique(np.linspace(1, steps - 1, number).round().astype(int)).tolist()


def goes_on(case: Case, unbroken: Unbroken, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command gives what the unbroken job gives, or says how where this is there; nothing else stays."""
    before = case.written() if Path(case.out).exists() else {}
    capsys.readouterr()
    try:
        case.run()
    except SystemExit as stopped:
        said = capsys.readouterr().err
        # All of it is there, or of two files one.
        assert before and before.items() <= unbroken.written.items(), said
        assert stopped.code == 2 and "pass --overwrite to replace" in said
        check_flags(case, said)
        if before != unbroken.written:
            case.main([*case.flags, "--overwrite"])
    assert case.written() == unbroken.written
    assert strays(Path()) == []
    case.remove()


@cache
def flags_of(module: str) -> set[str]:
    """The flags that a job's help lists."""
    shown = io.StringIO()
    arguments = ["split", "--help"] if module == "data.__main__" else ["--help"]
    with redirect_stdout(shown), pytest.raises(SystemExit):
        importlib.import_module(f"debias_ssl.{module}").main(arguments)
    return set(re.findall(r"--[a-z]\w*", shown.getvalue()))


def check_flags(case: Case, said: str) -> None:
    """A message names only flags that the job which says it has."""
    assert set(re.findall(r"--[a-z]\w*", said)) <= flags_of(case.module), said


def kept() -> list[str]:
    """What stays of a job that has ended before its time: of `predict`, the rows so far."""
    return [name for name in strays(Path()) if name != ".o.csv.parts"]


NUMBER = [2, pytest.param(12, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", NUMBER)
def test_a_job_that_is_killed_goes_on(case: Case, unbroken: Unbroken, number: int, capsys):
    for step in moments(number, unbroken.steps):
        assert killed_after(step, case.run), step
        goes_on(case, unbroken, capsys)


@pytest.mark.parametrize("number", NUMBER)
def test_a_job_that_is_terminated_says_so_and_cleans_up(case: Case, unbroken: Unbroken, number: int, capsys):
    before = signal.getsignal(signal.SIGTERM)
    for step in moments(number, unbroken.steps):
        with pytest.raises(SystemExit) as stopped:
            terminated_at(step, case.run)
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        assert stopped.value.code == 128 + signal.SIGTERM, step
        told = [line for line in lines if line.startswith("SIGTERM: ")]
        assert len(told) == 1, lines
        check_flags(case, told[0])
        assert kept() == [], step
        goes_on(case, unbroken, capsys)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", NUMBER)
def test_a_full_disk_is_told_in_a_line_and_the_job_goes_on(case: Case, unbroken: Unbroken, number: int, capsys):
    for step in moments(number, unbroken.growing):
        try:
            on_a_full_disk_after(step, case.run)
        except SystemExit as stopped:
            error = capsys.readouterr().err.rpartition("error: ")[2]
            assert stopped.code in (1, 2) and error.count("\n") == 1, error
            assert "No space left on device" in error or "--resume tries them again" in error, error
            check_flags(case, error)
        else:
            # All but the page is there.
            assert "warning: no report.html: cannot write to" in capsys.readouterr().err
        assert kept() == [], step
        goes_on(case, unbroken, capsys)


@contextmanager
def limit_on_files(size: int) -> Iterator[None]:
    """No file can get longer than so many bytes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.skipif(os.name == "nt", reason="no limits of this kind")
def test_a_limit_on_files_is_told_in_a_line_and_the_job_goes_on(case: Case, unbroken: Unbroken, capsys, monkeypatch):
    """The largest file that a job writes does not get whole: a write fails in the middle of it."""
    # The files are shorter than the block that says whether there is room.
    monkeypatch.setattr("debias_ssl.system.files.PROBE_BYTES", 1)
    case.run()
    files = [path for name in (case.out, *case.further) for path in (Path(name), *Path(name).rglob("*"))]
    largest = max(path.stat().st_size for path in files if path.is_file())
    case.remove()
    capsys.readouterr()
    with limit_on_files(largest - 1), pytest.raises(SystemExit) as stopped:
        case.run()
    said = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and "File too large" in said and "Traceback" not in said
    error = said.rpartition("error: ")[2]
    assert error.count("\n") == 1, said
    check_flags(case, error)
    goes_on(case, unbroken, capsys)


def test_the_second_of_two_writers_is_refused_by_the_process_of_the_first(case: Case, capsys):
    out = Path(case.out)
    holds_file = "." in case.out
    first = locked_file(out, "--out") if holds_file else locked(out)
    with first, pytest.raises(SystemExit) as stopped:
        case.run()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {case.out!r} is in use by process {os.getpid()} on " in said
    check_flags(case, said.rpartition("error: ")[2])
    assert not out.exists() and strays(Path()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_in_processes_of_their_own_go_on(case: Case, number: int, place: Path, capsys):
    """At ten moments by the clock; pages are drawn."""
    log, random = place / "log", np.random.default_rng(0)
    started = time.monotonic()
    job = Job(case.module, case.flags, log)
    assert job.wait() == 0, log.read_text()
    seconds, expected = time.monotonic() - started, case.written()
    case.remove()
    for _ in range(10):
        # A process that was killed at once has none.
        log.unlink(missing_ok=True)
        job = Job(case.module, case.flags, log)
        time.sleep(random.uniform(0, seconds))
        if job.is_running():
            job.send(number)
        status = job.wait()
        # In its first moments no job is there yet, and in its last ones no job any more.
        assert status in (0, 2, -number, 128 + number), log.read_text()
        if status == 128 + number:
            assert log.read_text().count("SIGTERM: ") == 1, log.read_text()
        if number == signal.SIGTERM and status != -number:
            assert kept() == []
        if status in (0, 2):
            assert case.written() == expected
            case.remove()
    log.unlink(missing_ok=True)
    job = Job(case.module, case.flags, log)
    assert job.wait() in (0, 2), log.read_text()
    assert case.written() == expected and strays(Path()) == []
