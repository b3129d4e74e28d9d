"""Teachers that are variants of the same comparison."""

from pathlib import Path

import pytest

from debias_ssl.runs.comparison import planned_runs
from debias_ssl.runs.taught_variants import teacher_of, teachers_first
from debias_ssl.runs.variants import ComparisonPlan
from debias_ssl.system.errors import InputError


def taught(by: str | None) -> dict:
    return {"teacher": by, "data": {}, "model": {}}


def test_a_teacher_is_of_the_same_setting():
    assert teacher_of("a", taught("variant:b")) == "b" and teacher_of("few/a", taught("variant: b")) == "few/b"
    # A folder is a folder.
    assert teacher_of("a", taught("runs/b")) is None and teacher_of("a", taught(None)) is None


def test_teachers_come_first_and_others_stay_in_their_order():
    variants = {"a": taught("variant:d"), "b": taught(None), "c": taught("variant:a"), "d": taught(None)}
    assert teachers_first(variants) == ["d", "a", "b", "c"]


def test_circles_and_unknown_teachers_are_refused():
    with pytest.raises(InputError, match="in a circle: a <- b <- c <- a"):
        teachers_first({"a": taught("variant:b"), "b": taught("variant:c"), "c": taught("variant:a")})
    with pytest.raises(InputError, match=r"'few/a': teacher is 'variant:b', .*; the others are c$"):
        teachers_first({"few/a": taught("variant:b"), "few/c": taught(None), "many/b": taught(None)})


def test_runs_are_taught_by_runs_of_their_seed(tmp_path: Path):
    variants = {"few/a": taught("variant:b"), "few/b": taught(None)}
    plan = ComparisonPlan(base={}, variants=variants, seeds=(3, 4))
    runs = planned_runs(plan, tmp_path)
    assert [(run.variant, run.seed) for run in runs] == [("few/b", 3), ("few/a", 3), ("few/b", 4), ("few/a", 4)]
    assert runs[3].teacher == tmp_path / "few" / "b" / "seed-4" == Path(runs[3].resolved["teacher"])
    # It lies in the folder of the comparison, as every run does; other teachers may not.
    assert runs[3].inputs.keys() == runs[2].inputs.keys() - {"--teacher"} and runs[2].inputs["--teacher"] is None
    assert runs[2].teacher is None and runs[2].resolved["teacher"] is None
