"""Temperature and shift of an exported network, from a flag or from files of other jobs."""

import json
from pathlib import Path

import pytest

from debias_ssl.deployment.adjustment import Adjustment, read_adjustment
from debias_ssl.system.errors import InputError

CLASSES = ("ant", "bee")
SUMMARY = {"temperature": 2.0, "shift": {"bee": 0.5, "ant": -0.25}, "predictions": "p.csv", "refine": "none"}


def written(folder: Path, content: object, name: str = "summary.json") -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder if name == "summary.json" else folder / name)


def test_without_flags_nothing_is_done():
    assert read_adjustment(None, None, CLASSES) == Adjustment(temperature=1.0, shift=())


def test_a_temperature_is_a_number_or_a_file_of_evaluate(tmp_path: Path):
    file = written(tmp_path, {"calibration": {"temperature": 1.25}}, "figures.json")
    assert read_adjustment("1.25", None, CLASSES) == read_adjustment(file, None, CLASSES)
    assert read_adjustment(file, None, CLASSES).temperature == 1.25


def test_a_folder_of_debias_has_the_shift_of_each_class_by_its_name(tmp_path: Path):
    found = read_adjustment(None, written(tmp_path, SUMMARY), CLASSES)
    assert found == Adjustment(temperature=2.0, shift=(-0.25, 0.5))


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "warm", "nowhere.json"])
def test_a_temperature_that_is_none_is_refused(given: str):
    with pytest.raises(InputError, match="--temperature"):
        read_adjustment(given, None, CLASSES)


def test_files_that_do_not_say_it_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="evaluate --calibrate --out"):
        read_adjustment(written(tmp_path, {"accuracy": 1.0}, "figures.json"), None, CLASSES)
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_adjustment(str(tmp_path / "damaged.json"), None, CLASSES)
    with pytest.raises(InputError, match=r"cannot read .*summary\.json"):
        read_adjustment(None, str(tmp_path / "nowhere"), CLASSES)
    for change, words in (
        ({"shift": None}, "not a folder of debias-ssl debias"),
        ({"predictions": None}, "not a folder of debias-ssl debias"),
        ({"shift": {"ant": 0.0, "cat": 0.0}}, "other classes"),
        ({"refine": "gaussian"}, "without --refine"),
    ):
        content = {key: value for key, value in {**SUMMARY, **change}.items() if value is not None}
        with pytest.raises(InputError, match=words):
            read_adjustment(None, written(tmp_path, content), CLASSES)


def test_two_temperatures_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="sets the temperature"):
        read_adjustment("2", written(tmp_path, SUMMARY), CLASSES)
