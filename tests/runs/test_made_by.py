"""What a run was made by: a commit that can be looked up, versions, and a machine without its name."""

import platform
import subprocess
from pathlib import Path

import pytest

from debias_ssl.runs.made_by import commit_of, made_by


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", *own, "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository with one commit."""
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git(package, "init", "--quiet")
    git(package, "add", ".")
    git(package, "commit", "--quiet", "-m", "first")
    return package


def test_a_commit_has_a_mark_where_the_package_was_changed(package: Path):
    commit = git(package, "rev-parse", "HEAD")[:10]
    assert commit_of(package) == commit
    # A table of results beside the package changes nothing in what runs do.
    (package.parent / "table.csv").write_text("1")
    assert commit_of(package) == commit
    (package / "new.py").write_text("")
    assert commit_of(package) == f"{commit}+"


def test_a_package_inside_of_another_repository_has_no_commit(package: Path, tmp_path: Path):
    installed = package.parent / ".venv" / "other"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert commit_of(installed) == "" and commit_of(tmp_path) == ""


def test_nothing_names_the_host_or_needs_quotes_in_a_table():
    found = made_by()
    assert [*found] == ["commit", "versions", "machine"]
    assert not any("," in value or (platform.node() and platform.node() in value) for value in found.values())
    assert f"Python {platform.python_version()}" in found["versions"] and "cores" in found["machine"]
