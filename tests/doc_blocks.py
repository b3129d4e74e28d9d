"""The blocks of commands and of Python in the texts of the project, and what is said of running them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from debias_ssl.cli import JOBS

ROOT = Path(__file__).parent.parent
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<what>run|skip): (?P<value>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Whole commands; others in sentences are about a flag.
INLINE = re.compile(r"`(debias-ssl [a-z]+ [^`]*--out[^`]*)`")
BETWEEN = {"&&", "||", ";", "|", "&", ">"}
# Started for several processes: what follows is the module of a job.
MODULES = {module: job for job, (module, _) in JOBS.items()}
MODULES |= {module.removesuffix(".__main__"): job for module, job in MODULES.items()}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, and the comment before it: `<!-- run: FOLDER -->`, or `<!-- skip: REASON -->`."""

    page: str
    line: int
    language: str
    text: str
    what: str
    """`run`, `skip`, or nothing."""
    value: str
    """The working folder that blocks of a page share, perhaps with a file to write; or the reason."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for found in BLOCK.finditer(text):
            yield Block(
                page=path.relative_to(ROOT).as_posix(),
                line=text[: found.start("language")].count("\n") + 1,
                language=found["language"],
                text=found["text"],
                what=found["what"] or "",
                value=found["value"] or "",
            )


def inline_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands inside sentences, and where they are."""
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for found in INLINE.finditer(BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)):
            line = " ".join(found[1].split())
            for command in commands(line):
                yield f"{path.name}: {line}", command


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a block of shell lines, without variables before them and without `uv run`."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.match(r"(\w+=\S+ )*(debias-ssl|accelerate|torchrun|python|bash|uv|pip|make|source|git) ", line):
            continue
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in BETWEEN:
                while words and (re.match(r"\w+=", words[0]) or words[:2] == ["uv", "run"]):
                    words = words[2:] if words[0] == "uv" else words[1:]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def job_of(command: list[str]) -> tuple[str, list[str]] | None:
    """The job and the arguments of a command of this package, however it is started."""
    if command[0] == "debias-ssl":
        return (command[1], command[2:]) if len(command) > 1 else ("--help", [])
    if "-m" in command:
        at = command.index("-m") + 1
        arguments = command[at + 1 :]
        if command[at] in MODULES:
            return MODULES[command[at]], arguments[1:] if arguments[:1] == ["--"] else arguments
    return None
