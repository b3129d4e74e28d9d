"""The files around the package agree with it and with each other."""

import re
from pathlib import Path

import pytest
import yaml

from debias_ssl import __version__

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    # A development version has no entry yet.
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased" and (len(versions) == 1 or __version__ >= versions[1])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_and_templates_are_yaml_and_run_what_exists(path: Path):
    text = path.read_text()
    assert isinstance(yaml.safe_load(text), dict)
    for script in re.findall(r"bash (\.ci/\w+)", text):
        assert (ROOT / script).is_file(), script


def test_ci_runs_every_script():
    scripts = {path.name for path in (ROOT / ".ci").iterdir()} - {"run"}
    assert scripts == {*re.findall(r"bash \.ci/(\w+)", (ROOT / ".ci/run").read_text())}
    workflow = (ROOT / ".github/workflows/checks.yml").read_text()
    assert scripts == {*re.findall(r"bash \.ci/(\w+)", workflow)}


def test_links_between_the_texts_of_the_root_lead_to_files():
    for path in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (ROOT / link).exists(), f"{path.name}: {link}"
