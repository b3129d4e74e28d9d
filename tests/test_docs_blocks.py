"""The commands and the Python of README and docs are right: parsed by the jobs' own parsers, or run on small data.

A comment before a block says how it is tried: `<!-- run: FOLDER -->` runs it in a working folder that the blocks of its
page with the same name share, `<!-- skip: REASON -->` leaves it out. Without one, each command must parse.
"""

import importlib
import itertools
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT, Block, blocks, commands, inline_commands, job_of
from small_clip import paint_images, save_clip, save_siglip
from test_docs import OWN_PARTS

from debias_ssl.cli import JOBS
from debias_ssl.system.errors import InputError
from debias_ssl.training.parser import Parser
from debias_ssl.training.renamed import check_flags
from debias_ssl.training.shipped import with_found_configs

BLOCKS = [*blocks()]
RUN = [block for block in BLOCKS if block.what == "run"]
# Python that tests/test_docs.py runs, with what it says.
RUN_ELSEWHERE = {"README.md", "docs/annotation.md", "docs/architecture.md", "docs/debias-labels.md"}
STEPS = ["--steps", "2", "--log_every", "1", "--eval_every", "2", "--checkpoint_every", "2"]
SMALL = ["--batch_size", "2", "--unlabeled_ratio", "1", "--data.workers", "0"]
# What makes a job of the texts short; later flags beat earlier ones.
SHORTER = {"train": [*STEPS, *SMALL], "compare": [*STEPS, *SMALL, "--seeds=0", "--report=false"]}

# Values that fit a dozen images of 20 x 16 pixels.
SMALLER = {"--data.image_size": "32", "--data.seeds_per_class": "2"}


class Parsed(BaseException):
    """A command line was parsed, before anything else is done with it."""


@pytest.fixture
def parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, list[str]], str | None]:
    """Parses a command line as its job does, in a folder with the files that the texts have users write."""
    for name, code, _ in OWN_PARTS:
        (tmp_path / name).write_text(code)
    for block in RUN:
        if name := file_of(block):
            (tmp_path / name).write_text(block.text)
    (tmp_path / "configs").mkdir()
    for name in ("my.yaml", "configs/my.yaml", "configs/other.yaml"):
        shutil.copy(ROOT / "configs/digits.yaml", tmp_path / name)
    parse_args = Parser.parse_args

    def read_once(parser: Parser, arguments: list[str]) -> Any:
        check_flags(arguments)
        parse_args(parser, with_found_configs(arguments))
        raise Parsed

    def parse_once(parser: Parser, *arguments: Any, **settings: Any) -> Any:
        parse_args(parser, *arguments, **settings)
        raise Parsed

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(Parser, "read_arguments", read_once)
    monkeypatch.setattr(Parser, "parse_args", parse_once)
    return parsed


def parsed(job: str, arguments: list[str]) -> str | None:
    """What is wrong with a command line."""
    if job not in JOBS:
        return None if job in ("--help", "--version", "JOB") else f"there is no job {job}"
    # Dots stand for what the sentence around has said; words in capitals for what a user has.
    if "..." in arguments or "--help" in arguments:
        return None
    try:
        importlib.import_module(JOBS[job][0]).main.__wrapped__(arguments)
    except Parsed:
        return None
    except InputError as error:
        return str(error)
    return "nothing was parsed"


def check(where: str, command: list[str], parse: Callable[[str, list[str]], str | None]) -> list[str]:
    """What is wrong with a command of the texts."""
    if command[0] in ("python", "bash") and len(command) > 1 and command[1].startswith(("scripts/", ".ci/")):
        path = ROOT / command[1]
        return [] if path.is_file() else [f"{where}: there is no {command[1]}"]
    if command[0] == "make":
        rules = (ROOT / "Makefile").read_text()
        return [f"{where}: no rule {name}" for name in command[1:] if not re.search(rf"^{name}:", rules, re.MULTILINE)]
    found = job_of(command)
    wrong = parse(*found) if found else None
    return [f"{where}: {' '.join(command)}: {wrong}"] if wrong else []


def test_every_command_parses(parse):
    tried = [(block.where, command) for block in BLOCKS if block.what != "skip" for command in shell(block)]
    wrong = [problem for where, command in tried for problem in check(where, command, parse)]
    assert wrong == [] and len(tried) > 100


def test_commands_in_sentences_parse(parse):
    tried = [*inline_commands()]
    assert [problem for where, command in tried for problem in check(where, command, parse)] == []
    assert len(tried) > 5


@pytest.mark.parametrize("job", JOBS)
def test_help_says_what_a_job_does_with_an_example_before_the_settings(job: str, capsys):
    with suppress(SystemExit):
        importlib.import_module(JOBS[job][0]).main.__wrapped__(["--help"])
    before = re.split(r"^(?:options|positional arguments):$", capsys.readouterr().out, flags=re.MULTILINE)[0]
    lines = before.splitlines()
    assert lines[0].startswith(f"usage: debias-ssl {job} ") and len(lines) <= 20 and max(map(len, lines)) <= 105
    (guide,) = re.findall(r"^Guide: (docs/[\w-]+\.md)$", before, re.MULTILINE)
    assert f"debias-ssl {job}" in (ROOT / guide).read_text()


@pytest.mark.parametrize("job", JOBS)
def test_the_example_of_a_help_parses(job: str, parse):
    module = importlib.import_module(JOBS[job][0])
    example = (module.CHECK if job == "data" else module.HELP).example
    (command,) = commands(example)
    assert command[1] == job
    assert check(job, command, parse) == []


def test_a_wrong_command_is_found(parse):
    for line, words in (
        ("debias-ssl train --config digits --stepz 3", "stepz"),
        ("debias-ssl trian --config digits", "trian"),
        ("accelerate launch -m debias_ssl.train --config nowhere.yaml", "nowhere.yaml"),
        ("torchrun --nproc_per_node 2 -m debias_ssl.label -- --imagez a", "imagez"),
        ("uv run debias-ssl compare --config digits --method Nope && true", "Nope"),
        ("python scripts/nope.py", "scripts/nope.py"),
        ("make nope", "nope"),
    ):
        (problem,) = [problem for command in commands(line) for problem in check("here", command, parse)]
        assert words in problem


def shell(block: Block) -> list[list[str]]:
    return [*commands(block.text)] if block.language in ("", "bash", "sh", "console", "shell") else []


def test_python_is_run_or_left_out_for_a_reason():
    unmarked = [block.where for block in BLOCKS if block.language == "python" and not block.what]
    assert [where for where in unmarked if where.split(":")[0] not in RUN_ELSEWHERE] == []
    assert all(len(block.value.split()) > 1 for block in BLOCKS if block.what == "skip")


def file_of(block: Block) -> str | None:
    """The file that a block of Python is to be written to, by `<!-- run: FOLDER, file NAME -->`."""
    return block.value.partition(", file ")[2] or None


def folder_of(block: Block) -> tuple[str, str]:
    return block.page, block.value.partition(",")[0]


def make_images(folder: Path) -> None:
    """What the texts call by these names: trees of classes, images without labels, class names."""
    for i, path in enumerate(paint_images(folder / "drawn", num=36, classes=("cat", "dog"))):
        place = ("labeled", "test", "unlabeled")[i % 3]
        target = folder / place / ("." if place == "unlabeled" else path.parent.name) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    paint_images(folder / "images", classes=("cat", "dog"))
    (folder / "classes.txt").write_text("cat\ndog\n")


def make_run(folder: Path) -> None:
    """A run on digits with held-out images."""
    flags = ["--config", "digits", *STEPS, "--data.validation_per_class", "5"]
    importlib.import_module(JOBS["train"][0]).main([*flags, "--out", str(folder / "runs" / "v")])


PREPARE: dict[str, Callable[[Path], object]] = {
    "start": lambda folder: None,
    "stripes": lambda folder: None,
    "images": make_images,
    "objective": make_run,
    "several": make_images,
}


def small(job: str, arguments: list[str], folder: Path) -> list[str]:
    """A command line of the texts with a network, a model and a length for tests."""
    arguments = [*arguments, *SHORTER.get(job, [])]
    stand_ins = {"local-dir:models/siglip": save_siglip}
    for i in range(len(arguments) - 1, 0, -1):
        if arguments[i - 1] == "--model":
            make = stand_ins.get(arguments[i], save_clip)
            arguments[i] = make(folder / make.__name__)
        elif arguments[i - 1] == "--pretrained":
            del arguments[i - 1 : i + 1]
        elif arguments[i - 1] in SMALLER:
            arguments[i] = SMALLER[arguments[i - 1]]
    return arguments


@pytest.mark.parametrize("key", sorted({folder_of(block) for block in RUN}), ids=lambda key: "-".join(key))
def test_blocks_run(key: tuple[str, str], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    PREPARE[key[1]](tmp_path)
    names: dict[str, Any] = {}
    for block in (block for block in RUN if folder_of(block) == key):
        if name := file_of(block):
            (tmp_path / name).write_text(block.text)
        elif block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        for command in shell(block):
            job, arguments = job_of(command) or pytest.fail(f"{block.where}: {command[0]} cannot be run here")
            try:
                importlib.import_module(JOBS[job][0]).main(small(job, arguments, tmp_path))
            except SystemExit:
                pytest.fail(f"{block.where}: {' '.join(command)}: {capsys.readouterr().err}")
            for flag, place in itertools.pairwise(arguments):
                assert flag != "--out" or (tmp_path / place).exists(), f"{block.where}: {place}"
