"""Checks the English of texts: phrases to avoid, sentences that are too long, numbers without a leading zero.

    python scripts/checks/prose.py                     the pages and notebooks of the documentation
    python scripts/checks/prose.py README.md           other texts
    python scripts/checks/prose.py debias_ssl          docstrings, comments and messages of Python files

It prints one line for each finding, and ends with exit status 1 if there is any. Spelling is checked by codespell
(`[tool.codespell]` of pyproject.toml). To add a phrase, add a row to PHRASES.
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_WORDS = 40

# A regular expression, and what to write instead.
PHRASES = {
    r"out of the answers": "removes the preference from the predictions",
    r"of which": "two sentences",
    r"where there (?:is|are) (?:none|any)": "if there are none, without",
    r"(?:is|are) none of(?! this)|(?:it|which) (?:is|are) none": "is not one of, is not such",
    r"(?:is|are) asked for": "is requested, the settings require it",
    r"but for": "except for, up to",
    r"said of|says of|to be said|made use of": "predicts for, notes about, is used",
    r"whoever|somebody|again and again": "the process or user that, another program, repeatedly",
    r"the same but for": "the same except for",
    r"where they are not the data's own": "labels that differ from those of the data",
    r"an? (?:half|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth) of the time": "a number, such as 0.14 times",
    r"file that is none|files that are none|that is none\b": "a file that is not an image",
    r"can be had": "is available, is possible",
    r"interval that holds|holds 0|shows none": "an interval that contains 0 does not establish a difference",
    r"anew|afresh": "again",
    r"for ever|in silence|without a word": "forever, silently, without a warning",
    r"as (?:it stands|they stand)": "as it is",
    r"come along|comes along|brings along": "is shipped with the package",
    r"what comes? out|came out": "the result",
    r"(?:is|are|was|were) taken for": "is read as",
    r"takes? for granted": "assumes",
    r"goes? on where|go on where": "continues, resumes",
    r"in the hands of|in other hands": "other processes do it",
    r"made data|made rows|made logits": "synthetic data",
    r"(?:is|are) told(?! apart)": "is reported",
    r"(?:is|are) asked about": "the job asks",
    r"(?:is|are) obeyed": "is used as it is",
    r"utili[sz]\w+|in order to|due to the fact": "use, to, because",
}
FOUND = [
    (re.compile(rf"\b(?:{phrase})\b".replace(" ", r"\s+"), re.IGNORECASE), advice) for phrase, advice in PHRASES.items()
]
# As in ".95", but not in "0.95", "v1.95", "a.95", ".5k" or "[.95".
BARE = re.compile(r"(?<![\w.\])}/%*`-])\.\d+\b")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*]*[A-Z`\[0-9])")
WORD = re.compile(r"[A-Za-z0-9][\w'.,-]*")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Text of one paragraph, table cell, docstring, comment or message, and the line where it begins."""

    text: str
    line: int


def problems(passage: Passage) -> Iterator[tuple[int, str]]:
    """Findings of a passage, with their line."""
    text = passage.text
    for pattern, advice in FOUND:
        for found in pattern.finditer(text):
            yield line_of(passage, found.start()), f'"{" ".join(found[0].split())}": write "{advice}"'
    for found in BARE.finditer(text):
        yield line_of(passage, found.start()), f'"{found[0]}": write "0{found[0]}"'
    start = 0
    for sentence in SENTENCE_END.split(text):
        start = text.index(sentence, start)
        if (num := len(WORD.findall(sentence))) > MAX_WORDS:
            begin = " ".join(sentence.split()[:5])
            yield line_of(passage, start), f"a sentence of {num} words, {MAX_WORDS} at most: {begin} ..."


def line_of(passage: Passage, position: int) -> int:
    return passage.line + passage.text.count("\n", 0, position)


def of_markdown(text: str) -> Iterator[Passage]:
    """Paragraphs, list items and table cells; code, comments, formulas and addresses are left out."""
    text = re.sub(r"^( *)```.*?^\1```", blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|<[a-z/][^>]*>", blank, text, flags=re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`]*`", lambda code: "X" + blank(code), text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    lines, first = [], 0
    for number, line in enumerate([*text.split("\n"), ""], 1):
        begins = re.match(r"\s*(?:[-*|#]|\d+\.) ?", line)
        if (begins or not line.strip()) and lines:
            yield Passage(text="\n".join(lines), line=first)
            lines = []
        if line.lstrip().startswith("|"):
            yield from (Passage(text=cell, line=number) for cell in line.split("|") if cell.strip(" -"))
        elif line.strip():
            first = first if lines else number
            lines.append(line)


def of_notebook(text: str) -> Iterator[Passage]:
    """Passages of the text cells, each with its line in the cell."""
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "markdown":
            yield from of_markdown("".join(cell["source"]))


def of_python(text: str) -> Iterator[Passage]:
    """Docstrings, comments, and other strings with at least two spaces; programs in strings are left out."""
    strings = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    for node in strings:
        if isinstance(node.value, str) and node.value.count(" ") > 1 and not is_program(node.value):
            yield from paragraphs(node.value, node.lineno)
    comment = ""
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1 and comment:
                yield Passage(text=comment, line=first)
                comment = ""
            first = first if comment else token.start[0]
            last = token.start[0]
            comment += token.string.lstrip("# ") + "\n"
    if comment:
        yield Passage(text=comment, line=first)


def is_program(text: str) -> bool:
    """Whether a string of several lines is Python code."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return "\n" in text and bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def paragraphs(text: str, line: int) -> Iterator[Passage]:
    """Paragraphs of a string, and the entries of its lists of arguments; indented code and formulas are left out."""
    margin = min((len(each) - len(each.lstrip()) for each in text.split("\n")[1:] if each.strip()), default=0)
    text = re.sub(rf"(?<=\n\n)(?: {{{margin + 4},}}\S.*(?:\n|\Z))+(?=\s*$|\s*\n)", blank, text)
    text = re.sub(r"`[^`\n]*`", "X", text)
    for found in re.finditer(r"(?:^.+$\n?)+?(?=^\s*$|^\s*[\w*]+: |^\s*(?:[-*]|\d+\.) |\Z)", text, re.MULTILINE):
        yield Passage(text=found[0], line=line + text.count("\n", 0, found.start()))


def blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")


READERS = {".md": of_markdown, ".py": of_python, ".ipynb": of_notebook}


def files(paths: list[Path]) -> Iterator[Path]:
    """The files, and those of folders that can be read, except for this one: it contains the phrases."""
    for path in paths:
        inside = sorted(each for each in path.rglob("*") if each.suffix in READERS) if path.is_dir() else [path]
        yield from (each for each in inside if each.resolve() != Path(__file__).resolve())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    paths = parser.parse_args(arguments).paths or sorted(
        [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/notebooks/*.ipynb")]
    )
    num = 0
    for path in files(paths):
        for passage in READERS[path.suffix](path.read_text(encoding="utf-8")):
            for line, problem in problems(passage):
                print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {problem}")
                num += 1
    if num:
        print(f"{num} findings")
    return int(num > 0)


if __name__ == "__main__":
    sys.exit(main())
