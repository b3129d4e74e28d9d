"""Breaks one line of the package at a time, and shows which test notices.

    python scripts/checks/mutate.py [WORDS] [--jobs N]

`mutations.yaml` lists what is broken, and the tests that should notice. A mutation that no test notices survives, and
the exit status is 1. All of it happens in copies of the checkout; the files here are never changed.

Why not mutmut or cosmic-ray: They make thousands of mutations by rules, mostly of operators and numbers. The mistakes
here are few and have names, such as a setting that is not passed on, or a teacher that is confused with its student.
The rules cannot make most of them. mutmut also replaces methods by its own functions, but jsonargparse reads the
signatures of methods. cosmic-ray changes files in place.
"""

import argparse
import multiprocessing
import os
import queue
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Importing these takes longer than most tests, so that processes are forked from one that has done it. The package
# itself is not among them: each process imports its own copy.
IMPORTED = ("accelerate", "beartype", "jsonargparse", "open_clip", "pytest", "safetensors.torch", "scipy.special")
IMPORTED += ("sklearn.datasets", "timm", "timm.optim", "torch", "torchvision.datasets")
# Without the checks of shapes that the suite adds: they take seconds, and a test should notice without them.
PYTEST = (
    "-x",
    "-q",
    "-rfE",
    "-o",
    "addopts=",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
CONTEXT = multiprocessing.get_context("forkserver" if os.name != "nt" else "spawn")
PASSED, FAILED = 0, 1


class MutationError(Exception):
    """The list and the checkout do not fit together."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """A mistake, and the tests that should notice it."""

    name: str
    file: str
    text: str
    """What stands in the file, once."""
    instead: str
    tests: tuple[str, ...]
    """Files or names of tests, as pytest takes them."""

    def applied(self, source: str) -> str:
        """The text of the file with the mistake.

        Raises:
            MutationError: the text to replace is not there, or is there more than once.
        """
        found = source.count(self.text)
        if found != 1:
            raise MutationError(f"{self.name}: {self.file} has {self.text!r} {found} times, not once")
        return source.replace(self.text, self.instead)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a mutation."""

    mutation: Mutation
    killer: str | None
    """The test that failed; None where all passed."""
    seconds: float

    def __str__(self) -> str:
        result = "SURVIVED" if self.killer is None else f"killed by {self.killer}"
        return f"{self.mutation.name}: {result} ({self.seconds:.0f} s)"


def read_mutations(path: Path) -> list[Mutation]:
    """The mutations of a YAML file."""
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Mutation(**each | {"tests": tuple(each["tests"])}) for each in found]


def check(mutations: Sequence[Mutation], root: Path) -> None:
    """Raises MutationError where a mutation does not apply, or a file of tests is not there."""
    wrong = []
    for mutation in mutations:
        try:
            mutation.applied((root / mutation.file).read_text(encoding="utf-8"))
        except (MutationError, OSError) as error:
            wrong.append(str(error))
        for test in mutation.tests:
            file, _, name = test.partition("::")
            if not (root / file).is_file():
                wrong.append(f"{mutation.name}: there is no {file}")
            elif f"def {name.partition('[')[0]}(" not in (root / file).read_text(encoding="utf-8") and name:
                wrong.append(f"{mutation.name}: there is no test {name} in {file}")
    if wrong:
        raise MutationError("\n".join(wrong))


def copied(root: Path, to: Path) -> Path:
    """A copy of a checkout, without what is hidden, compiled, or the results of runs."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        results = ("runs", "data") if Path(folder) == root else ()
        return [name for name in names if name.startswith(".") or name == "__pycache__" or name in results]

    return Path(shutil.copytree(root, to, ignore=left_out))


def _run_pytest(copy: Path, tests: Sequence[str], log: Path) -> None:
    import pytest

    with log.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.exit(int(pytest.main([*PYTEST, *tests])))


def failing_test(copy: Path, tests: Sequence[str], timeout: float) -> str | None:
    """The first of the tests that fails in a copy of the checkout, or None.

    Raises:
        MutationError: the tests could not be run.
    """
    with tempfile.TemporaryDirectory() as aside:
        log = Path(aside) / "log"
        process = CONTEXT.Process(target=_run_pytest, args=(copy, tests, log))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            return f"a test that did not end within {timeout:.0f} s"
        said = log.read_text(errors="replace") if log.exists() else ""
    if process.exitcode == PASSED:
        return None
    failed = [line.split()[1] for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if process.exitcode != FAILED or not failed:
        raise MutationError(f"pytest ended with status {process.exitcode}:\n{said[-3000:]}")
    return failed[0]


def replace_source(path: Path, text: str) -> None:
    """Writes a module, and removes what is compiled of it: Python tells that apart by the second, which is too long."""
    path.write_text(text, encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def run_mutation(mutation: Mutation, copy: Path, timeout: float) -> Outcome:
    """Breaks a copy of the checkout, tests it, and mends it again."""
    started = time.perf_counter()
    path = copy / mutation.file
    source = path.read_text(encoding="utf-8")
    replace_source(path, mutation.applied(source))
    try:
        killer = failing_test(copy, mutation.tests, timeout)
    except MutationError as error:
        raise MutationError(f"{mutation.name}: {error}") from error
    finally:
        replace_source(path, source)
    return Outcome(mutation=mutation, killer=killer, seconds=time.perf_counter() - started)


def run_all(mutations: Sequence[Mutation], root: Path, *, jobs: int = 1, timeout: float = 300) -> list[Outcome]:
    """Runs all mutations, so many at once, and prints what became of each.

    Raises:
        MutationError: a mutation does not apply, a test cannot be run, or one fails without any mutation.
    """
    check(mutations, root)
    with tempfile.TemporaryDirectory(prefix="mutations-") as aside, ThreadPoolExecutor(jobs) as pool:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copies.put(copied(root, Path(aside) / str(number)))

        def run_one(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                outcome = run_mutation(mutation, copy, timeout)
            finally:
                copies.put(copy)
            print(outcome, flush=True)
            return outcome

        copy = copies.get()
        failed = failing_test(copy, sorted({test for mutation in mutations for test in mutation.tests}), 10 * timeout)
        copies.put(copy)
        if failed is not None:
            raise MutationError(f"{failed} fails without any mutation")
        return [*pool.map(run_one, mutations)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutations whose name or file has one of these words in it")
    parser.add_argument("--list", type=Path, default=Path(__file__).with_name("mutations.yaml"), help="the mutations")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at once")
    parser.add_argument("--timeout", type=float, default=300, help="seconds after which a test counts as failed")
    asked = parser.parse_args(arguments)
    found = read_mutations(asked.list)
    chosen = [each for each in found if not asked.words or any(w in f"{each.file} {each.name}" for w in asked.words)]
    try:
        outcomes = run_all(chosen, asked.root, jobs=asked.jobs, timeout=asked.timeout)
    except MutationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    survivors = [outcome.mutation.name for outcome in outcomes if outcome.killer is None]
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} mutations killed", *survivors, sep="\nSURVIVED: ")
    return 1 if survivors else 0


if __name__ == "__main__":
    CONTEXT.set_forkserver_preload([*IMPORTED])
    sys.exit(main())
