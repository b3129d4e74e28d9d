import json
from pathlib import Path

import prose
import pytest

ROOT = Path(__file__).parents[2]


def findings(path: Path, text: str, capsys) -> list[str]:
    """What the script prints for a text, without the path."""
    path.write_text(text)
    status = prose.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert (status, len(lines)) in ((0, 0), (1, len(lines)))
    return [line.removeprefix(f"{path}:") for line in lines[:-1]]


def test_the_documentation_and_the_code_have_no_findings(capsys):
    assert prose.main([]) == 0, capsys.readouterr().out
    code = [str(ROOT / each) for each in ("README.md", "debias_ssl", "scripts")]
    assert prose.main(code) == 0, capsys.readouterr().out


def test_every_page_of_the_documentation_is_checked(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    pages = [page.relative_to(ROOT) for page in ROOT.glob("docs/*.md")]
    for page in pages:
        (tmp_path / page).write_text("Anew.\n")
    assert prose.main([]) == 1
    found = capsys.readouterr().out.splitlines()[:-1]
    assert sorted(line.split(":")[0] for line in found) == sorted(map(str, pages))


@pytest.mark.parametrize(
    "phrase",
    [
        "It takes its preference for some classes out of the answers.",
        "Tar files of which each process reads its own.",
        "This is the same but for one field.",
        "Labels where they are not the data's own.",
        "It takes a seventh of the time of a loader.",
        "An image file that is none.",
        "Nothing can be had for less.",
        "An interval that holds 0 shows none.",
        "An empty list where there are none.",
        "The images that are asked for.",
        "The same but for rounding.",
        "What a run says of its images.",
    ],
)
def test_phrases_are_found_also_across_lines(phrase: str, tmp_path: Path, capsys):
    assert findings(tmp_path / "a.md", f"Title.\n\n{phrase}\n", capsys)
    assert findings(tmp_path / "a.md", phrase.replace(" ", "\n"), capsys)


def test_numbers_need_a_zero(tmp_path: Path, capsys):
    text = "A threshold of .95, not 0.95.\n\n| a | (.5) |\n\nVersion 1.2.3, `x.5`, a range of 0.1 to 1, and page 3.\n"
    found = findings(tmp_path / "a.md", text, capsys)
    assert found == ['1: ".95": write "0.95"', '3: ".5": write "0.5"']


def test_a_sentence_has_at_most_40_words(tmp_path: Path, capsys):
    forty = " ".join(["Word"] + ["word"] * 39)
    assert findings(tmp_path / "a.md", f"{forty}. {forty}.\n", capsys) == []
    (found,) = findings(tmp_path / "a.md", f"# Title\n\nShort. {forty}\nmore. Short.\n", capsys)
    assert found.startswith("3: a sentence of 41 words")
    # Items and cells end a sentence, and a command counts as one word.
    assert findings(tmp_path / "a.md", f"- {forty}\n- {forty}\n\n| {forty} | {forty} |\n", capsys) == []
    assert findings(tmp_path / "a.md", f"{forty[:-5]} `{forty} in code`.\n", capsys) == []


def test_code_addresses_and_comments_are_left_out(tmp_path: Path, capsys):
    text = "```\nanew ` .5\n```\n\n<!-- skip: anew -->\n\nSee `anew` and [this](anew.md).\n\nAnew.\n"
    assert findings(tmp_path / "a.md", text, capsys) == ['9: "Anew": write "again"']


def test_docstrings_comments_and_messages_of_code(tmp_path: Path, capsys):
    code = '''"""Makes it anew."""

# It is made
# anew, too.
anew = .5


def main():
    """A number.

    Args:
        first: counts
            from .5 on.
    """
    raise ValueError(f"{anew}: it is made anew")
'''
    found = findings(tmp_path / "a.py", code, capsys)
    assert sorted(line.split(":")[0] for line in found) == ["1", "13", "15", "4"]


def test_code_in_strings_of_code_is_left_out(tmp_path: Path, capsys):
    code = '''"""A script.

    python scripts/script.py anew

It is made anew.
"""

PROGRAM = """
import anew
if anew:
    print(anew, "it is made anew")
"""
'''
    assert findings(tmp_path / "a.py", code, capsys) == ['5: "anew": write "again"']


def test_text_cells_of_notebooks(tmp_path: Path, capsys):
    cells = [{"cell_type": kind, "source": ["Made\n", "anew."]} for kind in ("markdown", "code")]
    assert findings(tmp_path / "a.ipynb", json.dumps({"cells": cells}), capsys) == ['2: "anew": write "again"']


def test_spelling_is_american(tmp_path: Path, monkeypatch, capsys):
    codespell = pytest.importorskip("codespell_lib")
    monkeypatch.chdir(ROOT)
    (tmp_path / "a.md").write_text("The colour of labels.\nIts strenth.\nThe color.\n")
    assert codespell.main(str(tmp_path / "a.md"))
    said = capsys.readouterr().out
    assert "colour ==> color" in said and "strenth ==> strength" in said
