"""Links of the documentation lead to the same place on the site and in the repository."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mkdocs")
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "docs_site"))
    return __import__("hooks")


@pytest.mark.parametrize(
    ("page", "link", "target"),
    [
        ("votes.md", "RESULTS.md", None),
        ("votes.md", "pictures/run.png", None),
        ("votes.md", "https://arxiv.org/abs/2201.01490", None),
        ("votes.md", "#sizes", None),
        ("votes.md", "../scripts/studies/vpet.yaml", "files/scripts/studies/vpet.yaml"),
        ("votes.md", "../CONTRIBUTING.md", "contributing.md"),
        ("votes.md", "../README.md", "index.md"),
        # What lies at the root of the repository.
        ("contributing.md", "docs/methods.md", "methods.md"),
        ("contributing.md", "LICENSE", "files/LICENSE"),
        ("contributing.md", "CODE_OF_CONDUCT.md", "code-of-conduct.md"),
        ("notebooks/first_run.md", "../start.md", None),
    ],
)
def test_a_link_is_where_the_site_has_what_it_names(hooks, page: str, link: str, target: str | None):
    assert hooks.site_path(page, link) == target


def test_links_in_code_stay_as_they_are(hooks):
    page = SimpleNamespace(meta={}, file=SimpleNamespace(src_uri="votes.md"))
    text = "see [a](../CONTRIBUTING.md#checks)\n\n```\n[a](../CONTRIBUTING.md)\n```\n"
    assert hooks.on_page_markdown(text, page) == text.replace("../CONTRIBUTING.md#", "contributing.md#")


def test_progress_bars_leave_no_text(hooks):
    from nbformat.v4 import new_code_cell, new_output

    printed = "made\r\n  0%|  | 0/2\r 50%|x | 1/2\rstep 1\r\n100%|xx| 2/2\r\nend\r\n"
    outputs = [new_output("stream", name=name, text=printed) for name in ("stdout", "stderr")]
    assert hooks.notebooks.page_text(new_code_cell("", outputs=outputs)) == "made\nstep 1\nend"
