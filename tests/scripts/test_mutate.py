"""The list of mutations fits the code, and the runner tells what is noticed from what is not."""

from pathlib import Path

import mutate
import pytest
import yaml

LIST = Path(mutate.__file__).with_name("mutations.yaml")
CODE = "def double(x):\n    return 2 * x\n\n\ndef unused():\n    return 1\n"
TESTS = """from own import double

def test_zero():
    assert double(0) == 0

def test_two():
    assert double(2) == 4
"""


def listed(name: str, text: str, instead: str, tests: str = "test_own.py") -> dict:
    return {"name": name, "file": "own.py", "text": text, "instead": instead, "tests": [tests]}


WRONG_FACTOR = listed("wrong factor", "2 * x", "3 * x")
UNUSED = listed("unused", "return 1", "return 2")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "own.py").write_text(CODE)
    (root / "test_own.py").write_text(TESTS)
    return root


def run(project: Path, *mutations: dict, words: tuple[str, ...] = ()) -> int:
    path = project.parent / "list.yaml"
    path.write_text(yaml.safe_dump([*mutations]))
    return mutate.main([*words, "--list", str(path), "--root", str(project)])


def test_every_mutation_applies_and_its_tests_are_there():
    found = mutate.read_mutations(LIST)
    mutate.check(found, mutate.ROOT)
    assert len({mutation.name for mutation in found}) == len(found) > 100


def test_mutated_files_can_be_compiled():
    for mutation in mutate.read_mutations(LIST):
        compile(mutation.applied((mutate.ROOT / mutation.file).read_text()), mutation.name, "exec")


def test_what_is_noticed_and_what_survives_is_told(project, capsys):
    # The copy is mended each time, or the second would be noticed too.
    assert run(project, WRONG_FACTOR, UNUSED) == 1
    told = capsys.readouterr().out
    assert "wrong factor: killed by test_own.py::test_two" in told
    assert "unused: SURVIVED" in told and told.endswith("1 of 2 mutations killed\nSURVIVED: unused\n")
    # What is mutated is a copy.
    assert (project / "own.py").read_text() == CODE


def test_words_choose_mutations_and_without_survivors_the_status_is_0(project, monkeypatch, capsys):
    def failing_test(copy: Path, tests: tuple[str, ...], timeout: float) -> str | None:
        return None if (copy / "own.py").read_text() == CODE else "a test"

    monkeypatch.setattr(mutate, "failing_test", failing_test)
    assert run(project, WRONG_FACTOR, UNUSED, words=("factor",)) == 0
    assert capsys.readouterr().out.endswith("1 of 1 mutations killed\n")


@pytest.mark.parametrize(
    ("mutation", "message"),
    [
        (listed("gone", "3 * x", "2 * x"), "gone: own.py has '3 * x' 0 times, not once"),
        (listed("twice", "return", "yield"), "twice: own.py has 'return' 2 times, not once"),
        (listed("no file", "2 * x", "x", "test_other.py"), "no file: there is no test_other.py"),
        (listed("no test", "2 * x", "x", "test_own.py::test_one"), "no test: there is no test test_one in test_own.py"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_a_mutation_that_does_not_fit_is_an_error(project, mutation, message, capsys):
    assert run(project, mutation) == 2
    assert message in capsys.readouterr().err


def test_tests_that_fail_anyway_are_an_error(project, capsys):
    (project / "test_own.py").write_text(TESTS.replace("== 4", "== 5"))
    assert run(project, WRONG_FACTOR) == 2
    assert "test_own.py::test_two fails without any mutation" in capsys.readouterr().err


def test_code_that_cannot_be_collected_is_an_error_and_no_kill(project):
    (project / "own.py").write_text(CODE.replace("def double", "def triple"))
    with pytest.raises(mutate.MutationError, match="pytest ended with status"):
        mutate.failing_test(project, ["test_own.py"], 300)
