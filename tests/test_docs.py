"""What the README says is true."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import doc_blocks
import pytest

from debias_ssl import cli
from debias_ssl.debias import main as debias
from debias_ssl.train import main as train
from debias_ssl.training.choices import LABELED_LOSSES, METHODS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_jobs_and_files_that_the_readme_names_exist_and_it_counts_the_methods():
    assert set(re.findall(r"debias-ssl (\w+) ", README)) <= set(cli.JOBS)
    assert f"| {len(METHODS)} methods, " in README
    for path in re.findall(r"(?:configs|docs)/[\w./-]+\.(?:yaml|md|svg)", README):
        assert (ROOT / path).is_file(), path


def test_the_readme_begins_with_two_commands_and_all_can_be_pasted():
    blocks = [block.text.splitlines() for block in doc_blocks.blocks() if block.page == "README.md"]
    assert [line.split()[0] for line in blocks[0]] == ["pip", "uv"]
    # `uv sync` does not put the program on the path.
    lines = [line for block in blocks for line in block]
    assert not [line for line in lines if line.startswith(("debias-ssl", "accelerate"))]


def test_the_readme_is_short():
    code_and_pictures = r"^```.*?^```$|<picture>.*?</picture>|\]\([^)]*\)"
    words = re.sub(code_and_pictures, " ", README, flags=re.MULTILINE | re.DOTALL).split()
    assert len([word for word in words if re.search(r"\w", word)]) <= 900


RESULTS = (ROOT / "docs/RESULTS.md").read_text()


def gains_in_results() -> dict[str, list[str]]:
    """Accuracy and its difference to labels alone in each setting, by the method, of the first table."""
    table = RESULTS[: RESULTS.index("With 100 labels a class")]
    rows = re.findall(r"^\| ([A-Z][\w ]+) \| (\d.*) \|$", table, re.MULTILINE)
    return {name: re.findall(r"([\d.]+) / [\d.]+ \((\S+) \[", cells) for name, cells in rows if name != "LabelsOnly"}


def test_the_readmes_table_is_a_part_of_the_results():
    rows = re.findall(r"^\| (\w[\w ]+) \| (\d[\d.]* \([-+].*) \|$", README, re.MULTILINE)
    assert [name for name, _ in rows] == ["FixMatch", "FineSSL", "DebiasPL", "DebiasPL over SoftMatch"]
    for name, cells in rows:
        assert re.findall(r"([\d.]+) \((\S+)\)", cells) == gains_in_results()[name]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_readmes_picture_and_its_description_are_the_results(theme: str):
    (label,) = re.findall(r'aria-label="([^"]+)"', (ROOT / f"docs/pictures/gains-{theme}.svg").read_text())
    shown = re.findall(r", ([A-Z][\w ]+) ([-+]\d+\.\d)", label)
    gains = gains_in_results()
    drawn = {name: [number for one, number in shown if one == name] for name, _ in shown}
    assert drawn == {name: [difference for _, difference in gains[name]] for name in drawn} and len(drawn) == 7
    (described,) = re.findall(r'alt="([^"]+)"', README)
    assert re.findall(r"[-+]\d+\.\d", described) == [number for _, number in shown]


def test_every_method_and_every_loss_has_a_row_and_every_row_is_one():
    rows = re.findall(r"^\| `(\w+)`", (ROOT / "docs/methods.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted([*METHODS, *LABELED_LOSSES])


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_example_debiases(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, unbiased = [[int(n) for n in part.split()] for part in re.findall(r"\[([\d\s]+)\]", done.stdout)]
    assert sum(plain) == sum(unbiased) == 1000
    assert max(unbiased) - min(unbiased) < max(plain) - min(plain)


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
# A file of a user's own, and after it the command that uses it.
OWN_PARTS = re.findall(
    r"```python\n# (my_\w+\.py)\n(.*?)```.*?```\n(?:PYTHONPATH=\. )?debias-ssl train (.*?)\n```",
    ARCHITECTURE,
    re.DOTALL,
)


@pytest.mark.parametrize(("name", "code", "flags"), OWN_PARTS, ids=[part[0] for part in OWN_PARTS])
def test_a_part_of_ones_own_is_used_without_touching_the_package(name, code, flags, tmp_path, monkeypatch):
    (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    short = ["--steps", "3", "--log_every", "1", "--eval_every", "3", "--out", str(tmp_path / "run")]
    flags = [flag.replace("configs/", f"{ROOT}/configs/") for flag in shlex.split(flags.replace("\\\n", " "))]
    train([*flags, *short])
    assert name.removesuffix(".py") in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "summary.json").exists()


def test_every_joint_has_an_example():
    kinds = {"my_method.py", "my_loss.py", "my_network.py", "my_optimizer.py", "my_data.py", "my_operation.py"}
    assert {name for name, _, _ in OWN_PARTS} == kinds


def test_the_map_names_files_and_folders_that_exist():
    map_ = ARCHITECTURE[: ARCHITECTURE.index("## Your own parts")]
    for path in re.findall(r"`([\w/]+(?:\.py|/))`", map_):
        assert (ROOT / "debias_ssl" / path).exists() or (ROOT / path).exists(), path
    for path in (ROOT / "debias_ssl").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"^ .*\b{path.name}\b", map_, re.MULTILINE), f"{path.name} is not in the picture"


DEBIAS = (ROOT / "docs/debias-labels.md").read_text()
# Commands on the digits, and what they say.
SAID = re.findall(
    r"`debias-ssl (debias --predictions (?:logits|album)\.npy [^`]*)` says\n\n```\n(.*?)```", DEBIAS, re.DOTALL
)


def test_examples_of_debias_say_what_the_guide_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec("\n".join(re.findall(r"```python\n(.*?)```", DEBIAS, re.DOTALL)), {})
    assert ["--min_precision" in command for command, _ in SAID] == [False, False, True]
    for command, expected in SAID:
        capsys.readouterr()
        debias(shlex.split(command)[1:])
        said = capsys.readouterr().out.splitlines()
        assert not {*expected.splitlines()} - {*said}
