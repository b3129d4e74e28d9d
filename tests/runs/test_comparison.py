"""The folder of a comparison: what is in the way, and what is left where it was being replaced."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from killing import killed_after

from debias_ssl.runs.comparison import PLAN_FILE, comparison_outputs, planned_runs, prepare_folder
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.variants import ComparisonPlan
from debias_ssl.system.errors import InputError

RESOLVED = {"steps": 2, "data": {}, "model": {}}


def plan_of(*variants: str) -> ComparisonPlan:
    return ComparisonPlan(base=RESOLVED, variants=dict.fromkeys(variants, RESOLVED), seeds=(0,), choose_among=())


def compared(out: Path, plan: ComparisonPlan) -> None:
    """The files of a comparison of finished runs, and one of somebody else."""
    comparison_outputs(out).claim(PLAN_FILE, "compare.json")
    (out / "mine.txt").write_text("kept")
    (out / PLAN_FILE).write_text(yaml.safe_dump(asdict(plan)))
    (out / "compare.json").write_text("{}")
    for run in planned_runs(plan, out):
        folder = RunFolder(run.path)
        folder.write_config(run.resolved)
        folder.write_json("model.json", {})
        folder.write_json("summary.json", {})


def is_whole(folder: RunFolder) -> bool:
    return all((folder.path / name).exists() for name in ("config.yaml", "model.json", "summary.json"))


def test_a_comparison_that_replaces_another_may_be_killed_at_each_step(tmp_path: Path):
    old, new, refusals = plan_of("a", "b"), plan_of("b", "c"), 0
    number = 0

    def recorded(out: Path) -> ComparisonPlan | None:
        return old if (out / PLAN_FILE).exists() else None

    for number in range(0, 200, 2):
        out = tmp_path / str(number)
        out.mkdir()
        compared(out, old)
        folders = [RunFolder(run.path) for run in planned_runs(old, out)]

        def replace(out=out) -> None:
            prepare_folder(out, new, recorded(out), resume=False, overwrite=True)

        if not killed_after(number, replace):
            break
        assert all(is_whole(folder) or not folder.is_finished() for folder in folders)
        try:
            prepare_folder(out, old, recorded(out), resume=True, overwrite=False)
        except InputError as error:
            refusals += 1
            assert "--overwrite" in str(error)
        else:
            # All of it is there, or nothing is, or what a run left is refused by the run.
            assert all(is_whole(folder) for folder in folders) or not any(folder.holds_run() for folder in folders)
        replace()
        assert [path.name for path in out.rglob("*") if path.is_file() and path.suffix != ".tmp"] == ["mine.txt"]
    assert 10 < number < 198 and refusals > 5


@pytest.mark.parametrize("name", ["compare.csv", "report.html", PLAN_FILE, "a/seed-0/model.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_in_the_way(name: str, overwrite: bool, tmp_path: Path):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match=f"holds {path.name}, which"):
        prepare_folder(tmp_path / "out", plan_of("a"), None, resume=False, overwrite=overwrite)
    assert path.read_text() == "mine"
